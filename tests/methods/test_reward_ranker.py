"""RewardRanker: which pairs are mined, which program is the answer, and a whole small run on sandboxed programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.made import Made
from selfimprove.methods.reward_ranker import enlarged, top
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify.expression import check
from tests.forks import drive


def attempt(problem: str, number: int, status: Any, reward: float) -> Attempt:
    sample = Sample([1, 2], [10 + number], [0.0], str(number), "stop", number)
    trajectory = Trajectory(problem, [sample], {"score": reward}, id=f"{problem}/{number}")
    return Attempt(Problem(problem, "?"), trajectory, Verdict(trajectory.id, status, reward))


def group(problem: str, right: list[float], wrong: list[float]) -> list[Attempt]:
    rewards = [("correct", r) for r in right] + [("wrong", r) for r in wrong]
    return [attempt(problem, i, status, reward) for i, (status, reward) in enumerate(rewards)]


def made_of(tmp_path: Path, stage: str, rows: list[Example]) -> Made:
    store.write_records(tmp_path / "examples.parquet", rows, Example)
    made = Made()
    made.add(stage, tmp_path, {"examples.parquet": "hash"})
    return made


GROUPS = [  # the median of programs that pass is 2
    group("a", [1.0, 2.0], [3.0, 0.0, 2.5]),
    group("b", [5.0], [1.9, 2.0]),
    group("c", [], [9.0]),  # without a program that passes there is no pair
]


def test_hard_negatives_fail_above_the_median_of_what_passes() -> None:
    rows = list(enlarged(GROUPS, per_problem=4, made=Made(), seed=0))
    assert {r.problem_id for r in rows} == {"a"}
    assert {r.rejected_ids[0] for r in rows if r.rejected_ids} == {12, 14}
    assert all(r.completion_ids[0] in (10, 11) and r.metadata["hard"] for r in rows)
    assert len(list(enlarged(GROUPS, per_problem=1, made=Made(), seed=0))) == 1


def test_the_control_has_as_many_pairs_with_any_program_that_fails() -> None:
    seen = set[int]()
    for seed in range(30):
        rows = list(enlarged(GROUPS, per_problem=4, negatives="any", made=Made(), seed=seed))
        assert [r.problem_id for r in rows] == ["a", "a"]
        seen |= {r.rejected_ids[0] for r in rows if r.rejected_ids}
    assert seen == {12, 13, 14}


def test_new_pairs_join_the_earlier_ones(tmp_path: Path) -> None:
    first = Example("z", ["z/0", "z/1"], [1], [2], rejected_ids=[3])
    made = made_of(tmp_path, "rank", [first])
    rows = list(enlarged(GROUPS, per_problem=4, made=made, seed=0))
    assert rows[0] == first
    assert len(rows) == 3
    (tmp_path / "again").mkdir()
    store.write_records(tmp_path / "again" / "examples.parquet", rows, Example)
    made.add("mine", tmp_path / "again", {"examples.parquet": "hash"})
    assert len(list(enlarged([], per_problem=4, made=made, seed=0))) == 3, "each once, though the first is in both"


def test_the_answer_is_the_program_of_highest_score() -> None:
    assert top(group("a", [1.0, 3.0], [3.0])) == 1
    plain = group("a", [0.0], [0.0])
    for one in plain:
        one.trajectory.metadata.clear()
    assert top(plain) == 0


@pytest.mark.parametrize(
    ("text", "status"),
    [("(2 + 3) * 4", "correct"), (" 20\n", "correct"), ("2 + 3 * 4", "wrong"), ("1 / 0", "wrong"),
     ("2 +", "unparseable"), ("", "unparseable"), ("20)\n    import os\n    (20", "unparseable")],
)  # fmt: skip
def test_an_expression_is_run_in_the_sandbox(text: str, status: str) -> None:
    assert check(text, "20", {}).status == status


SIZES = ["method=reward_ranker", "dataset=programs", "rounds=1", "dataset.train_size=8", "dataset.heldout_size=4",
         "tracker=none", "verify.workers=1", "method.evaluate.n=3", "method.stages.rank.generate.n=4",
         "method.stages.rl.generate.n=4", "method.stages.mine.generate.n=4"]  # fmt: skip


def test_a_small_run_ranks_held_out_programs_by_the_newest_reward_model(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    base = list(store.read_records(tmp_path / "base/evaluation/trajectories.parquet", Trajectory))
    assert all("score" not in t.metadata for t in base), "no reward model was trained yet"
    folder = tmp_path / "rounds/000.2_mine"
    last = list(store.read_records(folder / "evaluation/trajectories.parquet", Trajectory))
    assert len(last) == 12
    assert all("score" in t.metadata for t in last)
    tuned = list(store.read_records(tmp_path / "rounds/000.1_rl/trajectories.parquet", Trajectory))
    mined = list(store.read_records(folder / "trajectories.parquet", Trajectory))
    assert ({s.version for t in tuned for s in t.samples}, {s.version for t in mined for s in t.samples}) == ({0}, {2})
    first = list(store.read_records(tmp_path / "rounds/000.0_rank/examples.parquet", Example))
    rows = list(store.read_records(folder / "examples.parquet", Example))
    assert [r.trajectory_ids for r in rows[: len(first)]] == [r.trajectory_ids for r in first]
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["mine.verify/calls@reward"] == 32


@pytest.mark.parametrize(
    "control",
    [
        "method.stages.mine.filter.negatives=any",
        "method.answer._target_=selfimprove.verify.answers.last",
        "control=shuffled_verdicts",
    ],
)
def test_controls_are_overrides(control: str) -> None:
    assert compose(["method=reward_ranker", control]).method.name == "reward_ranker"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.stages.rl.verifier.role=judge", "method.stages.rl.verifier.role=judge: no such reward model"),
        ("method.stages.mine.filter.negatives=some", "method.stages.mine.filter.negatives=some"),
        ("method.stages.rl.generate.temperature=0.7", "temperature=0.7"),
        ("method.stages.rank.role=policy", "makes a reward model"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=reward_ranker", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_in_its_own_phases_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = "hardware.max_batch=1 dataset=programs dataset.train_size=4 model.max_tokens=32 dataset.heldout_size=2"
    few = "method.evaluate.n=2 method.stages.rank.generate.n=4 method.stages.rl.generate.n=2"
    few += " method.stages.mine.generate.n=3"
    drive(tmp_path, f"method=reward_ranker rounds=1 {small} {few}", ["manifest:0/train", "manifest:2/verify"])
