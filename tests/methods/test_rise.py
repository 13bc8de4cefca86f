"""RISE: which turns become rows, with which weight, and a whole small run."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.rise import Keep, first_turns, generate, kept, weighted
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Outcome
from tests.forks import drive

PROBLEM = Problem("p", "Question?", "7")


def dialogue(*answers: tuple[str, float], finish: Any = "stop") -> list[Attempt]:
    """One attempt: a sample a turn, whose prompt is the number of the turn."""
    samples = [Sample([i], [10 * (i + 1)], [0.0], text, finish, 0) for i, (text, _) in enumerate(answers)]
    rewards = [reward for _, reward in answers]
    verdict = Verdict("t", "correct" if rewards[-1] == 1 else "wrong", rewards[-1], step_rewards=rewards)
    return [Attempt(PROBLEM, Trajectory("p", samples, id="t"), verdict)]


@pytest.mark.parametrize(
    ("rewards", "all_", "better", "best", "success"),
    [
        ([0.0, 1.0], "11", "11", "11", "01"),
        ([0.0, 0.0], "11", "10", "11", "00"),
        ([0.0, -1.0, 0.0, 1.0], "1111", "1011", "1011", "0001"),
        ([-1.0, 0.0, -1.0], "111", "110", "110", "000"),
        ([1.0], "1", "1", "1", "1"),
    ],
)
def test_the_four_criteria_by_hand(rewards: list[float], all_: str, better: str, best: str, success: str) -> None:
    said: dict[Keep, str] = {"all": all_, "better": better, "best": best, "success": success}
    for keep, expected in said.items():
        assert "".join(str(int(kept(rewards[: i + 1], keep))) for i in range(len(rewards))) == expected, keep


def test_a_row_is_a_turn_with_the_weight_of_its_reward() -> None:
    rows = list(weighted([dialogue(("a", -1.0), ("b", 0.0), ("c", 1.0))], tau=0.5))
    assert [(r.prompt_ids, r.completion_ids) for r in rows] == [([0], [10]), ([1], [20]), ([2], [30])]
    assert [r.weight for r in rows] == pytest.approx([math.exp(-2), 1.0, math.exp(2)])
    assert [r.metadata["turn"] for r in rows] == [1, 2, 3]


def test_repeated_blank_and_cut_answers_make_no_row() -> None:
    rows = list(weighted([dialogue(("a", 0.0), (" a\n", 0.0), ("  ", -1.0), ("b", 1.0))], tau=1.0))
    assert [r.completion_ids for r in rows] == [[10], [40]]
    assert not list(weighted([dialogue(("a", 1.0), finish="length")], tau=1.0))


def test_the_control_of_one_turn_teaches_right_answers_behind_the_problem_alone() -> None:
    (row,) = first_turns([dialogue(("a", 0.0), ("b", 1.0)), dialogue(("a", 0.0), ("b", 0.0))], tau=1.0)
    assert (row.prompt_ids, row.completion_ids) == ([0], [20])


@pytest.mark.parametrize(("p_improve", "turns"), [(1.0, 2), (0.0, 3)])
def test_a_turn_is_the_best_of_its_candidates_and_the_first_right_one_ends_it(p_improve: float, turns: int) -> None:
    engine = ScriptedEngine({"Question?": "7"}, 0.0, p_improve=p_improve)
    policy = Policy(engine, 0, max_tokens=64)

    async def judge(problem: Problem, group: list[Trajectory]) -> list[Outcome]:
        right = [t.text == f"{ANSWER}7" for t in group]
        return [Outcome("correct" if r else "wrong", float(r)) for r in right]

    (found,) = asyncio.run(generate(PROBLEM, policy, candidates=[1, 4, 2], ask="Again.", judge=judge, shown=1))
    assert len(found.samples) == turns
    assert policy.meter.calls == (5 if turns == 2 else 7)


def test_with_n_candidates_a_turn_is_right_with_one_minus_its_chance_to_fail() -> None:
    """P(turn 2 right | turn 1 wrong) = 1 - (1 - i)^N."""
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(400)]
    engine = ScriptedEngine({str(p.prompt): "7" for p in problems}, 0.0, p_improve=0.2)

    async def judge(problem: Problem, group: list[Trajectory]) -> list[Outcome]:
        return [Outcome("correct" if t.text == f"{ANSWER}7" else "wrong", float(t.text == f"{ANSWER}7")) for t in group]

    async def everything() -> list[list[Trajectory]]:
        policy = Policy(engine, 0, max_tokens=64)
        return await asyncio.gather(
            *(generate(p, policy.for_problem(p), candidates=[1, 4], ask="Again.", judge=judge) for p in problems)
        )

    right = sum(found[0].text == f"{ANSWER}7" for found in asyncio.run(everything())) / 400
    expected = 1 - 0.8**4
    assert abs(right - expected) < 4 * math.sqrt(expected * (1 - expected) / 400)


SIZES = ["method=rise", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=8", "dataset.heldout_size=6",
         "tracker=none", "verify.workers=1", "method.evaluate.turns=3", "method.generate.candidates=[1,3]"]  # fmt: skip


def test_a_small_run_has_figures_of_each_turn(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    figures = json.loads((tmp_path / "rounds/000/metrics.json").read_text())
    assert {f"evaluate/accuracy@t{turn}" for turn in (1, 2, 3)} <= figures.keys()
    rows = list(store.read_records(tmp_path / "rounds/000/examples.parquet", Example))
    assert {round(r.weight, 6) for r in rows} <= {round(math.exp(r / 0.4), 6) for r in (-1, 0, 1)}
    assert len({r.metadata["turn"] for r in rows}) == 2


def test_a_data_set_without_gold_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="method=rise needs gold"):
        compose(["method=rise", "dataset=alpacaeval"])


@pytest.mark.parametrize(
    "control",
    [
        ["method.filter.keep=success"],
        ["method.filter._target_=selfimprove.methods.rise.first_turns", "~method.filter.keep"],
        ["method.generate.candidates=[1,1]"],
        ["method.filter.tau=1e6"],
        ["+method.evaluate.until_right=true", "method.answer._target_=selfimprove.verify.answers.last"],
        ["method.generate.candidates=[1,16]", "method.generate.ask='The answer is incorrect. Please try again.'"],
    ],
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=rise", *control]).method.name == "rise"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.generate.candidates=[]", "method.generate.candidates=[]"),
        ("method.filter.tau=0", "method.filter.tau=0"),
        ("method.filter.keep=good", "method.filter.keep=good"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=rise", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_turns_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """One request at a time, for when a check is done decides what is decoded together, and so how sums are rounded."""
    small = "hardware.max_batch=1 dataset.levels=[2] model.max_tokens=32 dataset.heldout_size=3"
    drive(
        tmp_path,
        f"method=rise rounds=1 {small} method.evaluate.turns=2 method.generate.candidates=[1,2]",
        ["manifest:0/generate"],
    )
