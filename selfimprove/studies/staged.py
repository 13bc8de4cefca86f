"""What studies of several answers to a problem share: accuracy by stage, rates chosen on dev, claims with a bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from selfimprove import scores
from selfimprove.datasets.arithmetic import load
from selfimprove.policy import Engine
from selfimprove.report.curve import Rule
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result
from selfimprove.studies.solving import Solver, attempts, solve
from selfimprove.types import Attempt, Problem
from selfimprove.verify import Outcome
from selfimprove.verify.answers import stage
from selfimprove.verify.arithmetic import check

Solved = dict[str, float]  # problem id -> 1 where it is solved, else 0
MAX_TOKENS = 96  # of an answer, as conf/model/tiny.yaml has it
DEV_SEED = 100  # of the runs that choose a learning rate: no comparison uses it


def at_stage(result: Result, number: int, folder: str = "last") -> Solved:
    """Which held-out problems the first candidate of a stage solves, of the last round or of "base"."""
    found: Solved = {}
    for group in result.attempts(result.evaluation(folder)):
        chosen = next(a for a in group if stage(a) == number)
        found[chosen.problem.id] = float(chosen.verdict.status == "correct")
    return found


def answered(result: Result, folder: str = "last") -> Solved:
    """Which held-out problems the answer solves that the method chooses."""
    return dict(scores.read(result.evaluation(folder) / scores.FILE).by_problem)


def grade(text: str, problem: Problem) -> Outcome:
    return check(text, problem.gold, problem.metadata)


def engine(path: str) -> Engine:
    from selfimprove.policy.hf import TransformersEngine

    return TransformersEngine(path, device="cpu", max_batch=64)


def policy_of(result: Result) -> str:
    """The folder of the last round's policy."""
    return str(max(result.path.glob("rounds/*/policy"), key=lambda path: path.parent.name))


def on_dev(solver: Solver, path: str, size: int, seed: int = DEV_SEED) -> list[list[Attempt]]:
    """A policy's answers to `size` dev problems, with verdicts."""
    problems = [p for p in load(train_size=0, dev_size=size, heldout_size=1, seed=0) if p.split == "dev"]
    return attempts(problems, solve(solver, engine(path), problems, seed=seed, max_tokens=MAX_TOKENS), grade)


def share(groups: Sequence[Sequence[Attempt]], rule: Rule) -> float:
    """The share of problems whose chosen answer is correct."""
    chosen = [(group, rule(group)) for group in groups]
    return float(np.mean([i is not None and group[i].verdict.status == "correct" for group, i in chosen]))


def chosen_rates(
    lab: Lab,
    common: Sequence[str],
    arms: Mapping[str, Sequence[str]],
    rates: Sequence[float],
    solver: Solver,
    rule: Rule,
    size: int,
) -> dict[str, float]:
    """The learning rate of each arm, from the same few: the one whose policy answers most dev problems rightly."""
    best = {}
    for arm, overrides in arms.items():
        found = {}
        for rate in rates:
            trial = lab.run(
                *common, "dataset.heldout_size=10", *overrides, f"method.train.learning_rate={rate}", f"seed={DEV_SEED}"
            )
            found[rate] = share(on_dev(solver, policy_of(trial), size), rule)
        best[arm] = max(found, key=lambda rate: (found[rate], -rate))
        shown = ", ".join(f"{rate:g}: {100 * value:.1f} %" for rate, value in found.items())
        lab.note(f"{arm}: dev accuracy by learning rate: {shown}; chosen {best[arm]:g}")
    return best


def bounded(claim: str, estimate: Estimate, least: float, control: str, command: str) -> Claim:
    """A claim that a difference is above `least`: yes or no where its whole interval is on one side, else not clear."""
    holds = True if estimate.low > least else False if estimate.high < least else None
    return Claim(claim, holds, estimate.value, (estimate.low, estimate.high), control, command)


def votes(n: int) -> Solver:
    """n answers to the problem, each by itself, at temperature 1."""
    from selfimprove.generate.best_of_n import best_of_n

    return partial(best_of_n, n=n, temperature=1.0)
