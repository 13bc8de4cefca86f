"""MCTS-DPO as a user runs it: its presets and ablations compose, and a small run goes all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfimprove import store
from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.mcts_dpo import Judge
from selfimprove.types import Example, Problem, Trajectory
from tests.conftest import TRAIN, run_here

BUDGET = [
    "method.generate.search.iterations=2",
    "method.generate.search.first_iterations=6",
    "method.generate.search.candidates=2",
    "method.generate.search.first_candidates=3",
]


@pytest.mark.parametrize("method", ["mcts_dpo", "mcts_dpo_released"])
def test_a_model_is_asked_in_its_own_form(method: str) -> None:
    tiny = compose([f"method={method}"])
    other = compose([f"method={method}", "model=smollm2_135m", "dataset=asdiv"])
    assert Judge(**tiny.method.generate["judge"]).correct == "Every line is right.\nVerdict: correct"
    assert Judge(**other.method.generate["judge"]).incorrect == "A"
    assert tiny.method.train["learning_rate"] == tiny.model.learning_rate.step_dpo
    assert other.method.train["learning_rate"] == other.model.learning_rate.dpo


@pytest.mark.parametrize(
    "override",
    [
        "method.generate.judge=null",
        "method.generate.worth.confidence=0",
        "method.generate.worth.outcome=0",
        "method.filter.rejected=random",
        "filter=instance_pairs",
        "method.sampler=base",
        "experiment=tiny_mcts_dpo",
    ],
)
def test_ablations_are_overrides(override: str) -> None:
    compose(["method=mcts_dpo", override])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("+method.generate.search.iteratons=3", "method.generate.search.iteratons: unknown key"),
        ("+method.generate.worth.x=1", "method.generate.worth.x: unknown key"),
        ("+method.generate.steps.x=1", "method.generate.steps.x: unknown key"),
        ("+method.generate.judge.x=1", "method.generate.judge.x: unknown key"),
        ("~method.generate.search.depth", "method.generate.search.depth: needs a value, e.g. method."),
        (
            "method.generate.search.depth=0",
            "method.generate.search.depth=0: input should be greater than",
        ),
        ("method.generate.worth.early=[0.5,2]", "method.generate.worth.early.1=2: input should be less than or equal"),
        ("method.generate.judge.prompt=3", "method.generate.judge.prompt=3: input should be a valid list"),
        ("method.generate.steps=3", "method.generate.steps=3: input should be a dictionary"),
    ],
)
def test_a_mistake_inside_a_noun_is_one_line_with_its_key(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(["method=mcts_dpo", override])
    assert str(refused.value).startswith(line)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["solve", "choice"])
def test_a_small_run_keeps_trees_and_trains_on_them(tmp_path: Path, capsys: Any, form: str) -> None:
    run = tmp_path / "run"
    summary = run_here(run, "method=mcts_dpo", "rounds=1", *BUDGET, f"dataset.form={form}")
    assert summary["status"] == "complete"
    assert summary["rounds"][0]["examples"] > 0
    problems = {p.id: p for p in store.read_records(run / "problems.parquet", Problem)}
    trees = {
        t.problem_id: t for f in run.glob("rounds/*/trajectories.parquet") for t in store.read_records(f, Trajectory)
    }
    assert len(trees) == TRAIN
    for problem, trajectory in trees.items():
        assert problems[problem].split == "train"
        assert "".join(node.text for node in trajectory.tree if node.chosen) == trajectory.text
    examples = [e for f in run.glob("rounds/*/examples.parquet") for e in store.read_records(f, Example)]
    for example in examples:
        prompt = trees[example.problem_id].samples[0].prompt_ids
        assert example.prompt_ids[: len(prompt)] == prompt
        assert 0 <= example.metadata["label_smoothing"] <= 1
    capsys.readouterr()
    assert _main(["show", str(run), "--problem", next(iter(trees))]) == 0
    assert "start  N " in capsys.readouterr().out
    assert _main(["show", str(run), "--problem", "nothing"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
