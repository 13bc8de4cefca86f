"""MCTS-DPO as a user runs it: what its presets and ablations do, and a small run goes all the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfimprove import store
from selfimprove.binding import bind
from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.datasets import arithmetic
from selfimprove.errors import ConfigError
from selfimprove.methods.mcts_dpo import Judge
from selfimprove.studies.solving import attempts, solve
from selfimprove.studies.tiny import shipped
from selfimprove.types import Attempt, Example, Problem, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.arithmetic import check
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


# Ablations: what each override does to the trees of four problems, and to the pairs made of them


@pytest.fixture(scope="module")
def engine() -> Any:
    return shipped()


def grown(engine: Any, *overrides: str) -> list[list[Attempt]]:
    """The attempts of four problems by the solver as configured, each with its tree."""
    problems = arithmetic.load(levels=[3, 4], train_size=4, heldout_size=0, seed=0)

    def right(text: str, problem: Problem) -> Outcome:
        return check(text, problem.gold, problem.metadata)

    solver = bind(compose(["method=mcts_dpo", *BUDGET, *overrides]).method.generate, "generate")
    return attempts(problems, solve(solver, engine, problems, check=right), right)


def paired(groups: list[list[Attempt]], *overrides: str) -> list[Example]:
    return list(bind(compose(["method=mcts_dpo", *overrides]).stages[""].filter, "filter")(groups, seed=0))


def worths(groups: list[list[Attempt]], terminal: bool) -> set[float]:
    """What the states of all trees are worth that are solutions, or that are not."""
    nodes = [node for group in groups for node in group[0].trajectory.tree if node.depth]
    return {node.value for node in nodes if node.terminal == terminal}


@pytest.fixture(scope="module")
def trees(engine: Any) -> list[list[Attempt]]:
    return grown(engine, "method.generate.search.first_candidates=4", "method.generate.search.candidates=4")


def test_a_state_is_worth_the_confidence_in_it_and_a_solution_its_outcome_too(trees: list[list[Attempt]]) -> None:
    unfinished, solutions = worths(trees, terminal=False), worths(trees, terminal=True)
    assert len(unfinished) > 2
    assert all(0 < worth < 1 for worth in unfinished)
    assert any(worth > 1 for worth in solutions)
    assert any(worth < 0 for worth in solutions)


def test_without_self_evaluation_confidence_is_the_same_everywhere(engine: Any) -> None:
    groups = grown(engine, "method.generate.judge=null")
    assert worths(groups, terminal=False) == {1.0}
    assert worths(groups, terminal=True) <= {0.0, 2.0}


def test_at_confidence_0_the_outcome_alone_counts(engine: Any) -> None:
    groups = grown(engine, "method.generate.worth.confidence=0")
    assert worths(groups, terminal=False) == {0.0}
    assert worths(groups, terminal=True) <= {-1.0, 1.0}


def test_at_outcome_0_self_evaluation_alone_counts(engine: Any) -> None:
    groups = grown(engine, "method.generate.worth.outcome=0")
    assert all(0 < worth < 1 for worth in worths(groups, terminal=False) | worths(groups, terminal=True))


def test_a_random_sibling_takes_the_place_of_the_worst(trees: list[list[Attempt]]) -> None:
    worst, random = paired(trees), paired(trees, "method.filter.rejected=random")
    assert [pair.completion_ids for pair in worst] == [pair.completion_ids for pair in random]
    assert [pair.rejected_ids for pair in worst] != [pair.rejected_ids for pair in random]
    assert sum(pair.metadata["q"][1] for pair in worst) < sum(pair.metadata["q"][1] for pair in random)


def test_pairs_of_instances_are_of_whole_solutions(trees: list[list[Attempt]]) -> None:
    prompts = {group[0].problem.id: group[0].trajectory.samples[0].prompt_ids for group in trees}
    pairs = paired(trees, "filter=instance_pairs")
    assert pairs
    assert all(pair.prompt_ids == prompts[pair.problem_id] for pair in pairs)
    assert any(pair.prompt_ids != prompts[pair.problem_id] for pair in paired(trees))


def test_the_experiment_has_the_released_rules_in_a_small_budget() -> None:
    released = compose(["method=mcts_dpo_released", "model=tiny"]).method.model_dump()
    small = compose(["experiment=tiny_mcts_dpo"]).method.model_dump()
    assert small["generate"]["worth"] == released["generate"]["worth"]
    assert small["filter"] == released["filter"]
    assert small["generate"]["search"]["first_iterations"] < released["generate"]["search"]["first_iterations"]


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
