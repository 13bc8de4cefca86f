"""Agent0: its reward, its band and ADPO by hand, what it asks of the two agents, and a whole small run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.agent0 import adpo, agrees, band, measured, proposal, reward, wanted
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Context, Outcome
from tests.forks import drive

REQUEST = Problem("ask-0", "Write a question.")


def reply(text: str, number: int = 0, finish: Any = "stop") -> Trajectory:
    return Trajectory("ask-0", [Sample([1], [2, 3], [-0.5, -0.25], text, finish, 0)], id=f"t{number}")


def test_a_reply_is_a_question_or_has_one_between_tags_with_its_answer_behind_it() -> None:
    assert proposal(reply(" How much is 3 + 4? ")) == ("How much is 3 + 4?", None)
    tagged = reply("Well. <question>How much is 3 + 4?</question> The answer is 7.")
    assert proposal(tagged) == ("How much is 3 + 4?", "7")
    assert proposal(reply("How much is", finish="length")) == ("", None)


@pytest.mark.parametrize(
    ("s", "calls", "k", "valid", "form", "expected"),
    [
        (0.3, 1.0, 0.25, True, "released", 0.3 - 0.25 + 0.05),  # min(s, 1 - s) - k + .05 N
        (0.9, 6.0, 0.0, True, "released", 0.1 + 0.2),  # at most four programs are paid for
        (0.0, 0.0, 0.5, False, "released", -1 - 0.5),
        (0.5, 1.0, 1.0, True, "paper", 0.0),  # .5 + .05 - 1 is below 0
        (0.5, 1.0, 0.1, True, "paper", 0.45),
        (0.5, 1.0, 0.1, False, "paper", 0.0),
    ],
)
def test_the_reward_of_a_question_by_hand(
    s: float, calls: float, k: float, valid: bool, form: Any, expected: float
) -> None:
    assert reward(s, calls, k, valid, 0.5, 1.0, 0.05, form) == pytest.approx(expected)


def judged(verifier: Any, replies: list[Trajectory], p: float, n: int = 1, **options: Any) -> list[Outcome]:
    engine = ScriptedEngine({"How much is 3 + 4?": "7", "Who wrote it?": "Eve"}, p)
    policy = Policy(engine, 0, max_tokens=64).for_problem(REQUEST)

    async def check(text: str, problem: Problem) -> Outcome:
        raise AssertionError("no gold answer is looked at")

    how: dict[str, Any] = {"roles": {"policy": policy}, "tools": {}, "n": n, "turns": 0, "prompt": "{question}"}
    context = Context(policy, check, None)
    return asyncio.run(verifier(REQUEST, replies, context, **how, **options))  # type: ignore[no-any-return]


def test_s_is_the_share_of_the_majority_and_nothing_where_another_answer_is_stated() -> None:
    tagged = "<question>How much is 3 + 4?</question> The answer is {}."
    replies = [reply("How much is 3 + 4?"), reply(tagged.format(7), 1), reply(tagged.format(8), 2),
               reply("How much is", 3, "length")]  # fmt: skip
    found = judged(measured, replies, 1.0)
    assert [(o.reward, o.extracted, o.status) for o in found] == [
        (1.0, "7", "correct"),
        (1.0, "7", "correct"),
        (0.0, "7", "correct"),
        (0.0, None, "unparseable"),
    ]
    (of_many,) = judged(measured, replies[:1], 0.7, n=400)
    assert of_many.reward == pytest.approx(0.7, abs=0.1)  # 4 standard deviations


def test_a_batch_pays_for_the_share_of_it_that_is_alike() -> None:
    replies = [reply("How much is 3 + 4?"), reply("How much is 3 + 4?", 1), reply("Who wrote it?", 2),
               reply("How much", 3, "length")]  # fmt: skip
    found = judged(wanted, replies, 1.0, uncertain=0.5, repeated=1.0, tool=0.05)
    assert [o.reward for o in found] == pytest.approx([-0.5, -0.5, -0.25, -1.0])
    free = judged(wanted, replies, 1.0, uncertain=0.5, repeated=0.0, tool=0.05)
    assert [o.reward for o in free] == pytest.approx([0, 0, 0, -1.0])


def test_questions_in_the_band_become_problems_with_the_majority_s_label_and_no_gold() -> None:
    def proposed(number: int, s: float, label: str | None = "7") -> Attempt:
        return Attempt(REQUEST, reply(f"Question {number}?", number), Verdict(f"t{number}", "correct", s, label))

    group = [proposed(0, 0.2), proposed(1, 0.3), proposed(2, 0.8), proposed(3, 0.9), proposed(4, 0.5, None)]
    found = list(band([group], low=0.3, high=0.8, prompt="{question} Think."))
    assert [p.metadata["question"] for p in found] == ["Question 1?", "Question 2?"]
    assert [p.gold for p in found] == [None, None]
    assert found[0].prompt == [{"role": "user", "content": "Question 1? Think."}]
    assert found[0].metadata == {"question": "Question 1?", "label": "7", "share": 0.3, "origin": "t1"}


def test_an_answer_is_held_against_the_label() -> None:
    found = [agrees(text, None, {"label": "7"}) for text in (f"{ANSWER}7.", f"{ANSWER}8.", "Well.")]
    assert [(o.status, o.reward) for o in found] == [("correct", 1.0), ("wrong", 0.0), ("unparseable", 0.0)]


@pytest.mark.parametrize(
    ("s", "scale", "bound"), [(0.3, 0.6, 0.3), (0.55, 0.8, 0.25), (0.8, 1.0, 0.2), (0.1, 0.6, 0.3)]
)
def test_adpo_scales_the_advantage_and_bounds_the_ratio_by_hand(s: float, scale: float, bound: float) -> None:
    """Rewards 1 and 0: advantages 1/2 and -1/2 over a standard deviation of 1/sqrt(2)."""
    problem = Problem("p", "Question?", metadata={"share": s})
    ids = [[1, 2], [1, 2, 3, 4, 9, 9]]  # two ids of an output stand between the samples
    samples = [Sample(ids[0], [3, 4], [-1.0, -2.0], "a", "stop", 0), Sample(ids[1], [5], [-3.0], "b", "stop", 0)]
    group = [Attempt(problem, Trajectory("p", samples, id=f"t{r}"), Verdict("", "correct", r)) for r in (1.0, 0.0)]
    first, second = adpo([group, group[:1]], low=0.3, high=0.8, least=0.6, clip=0.2, room=0.1)
    assert first.completion_ids == [3, 4, 9, 9, 5]
    assert first.mask == [1, 1, 0, 0, 1]
    assert first.logprobs == [-1, -2, 0, 0, -3]
    assert first.advantages == pytest.approx([scale * 2**-0.5 * learnt for learnt in (1, 1, 0, 0, 1)], rel=1e-3)
    assert second.advantages == pytest.approx([-value for value in first.advantages])
    assert first.metadata["clip_high"] == pytest.approx(bound)
    plain = next(adpo([group], low=0.3, high=0.8, least=1.0, clip=0.2, room=0.0))
    assert plain.advantages == pytest.approx([2**-0.5 * learnt for learnt in (1, 1, 0, 0, 1)], rel=1e-3)
    assert plain.metadata["clip_high"] == 0.2


SIZES = ["method=agent0", "rounds=1", "dataset.train_size=40", "dataset.heldout_size=2", "tracker=none",
         "verify.workers=1", "+method.tools.python.workers=1", "method.stages.words.problems.count=40",
         "method.stages.words.train.epochs=5", "method.stages.words.train.batch_size=8",
         "method.stages.curriculum.parts=1", "method.stages.curriculum.generate.n=3",
         "+method.stages.curriculum.generate.max_tokens=64",
         "method.stages.ask.problems.count=1", "method.stages.ask.generate.n=6",
         "+method.stages.ask.generate.max_tokens=64", "method.stages.ask.verifier.n=2",
         "method.stages.ask.verifier.turns=1", "method.stages.ask.make.low=0", "method.stages.ask.make.high=1",
         "method.stages.executor.parts=1", "method.stages.executor.problems.count=2",
         "method.stages.executor.generate.n=2"]  # fmt: skip


def test_a_small_run_trains_both_agents(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    stages = {name: next(tmp_path.glob(f"rounds/000.*_{name}")) for name in ("curriculum", "ask", "executor")}
    verdicts = list(store.read_records(stages["curriculum"] / "verdicts.parquet", Verdict))
    rows = list(store.read_records(stages["curriculum"] / "examples.parquet", Example))
    assert len(verdicts) == len(rows) == 3
    made = list(store.read_records(stages["ask"] / "made.parquet", Problem))
    assert made
    assert all(p.gold is None and p.metadata["label"] for p in made)
    learnt = list(store.read_records(stages["executor"] / "examples.parquet", Example))
    assert len(learnt) in (2, 4)
    assert all(0.2 <= row.metadata["clip_high"] <= 0.3 + 1e-9 for row in learnt)
    assert (stages["curriculum"] / "policy").exists()
    assert (stages["executor"] / "policy").exists()


@pytest.mark.parametrize(
    "control",
    [
        ["method.stages.curriculum.verifier.repeated=0"],
        ["method.stages.ask.verifier.turns=0"],
        ["method.stages.executor.filter.least=1", "method.stages.executor.filter.room=0"],
        ["~method.stages.curriculum"],
        ["method.stages.curriculum.verifier.form=paper"],
    ],
    ids=str,
)
def test_controls_are_overrides(control: list[str]) -> None:
    config = compose(["method=agent0", *control])
    assert config.solver["rounds"] == (config.stages["ask"].verifier or {})["turns"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("~method.tools.python", "method.tools.python: needs a tool of this name"),
        ("method.stages.ask.make.low=2", "method.stages.ask.make.low=2"),
        ("method.stages.curriculum.verifier.form=other", "method.stages.curriculum.verifier.form=other"),
        ("method.stages.executor.generate.temperature=0.7", "is a policy gradient"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=agent0", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_phases_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(tmp_path, f"{small} hardware.max_batch=1", ["manifest:1/train", "manifest:2/make", "manifest:3/generate"])
