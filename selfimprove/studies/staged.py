"""What studies of trained policies share: what their runs and policies answer, rates chosen on dev, bounded claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from selfimprove import scores, store
from selfimprove.datasets.arithmetic import LEVELS, load
from selfimprove.report.curve import Rule
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result, claim_above, measured, overall
from selfimprove.studies.arms import RATE
from selfimprove.studies.solving import ByProblem, Groups, Solver, attempts, grader, solve, solved
from selfimprove.studies.tiny import shipped
from selfimprove.types import Attempt, Problem
from selfimprove.verify.answers import stage
from selfimprove.verify.arithmetic import check

Arm = TypeVar("Arm")  # what differs between arms, such as their overrides
GRADE = grader(check)
MAX_TOKENS = 96  # of an answer, as conf/model/tiny.yaml has it
DEV_SEED = 100  # of the runs that choose a learning rate: no comparison uses it


def at_stage(result: Result, number: int, folder: str = "last") -> ByProblem:
    """Which held-out problems the first candidate of a stage solves, of the last round or of "base"."""
    return first_of_stage(result.attempts(result.evaluation(folder)), number)


def first_of_stage(groups: Iterable[Sequence[Attempt]], number: int) -> ByProblem:
    """Which problems the first candidate of a stage solves."""
    found: ByProblem = {}
    for group in groups:
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


def metrics(result: Result) -> list[dict[str, float]]:
    """The figures of each pass's training, in order."""
    return [store.read_json(path)["metrics"] for path in sorted(result.path.glob("rounds/*/train.manifest.json"))]


def over_rounds(result: Result, figure: str) -> float:
    """A figure of training, such as `steps` or `loss_tokens`, summed over all passes."""
    return sum(row.get(figure, 0.0) for row in metrics(result))


def pass_folder(result: Result, stage: str, number: int = 0) -> Path:
    """The folder of a stage's pass in a round."""
    return next(result.path.glob(f"rounds/{number:03d}.*_{stage}"))


def heldout_attempts(result: Result, folder: str = "last") -> Groups:
    """The greedy attempts at the held-out problems, of the last round or of "base"."""
    return list(result.attempts(result.evaluation(folder)))


def heldout_problems(result: Result) -> list[Problem]:
    return [group[0].problem for group in heldout_attempts(result, "base")]


def answers_of(
    path: str | Path, problems: Sequence[Problem], solver: Solver, seed: int = 0, max_tokens: int = MAX_TOKENS
) -> Groups:
    """The answers of the policy in `path` to problems of arithmetic, with verdicts."""
    return attempts(problems, solve(solver, shipped(path), problems, seed=seed, max_tokens=max_tokens), GRADE)


def on_dev(solver: Solver, path: str, size: int, seed: int = DEV_SEED, levels: Sequence[int] = LEVELS) -> Groups:
    """A policy's answers to `size` dev problems, with verdicts."""
    found = load(levels=levels, train_size=0, dev_size=size, heldout_size=1, seed=0)
    return answers_of(path, [p for p in found if p.split == "dev"], solver, seed)


def chosen_rates(
    lab: Lab,
    common: Sequence[str],
    arms: Mapping[str, Sequence[str]],
    rates: Sequence[float],
    solver: Solver,
    rule: Rule,
    size: int,
    levels: Sequence[int] = LEVELS,
    key: str = RATE,
) -> dict[str, float]:
    """The learning rate of each arm, from the same few: the one whose policy answers most dev problems rightly."""

    def accuracy(overrides: Sequence[str], rate: float) -> float:
        trial = lab.run(*common, "dataset.heldout_size=10", *overrides, f"{key}={rate}", f"seed={DEV_SEED}")
        return overall([solved(on_dev(solver, policy_of(trial), size, levels=levels), rule)])

    return best_rates(lab, arms, rates, accuracy, "accuracy", percent)


def best_rates(
    lab: Lab,
    arms: Mapping[str, Arm],
    rates: Sequence[float],
    figure: Callable[[Arm, float], float],
    name: str,
    show: Callable[[float], str] = "{:.3f}".format,
) -> dict[str, float]:
    """The best learning rate of each arm; `figure` is given the arm, such as its overrides, and a rate."""
    return {key: best_rate(lab, key, rates, partial(figure, arm), name, show) for key, arm in arms.items()}


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


def percent_of(values: Callable[[Result], ByProblem]) -> Callable[[Sequence[Result]], str]:
    """A column of a table of arms: what an arm's runs solve, mean over runs and problems."""
    return lambda results: percent(overall([values(result) for result in results]))


def bounded(claim: str, estimate: Estimate, least: float, control: str, command: str) -> Claim:
    """As `claim_above`, with the bound in third place."""
    return claim_above(claim, estimate, control, command, least)


def below(claim: str, estimate: Estimate, most: float, control: str, command: str) -> Claim:
    """A claim that a figure is below `most`: yes or no where its whole interval is on one side, else not clear."""
    holds = True if estimate.high < most else False if estimate.low > most else None
    return measured(claim, holds, estimate, control, command)


def between(claim: str, estimate: Estimate, low: float, high: float, control: str, command: str) -> Claim:
    """A claim that a figure is between two bounds: yes or no where its whole interval says so, else not clear."""
    inside, outside = low < estimate.low and estimate.high < high, estimate.high < low or estimate.low > high
    return measured(claim, True if inside else False if outside else None, estimate, control, command)


def votes(n: int) -> Solver:
    """n answers to the problem, each by itself, at temperature 1."""
    from selfimprove.generate.best_of_n import best_of_n

    return partial(best_of_n, n=n, temperature=1.0)
