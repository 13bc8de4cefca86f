"""EVOLVE: which answers of a chain make a pair, behind which prompt and with which weight, and a whole small run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.evolve import activation, best_and_worst, pairs
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.forks import drive

PROBLEM = Problem("p", "Question?", "7")
TEXT: Any = SimpleNamespace(turn=lambda text, ended: [77, int(ended)])


def sample(text: str, place: int, finish: Any = "stop") -> Sample:
    """An answer whose ids are its place, behind a prompt of its own."""
    return Sample([1, 100 + place], [10 * (place + 1)], [0.0], text, finish, 0)


def chain(*answers: tuple[str, float]) -> list[Attempt]:
    samples = [sample(text, i) for i, (text, _) in enumerate(answers)]
    rewards = [reward for _, reward in answers]
    return [Attempt(PROBLEM, Trajectory("p", samples, id="t"), Verdict("t", "wrong", rewards[-1], None, rewards))]


@pytest.mark.parametrize(
    ("rewards", "gap", "by_reward"),
    [
        ([0.0, 1.0, 0.0, 0.0], 0.0, (1, 0)),
        ([1.0, 0.0, 0.0, 1.0], 0.0, (3, 1)),  # of equals the last is chosen, the first rejected
        ([0.0, 0.0, 0.0, 0.0], 0.0, None),
        ([0.2, 0.4, 0.3, 0.1], 0.2, (1, 3)),
        ([0.2, 0.4, 0.3, 0.1], 0.3001, None),
    ],
)
def test_best_and_worst_by_hand(rewards: list[float], gap: float, by_reward: tuple[int, int] | None) -> None:
    samples = [sample(f"answer {i}", i) for i in range(4)]
    assert best_and_worst(samples, rewards, "reward", gap) == by_reward
    assert best_and_worst(samples, rewards, "rule", gap) == (3, 0)


def test_blank_and_cut_answers_are_passed_over_and_equal_texts_make_no_pair() -> None:
    samples = [sample("a", 0, "length"), sample("b", 1), sample("c", 2), sample("  ", 3)]
    assert best_and_worst(samples, [0.0, 0.0, 1.0, 1.0], "rule", 0.0) == (2, 1)
    assert best_and_worst(samples[:2], [0.0, 1.0], "reward", 0.0) is None
    assert best_and_worst([sample("a", 0), sample(" a", 1)], [0.0, 1.0], "rule", 0.0) is None


@pytest.mark.parametrize(("a", "weights"), [(0.5, [1.0, 1.0]), (0.25, [1.5, 0.5]), (0.0, [1.0]), (1.0, [1.0])])
def test_a_chain_gives_a_pair_behind_each_prompt_and_weights_are_one_on_average(a: float, weights: list[float]) -> None:
    found = list(pairs([chain(("w", 0), ("x", 1), ("y", 0))], ask="z", a=a, select="reward", gap=0.0, text=TEXT))
    assert [row.weight for row in found] == weights
    assert all((row.completion_ids, row.rejected_ids) == ([20], [10]) for row in found)
    prompts = {row.metadata["prompt"]: row.prompt_ids for row in found}
    expected = {"direct": [1, 100], "refine": [1, 100, 10, 77, 1]}  # the problem; and it, y_l and the words z
    assert prompts == {kind: ids for kind, ids in expected.items() if kind in prompts}


def test_activation_teaches_a_right_answer_behind_the_problem_and_behind_a_wrong_one() -> None:
    def attempt(place: int, text: str, status: Any) -> Attempt:
        return Attempt(PROBLEM, Trajectory("p", [sample(text, place)], id=f"t{place}"), Verdict("", status, 0.0))

    group = [attempt(0, "no", "wrong"), attempt(1, "yes", "correct"), attempt(2, "yes", "correct")]
    rows = list(activation([group], ask="z", per_problem=2, text=TEXT, seed=0))
    assert [(row.prompt_ids, row.completion_ids) for row in rows] == [([1, 101], [20]), ([1, 100, 10, 77, 1], [20])]
    assert rows[1].trajectory_ids == ["t1", "t0"]
    assert len(list(activation([group[1:]], ask="z", per_problem=2, text=TEXT, seed=0))) == 1
    assert not list(activation([group[:1]], ask="z", per_problem=2, text=TEXT, seed=0))


SIZES = ["method=evolve", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=12", "dataset.heldout_size=6",
         "tracker=none", "verify.workers=1", "method.generate.turns=2"]  # fmt: skip


def test_a_small_run_has_figures_of_both_turns_and_pairs_of_both_prompts(tmp_path: Path) -> None:
    run.start(compose([*SIZES, "method.filter.select=rule"]), tmp_path)
    figures = json.loads((tmp_path / "rounds/000.1_prefer/metrics.json").read_text())
    assert {"evaluate/accuracy@t1", "evaluate/accuracy@t2"} <= figures.keys()
    rows = list(store.read_records(tmp_path / "rounds/000.1_prefer/examples.parquet", Example))
    assert {row.metadata["prompt"] for row in rows} == {"direct", "refine"}


@pytest.mark.parametrize(
    "control",
    [
        ["method.filter.a=0"],
        ["method.filter.select=rule"],
        ["method.train._target_=selfimprove.train.sft.sft", "~method.train.beta", "~method.train.sft_weight"],
    ],
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=evolve", *control]).method.name == "evolve"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.filter.a=1.5", "method.filter.a=1.5"),
        ("method.filter.select=best", "method.filter.select=best"),
        ("dataset=alpacaeval", "method=evolve needs gold"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=evolve", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(["hardware.max_batch=1", *SIZES[1:]])
    drive(tmp_path, f"method=evolve {small}", ["manifest:0/train"])
