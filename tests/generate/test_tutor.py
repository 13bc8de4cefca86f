"""The teacher of arithmetic: what it says of right and wrong solutions, and prompts by self-instruct."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from selfimprove.datasets import arithmetic as data
from selfimprove.errors import ConfigError, RunError
from selfimprove.generate.self_instruct import instructions, two_seeds
from selfimprove.generate.tutor import arithmetic, read, review
from selfimprove.types import Attempt, Message, Problem, Sample, Trajectory, Verdict

CHAIN = data.Chain(7, (("+", 5), ("*", 3), ("-", 8)))


def said(chat: list[Message]) -> str:
    return asyncio.run(arithmetic()(chat, temperature=0.0, max_tokens=None, seed=0))


def test_it_reads_the_chain_of_every_question() -> None:
    rng = random.Random(0)
    for chain in (data.random_chain(rng, level) for level in data.LEVELS for _ in range(20)):
        assert read(chain.question) == chain


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (data.solution(CHAIN), "Every line is right."),
        ("7 + 5 = 12\n12 * 3 = 35\n35 - 8 = 27\nThe answer is 27.", "Line 2 is wrong: 12 * 3 = 36."),
        ("(7 + 5) * 3 = 30\n30 - 8 = 22\nThe answer is 22.", "Line 1 is wrong: (7 + 5) * 3 = 36."),
        ("7 + 5 = 12\n12 * 3 = 36\n36 - 8 = 28\nThe answer is 29.", "Line 4 is wrong: The answer is 28."),
        ("7 + 5 = 12", "Line 2 is wrong: The answer is 28."),
        ("", "Line 1 is wrong: The answer is 28."),
    ],
)
def test_a_review_gives_the_first_wrong_line_as_it_should_read(solution: str, reason: str) -> None:
    right = reason.startswith("Every")
    assert review(CHAIN, solution) == (reason, "correct" if right else "incorrect")
    asked = said(data.verify_prompt(CHAIN.question, solution))
    assert asked == f"{reason}\nVerdict: {'correct' if right else 'incorrect'}"


def test_a_refinement_is_a_right_solution() -> None:
    assert said(data.refine_prompt(CHAIN.question, "7 + 5 = 13", "Line 1 is wrong.\nVerdict: incorrect")) == (
        data.solution(CHAIN)
    )


@pytest.mark.parametrize("question", ["How many?", f"{CHAIN.question}\nAnswer with one Python expression."])
def test_another_problem_is_one_line(question: str) -> None:
    with pytest.raises(RunError, match=r"dataset\.form=solve in the chats"):
        said(data.verify_prompt(question, "7"))


SEEDS = [
    Problem(f"s{i}", [{"role": "system", "content": "S"}, {"role": "user", "content": f"Q{i}"}],
            metadata={"question": f"Q{i}"}) for i in range(3)
]  # fmt: skip


def test_a_request_shows_two_seeds_and_a_new_prompt_is_asked_as_they_are() -> None:
    asked = two_seeds(SEEDS, count=5, ask="{first} {second}", seed=0)
    assert len(asked) == 5
    assert all(len(set(str(p.prompt).split())) == 2 for p in asked)
    made = Trajectory("ask-0", [Sample([], [], [], "A new one?", "stop", 0)], id="t")
    verdict: Any = Verdict("t", "correct", 1.0)
    (problem,) = instructions([[Attempt(asked[0], made, verdict)]], words=(1, 9))
    assert problem.prompt == [SEEDS[0].prompt[0], {"role": "user", "content": "A new one?"}]
    assert problem.metadata == {"question": "A new one?", "origin": "t"}
    assert problem.gold is None
    with pytest.raises(ConfigError, match="two are needed"):
        two_seeds(SEEDS[:1], count=1, ask="", seed=0)
