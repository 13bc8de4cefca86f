"""The scripted teacher of CoSC: its programs, its bugs and its checks."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random

import pytest

from selfimprove.datasets.arithmetic import Chain, load
from selfimprove.datasets.calculations import Teacher, buggy, program, read, review, teacher
from selfimprove.types import Message

CHAIN = Chain(7, (("+", 5), ("*", 3)))
RIGHT = program(7, CHAIN.steps)


def output(text: str) -> str:
    """What a message's program prints, or the error's name."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(text.rpartition("```python\n")[2].partition("```")[0], {})
    except Exception as error:
        return type(error).__name__
    return printed.getvalue().strip()


def test_a_question_is_read_as_its_chain_and_a_program_computes_it() -> None:
    for problem in load(train_size=50, heldout_size=1, seed=0)[:50]:
        chain = Chain.of(problem.metadata)
        assert read(chain.question) == chain
        assert output(program(chain.start, chain.steps)) == problem.gold


@pytest.mark.parametrize(
    ("said", "printed", "expected"),
    [
        (RIGHT, "36", ("Add 5: + 5\nMultiply by 3: * 3\nVerdict: correct\nThe answer is 36.", True)),
        (program(7, [("+", 5), ("*", 2)]), "24", ("Add 5: + 5\nMultiply by 3: * 2\nVerdict: incorrect", False)),
        (program(7, [("*", 3)]), "21", ("Add 5: * 3\nVerdict: incorrect", False)),
        (program(7, [("+", 5)]), "12", ("Add 5: + 5\nMultiply by 3: nothing\nVerdict: incorrect", False)),
        (
            program(7, [*CHAIN.steps, ("*", 3)]),
            "108",
            ("Add 5: + 5\nMultiply by 3: * 3\nNothing: * 3\nVerdict: incorrect", False),
        ),
        (RIGHT, "SyntaxError: '(' was never closed", ("The output is no number.\nVerdict: incorrect", False)),
        (RIGHT, "", ("The output is no number.\nVerdict: incorrect", False)),
    ],
)
def test_a_check_names_the_first_line_that_does_not_fit(said: str, printed: str, expected: tuple[str, bool]) -> None:
    assert review(CHAIN, f"```python\n{said}\n```\n```output", printed) == expected


def test_a_bug_is_always_found() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = buggy(rng, CHAIN)
        assert text != RIGHT
        assert not review(CHAIN, f"```python\n{text}\n```", output(text))[1]


def talk(asked: Teacher, seed: int, question: str = CHAIN.question) -> list[str]:
    """The teacher's messages until it writes no program."""

    async def episode() -> list[str]:
        chat: list[Message] = [{"role": "user", "content": question}]
        while True:
            said = await asked(chat, temperature=1.0, max_tokens=None, seed=seed)
            chat = [*chat, {"role": "assistant", "content": said}, {"role": "user", "content": output(said)}]
            if not said.endswith("```output"):
                return [m["content"] for m in chat if m["role"] == "assistant"]

    return asyncio.run(episode())


def test_programs_have_bugs_as_often_as_asked_and_are_mended() -> None:
    found = [talk(teacher(bugs=[0.5, 0.0]), seed) for seed in range(400)]
    assert {len(messages) for messages in found} == {2, 3}
    assert 160 < sum(len(messages) == 3 for messages in found) < 240
    assert all(messages[-1].endswith("Verdict: correct\nThe answer is 36.") for messages in found)
    assert talk(teacher(bugs=[0.5, 0.0]), 3) == found[3]


def test_without_checks_the_same_programs_have_a_verdict_alone() -> None:
    with_checks, without = (talk(teacher(bugs=[1.0], checks=checks), 1) for checks in (True, False))
    assert [text.rpartition("```python")[2] for text in with_checks[:-1]] == [
        text.rpartition("```python")[2] for text in without[:-1]
    ]
    assert without[1].startswith("Verdict: incorrect\n```python\n")
    assert without[-1] == "Verdict: correct\nThe answer is 36."


def test_another_data_sets_question_is_refused() -> None:
    with pytest.raises(ValueError, match="questions of dataset=arithmetic alone"):
        read("Each box holds 6 pencils.")
