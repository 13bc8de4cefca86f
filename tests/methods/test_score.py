"""SCoRe: rewards of both stages by hand, rows of the control, what each stage trains, and a whole small run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selfimprove import run, store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.score import corrections, shaped
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.forks import drive

ONE, TWO = {"weights": [0, 1], "alpha": 0}, {"weights": [1, 1], "alpha": 10}


def dialogue(number: int, *turns: tuple[str, float]) -> Attempt:
    samples = [
        Sample([0] * (i + 1), [10 * (i + 1), number], [-1.0, -1.0], text, "stop", 0)
        for i, (text, _) in enumerate(turns)
    ]
    rewards = [reward for _, reward in turns]
    verdict = Verdict(f"t{number}", "correct" if rewards[-1] == 1 else "wrong", rewards[-1], step_rewards=rewards)
    return Attempt(Problem("p", "?"), Trajectory("p", samples, id=f"t{number}"), verdict)


@pytest.mark.parametrize(
    ("first", "second", "one", "two"),
    [
        (0.0, 0.0, [0, 0], [0, 0]),
        (0.0, 1.0, [0, 1], [0, 11]),
        (1.0, 0.0, [0, 0], [1, -10]),
        (1.0, 1.0, [0, 1], [1, 1]),
    ],
)
def test_rewards_of_both_stages(first: float, second: float, one: list[float], two: list[float]) -> None:
    attempt = dialogue(0, ("a", first), ("b", second))
    assert shaped(attempt, **ONE) == one
    assert shaped(attempt, **TWO) == two


def test_a_dialogue_of_one_turn_has_that_turn_s_reward() -> None:
    assert shaped(dialogue(0, ("a", 1.0)), **TWO) == [1]


GROUP = [dialogue(i, ("a", first), ("b", second)) for i, (first, second) in enumerate([(0, 1), (1, 0), (1, 1), (0, 0)])]


@pytest.mark.parametrize(
    ("stage", "first", "second"),
    [
        ("one", [0, 0, 0, 0], [2 / 3, -2 / 3, 2 / 3, -2 / 3]),
        ("two", [-2 / 3, 2 / 3, 2 / 3, -2 / 3], [11 + 3, -10 - 4, 1 - 1 / 3, 0 - 2 / 3]),
    ],
)
def test_advantages_of_a_stage_as_configured(stage: str, first: list[float], second: list[float]) -> None:
    """Each turn beside the same turn of the other three dialogues: r - (sum of theirs) / 3."""
    node = compose(["method=score"]).stages[stage].filter
    assert node is not None
    rows = list(bind(node, "filter")([GROUP]))
    for turn, expected in enumerate((first, second)):
        found = [r.advantages for r in rows if r.metadata["turn"] == turn]
        assert found == [pytest.approx([value] * 2) for value in expected]


def test_a_stage_says_what_is_held_and_what_the_bonus_is() -> None:
    stages = compose(["method=score"]).stages
    found = {
        name: (s.train["beta"], s.filter["shape"]["weights"], s.filter["shape"]["alpha"])
        for name, s in stages.items()
        if s.train and s.filter
    }
    assert found == {"one": ([0.1, 0.01], [0, 1], 0), "two": ([0.01, 0.01], [1, 1], 10)}
    assert all(s.train["batch_size"] == 2 * s.generate["n"] * s.problems["count"] for s in stages.values())  # type: ignore[index]


def test_the_control_imitates_second_turns_that_corrected_something() -> None:
    (row,) = corrections([[*GROUP, dialogue(0, ("a", 0.0), ("b", 1.0))]])
    assert (row.prompt_ids, row.completion_ids, row.trajectory_ids) == ([0, 0], [20, 0], ["t0"])


SIZES = ["method=score", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=8", "dataset.heldout_size=6",
         "tracker=none", "verify.workers=1", "method.stages.one.parts=1", "method.stages.two.parts=1",
         "method.problems.count=3", "method.generate.n=2", "method.train.batch_size=12",
         "model.max_tokens=40"]  # fmt: skip


def test_a_small_run_holds_turn_1_in_stage_one_and_learns_both_in_stage_two(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    figures = json.loads((tmp_path / "rounds/000.1_two/metrics.json").read_text())
    names = ("accuracy@t1", "accuracy@t2", "i_to_c@t2", "c_to_i@t2", "same@t2", "edit@t2")
    assert {f"evaluate/{name}" for name in names} <= figures.keys()
    gained = figures["evaluate/accuracy@t2"] - figures["evaluate/accuracy@t1"]
    assert gained == pytest.approx(figures["evaluate/i_to_c@t2"] - figures["evaluate/c_to_i@t2"])
    one, two = (
        list(store.read_records(tmp_path / f"rounds/{label}/examples.parquet", Example))
        for label in ("000.0_one", "000.1_two")
    )
    assert len(one) == len(two) == 12
    assert not any(value for row in one if row.metadata["turn"] == 0 for value in row.advantages or [])
    manifests = [store.read_json(tmp_path / f"rounds/{x}/train.manifest.json") for x in ("000.0_one", "000.1_two")]
    assert [manifest["metrics"]["steps"] for manifest in manifests] == [1, 1]
    assert store.read_json(tmp_path / "rounds/000.1_two/state/steps.json") == {"steps": 2}


CONTROLS = {
    "plain": ["~method.stages.one", "method.stages.two.filter.shape.alpha=0", "method.stages.two.parts=16"],
    "order": ["rounds=1", "method.stages.one.parts=24", "method.stages.two.parts=24"],
    "no bonus": ["method.stages.two.filter.shape.alpha=0"],
    "turn 1 not held": ["method.stages.one.train.beta=[0.01,0.01]"],
    "imitation": [
        "~method.stages.one",
        "~method.stages.two",
        "filter=corrections",
        "train=sft",
        "method.problems.count=256",
    ],
}


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_are_overrides(control: str) -> None:
    assert compose(["method=score", *CONTROLS[control]]).method.name == "score"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.generate.turns=3", "there are 3 turns"),
        ("method.filter.shape.weights=[1]", "weights"),
        ("method.generate.temperature=0.7", "set it to 1"),
        ("method.stages.one.train.beta=-1", "beta=-1"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=score", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_gold_answers_is_refused() -> None:
    with pytest.raises(ConfigError, match="method=score needs gold"):
        compose(["method=score", "dataset=alpacaeval"])


@pytest.mark.slow
def test_a_run_killed_between_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(tmp_path, f"{small} hardware.max_batch=1", ["manifest:0/train", "manifest:1/generate"])
