"""What studies of several answers to a problem share: accuracy by stage, rates chosen on dev, claims with a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from selfimprove import scores
from selfimprove.datasets.arithmetic import LEVELS, load
from selfimprove.report.curve import Rule
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result, claim_above, measured
from selfimprove.studies.solving import ByProblem, Solver, attempts, grader, solve, solved
from selfimprove.studies.tiny import shipped
from selfimprove.types import Attempt
from selfimprove.verify.answers import stage
from selfimprove.verify.arithmetic import check

GRADE = grader(check)
MAX_TOKENS = 96  # of an answer, as conf/model/tiny.yaml has it
DEV_SEED = 100  # of the runs that choose a learning rate: no comparison uses it


def at_stage(result: Result, number: int, folder: str = "last") -> ByProblem:
    """Which held-out problems the first candidate of a stage solves, of the last round or of "base"."""
    found: ByProblem = {}
    for group in result.attempts(result.evaluation(folder)):
        chosen = next(a for a in group if stage(a) == number)
        found[chosen.problem.id] = float(chosen.verdict.status == "correct")
    return found


def answered(result: Result, folder: str = "last") -> ByProblem:
    """Which held-out problems the answer solves that the method chooses."""
    return dict(scores.read(result.evaluation(folder) / scores.FILE).by_problem)


def minus(values: ByProblem, others: ByProblem, factor: float = 1.0) -> ByProblem:
    """Problem by problem the one, minus `factor` times the other."""
    return {name: value - factor * others[name] for name, value in values.items()}


def policy_of(result: Result) -> str:
    """The folder of the last round's policy."""
    return str(max(result.path.glob("rounds/*/policy"), key=lambda path: path.parent.name))


def on_dev(
    solver: Solver, path: str, size: int, seed: int = DEV_SEED, levels: Sequence[int] = LEVELS
) -> list[list[Attempt]]:
    """A policy's answers to `size` dev problems, with verdicts."""
    found = load(levels=levels, train_size=0, dev_size=size, heldout_size=1, seed=0)
    problems = [p for p in found if p.split == "dev"]
    return attempts(problems, solve(solver, shipped(path), problems, seed=seed, max_tokens=MAX_TOKENS), GRADE)


def chosen_rates(
    lab: Lab,
    common: Sequence[str],
    arms: Mapping[str, Sequence[str]],
    rates: Sequence[float],
    solver: Solver,
    rule: Rule,
    size: int,
    levels: Sequence[int] = LEVELS,
    key: str = "method.train.learning_rate",
) -> dict[str, float]:
    """The learning rate of each arm, from the same few: the one whose policy answers most dev problems rightly."""

    def accuracy(overrides: Sequence[str], rate: float) -> float:
        trial = lab.run(*common, "dataset.heldout_size=10", *overrides, f"{key}={rate}", f"seed={DEV_SEED}")
        answers = on_dev(solver, policy_of(trial), size, levels=levels)
        return float(np.mean(list(solved(answers, rule).values())))

    return {
        arm: best_rate(lab, arm, rates, partial(accuracy, overrides), "accuracy", percent)
        for arm, overrides in arms.items()
    }


def best_rate(
    lab: Lab,
    arm: str,
    rates: Sequence[float],
    figure: Callable[[float], float],
    name: str,
    show: Callable[[float], str] = "{:.3f}".format,
) -> float:
    """The learning rate with the highest figure on dev problems; of equal ones the smallest. All figures are noted."""
    found = {rate: figure(rate) for rate in rates}
    best = max(found, key=lambda rate: (found[rate], -rate))
    shown = ", ".join(f"{rate:g}: {show(value)}" for rate, value in found.items())
    lab.note(f"{arm}: dev {name} by learning rate: {shown}; chosen {best:g}")
    return best


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def bounded(claim: str, estimate: Estimate, least: float, control: str, command: str) -> Claim:
    """As `claim_above`, with the bound in third place."""
    return claim_above(claim, estimate, control, command, least)


def below(claim: str, estimate: Estimate, most: float, control: str, command: str) -> Claim:
    """A claim that a figure is below `most`: yes or no where its whole interval is on one side, else not clear."""
    holds = True if estimate.high < most else False if estimate.low > most else None
    return measured(claim, holds, estimate, control, command)


def votes(n: int) -> Solver:
    """n answers to the problem, each by itself, at temperature 1."""
    from selfimprove.generate.best_of_n import best_of_n

    return partial(best_of_n, n=n, temperature=1.0)
