"""What studies of streams measure, problem by problem: how well a task was learnt, and how much of it is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from selfimprove import scores, store
from selfimprove.studies import Lab, Result, overall
from selfimprove.studies.staged import DEV_SEED
from selfimprove.types import Problem

ByProblem = dict[str, float]


def by_round(result: Result) -> list[ByProblem]:
    """Held-out problem id -> its score, after each round."""
    folders = sorted(result.path.glob("rounds/*/evaluation"))
    return [dict(scores.read(folder / scores.FILE).by_problem) for folder in folders]


def tasks(result: Result) -> dict[str, int]:
    """Problem id -> its task."""
    return {p.id: p.metadata["task"] for p in store.read_records(result.path / "problems.parquet", Problem)}


def final(result: Result, old: bool = False) -> ByProblem:
    """Scores after the last round; `old`: of all tasks but the last."""
    found, task = by_round(result), tasks(result)
    return {name: value for name, value in found[-1].items() if not old or task[name] < len(found) - 1}


def learnt(result: Result) -> ByProblem:
    """The score of each problem right after the round of its own task."""
    found, task = by_round(result), tasks(result)
    return {name: found[task[name]][name] for name in found[-1]}


def forgotten(result: Result) -> ByProblem:
    """How much each problem lost since the round of its own task; those of the last task cannot have lost any."""
    after = learnt(result)
    return {name: after[name] - value for name, value in final(result, old=True).items()}


def metrics(result: Result) -> list[dict[str, float]]:
    """The figures of each round's training."""
    return [store.read_json(path)["metrics"] for path in sorted(result.path.glob("rounds/*/train.manifest.json"))]


def chosen_rates(
    lab: Lab, common: Sequence[str], arms: Mapping[str, Sequence[str]], rates: Sequence[float], dev_size: int
) -> dict[str, float]:
    """The learning rate of each arm, from the same few: the one with the highest score on dev problems at the end."""
    dev = [f"dataset.dev_size={dev_size}", "eval.side=dev", f"seed={DEV_SEED}"]
    best = {}
    for arm, words in arms.items():
        trials = {rate: lab.run(*common, *words, f"method.train.learning_rate={rate}", *dev) for rate in rates}
        best[arm] = max(trials, key=lambda rate: overall([final(trials[rate])]))
    return best
