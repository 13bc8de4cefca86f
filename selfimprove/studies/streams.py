"""What studies of streams share: how well each task was learnt, how much of it is lost, and rates chosen on dev."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfimprove import scores, store
from selfimprove.report import continual
from selfimprove.studies import Claim, Lab, Result, overall
from selfimprove.studies.arms import RATE, Arms, run_arms, tuned
from selfimprove.studies.draws import claim_mean, spread
from selfimprove.studies.staged import DEV_SEED, best_rates
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


def matrix(result: Result) -> np.ndarray:
    """Accuracy by task of the base policy and after each round, shape (rounds + 1, tasks)."""
    folders = [result.path / "base", *sorted(result.path.glob("rounds/*"))]
    return continual.matrix([scores.read(folder / "evaluation" / scores.FILE) for folder in folders])


def tuned_arms(
    lab: Lab, common: Sequence[str], arms: Arms, rates: Sequence[float], dev_size: int
) -> tuple[dict[str, list[Result]], dict[str, float]]:
    """The finished runs of each arm, one a seed, and the learning rate of each.

    Each arm tries the same rates, and has the one with the highest score on dev problems at the end. The quick form of
    a study takes the last of them untried.
    """
    dev = [f"dataset.dev_size={dev_size}", "eval.side=dev", f"seed={DEV_SEED}"]

    def at_the_end(words: Sequence[str], rate: float) -> float:
        return overall([final(lab.run(*common, *words, f"{RATE}={rate}", *dev))])

    best = dict.fromkeys(arms, rates[-1]) if lab.quick else best_rates(lab, arms, rates, at_the_end, "score")
    return run_arms(lab, common, tuned(arms, best)), best


def forgets(text: str, less: list[Result], more: list[Result], control: str) -> Claim:
    """A claim that forgetting is greater in some runs than in others, seed by seed; not clear if 0 is inside."""
    pairs = zip(less, more, strict=True)
    change = np.array([continual.forgetting(matrix(b)) - continual.forgetting(matrix(a)) for a, b in pairs])
    interval = spread(change)
    holds = bool(change.mean() > 0) if interval and (interval[0] > 0 or interval[1] < 0) else None
    return claim_mean(text, holds, change, control, more[0].command)
