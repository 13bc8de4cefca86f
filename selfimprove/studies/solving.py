"""For studies of solvers: many problems in one event loop, with any engine and no run folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Sized
from functools import partial
from typing import Any, TypeVar

import numpy as np

from selfimprove.generate.until import until
from selfimprove.policy import Engine, Policy
from selfimprove.report.curve import Rule, Trace, baselines, curve, trace
from selfimprove.report.statistics import Estimate
from selfimprove.types import Attempt, Problem, Trajectory, Verdict
from selfimprove.verify import Outcome

Check = Callable[[str, Problem], Outcome]  # a data set's check of one answer, called in this process
Solver = Callable[..., Awaitable[list[Trajectory]]]
Groups = list[list[Attempt]]  # each problem's attempts
ByProblem = dict[str, float]  # problem id -> 1 where it is solved, else 0


def grader(check: Callable[..., Outcome], **options: Any) -> Check:
    """A verifier's check with its options, as a check of a problem's answer."""
    return lambda text, problem: check(text, problem.gold, problem.metadata, **options)


def waiting(check: Check) -> Callable[[str, Problem], Awaitable[Outcome]]:
    """A check as a solver asks for one."""

    async def ask(text: str, problem: Problem) -> Outcome:
        return check(text, problem)

    return ask


def solve(
    solver: Solver,
    engine: Engine,
    problems: Sequence[Problem],
    *,
    seed: int = 0,
    check: Check | None = None,
    max_tokens: int = 256,
) -> list[list[Trajectory]]:
    """Each problem's trajectories by a solver whose options are bound.

    `check` goes to a solver that asks for one. `max_tokens` is of a sample, unless the solver says otherwise.
    """
    policy = Policy(engine, seed, max_tokens=max_tokens)
    if check is not None:
        solver = partial(solver, check=waiting(check))

    async def one(problem: Problem) -> list[Trajectory]:
        trajectories = await solver(problem, policy.for_problem(problem))
        for i, trajectory in enumerate(trajectories):
            trajectory.id = f"{problem.id}/{i}"
        return trajectories

    async def everything() -> list[list[Trajectory]]:
        return await asyncio.gather(*map(one, problems))

    return asyncio.run(everything())


def attempts(problems: Sequence[Problem], solutions: Sequence[Sequence[Trajectory]], check: Check) -> Groups:
    """Trajectories with the verdict that `check` gives each."""

    def one(problem: Problem, trajectory: Trajectory) -> Attempt:
        outcome = check(trajectory.text, problem)
        verdict = Verdict(trajectory.id, outcome.status, outcome.reward, outcome.extracted, outcome.step_rewards)
        return Attempt(problem, trajectory, verdict)

    return [[one(p, t) for t in trajectories] for p, trajectories in zip(problems, solutions, strict=True)]


def plain(
    engine: Engine, problems: Sequence[Problem], check: Check, tokens: float, *, seed: int = 0, **sampling: Any
) -> Groups:
    """Each problem's plain samples, as few as have `tokens` tokens together; `sampling` is as of `generate.until`."""
    return attempts(problems, solve(partial(until, tokens=tokens, **sampling), engine, problems, seed=seed), check)


def right(group: Sequence[Attempt]) -> list[bool]:
    """Which of a problem's attempts are correct."""
    return [attempt.verdict.status == "correct" for attempt in group]


def solved(groups: Sequence[Sequence[Attempt]], rule: Rule) -> ByProblem:
    """Whether the attempt that `rule` chooses of a problem is correct."""
    chosen = [(group, rule(group)) for group in groups]
    return {group[0].problem.id: float(i is not None and right(group)[i]) for group, i in chosen}


def traces(groups: Sequence[Sequence[Attempt]], rule: Rule) -> list[Trace]:
    """Tokens and answer of each problem, stage by stage; `report.curve.curve` makes rows of them."""
    return [trace(group, right(group), rule) for group in groups]


def by_stage(runs: Sequence[Groups], rule: Rule) -> list[float]:
    """Accuracy after each stage, mean over seeds; a run that ended before keeps its last one."""
    curves = [[row["accuracy"] for row in curve(traces(groups, rule))] for groups in runs]
    return [float(np.mean([c[min(n, len(c) - 1)] for c in curves])) for n in range(max(map(len, curves)))]


def at_tokens(samples: Sequence[Sequence[Attempt]], tokens: float, **rules: Rule) -> dict[str, list[bool]]:
    """Which problems plain samples worth `tokens` a problem solve: by each rule (as in `maj=vote`), and any, `pass`."""
    outcomes = [baselines(group, right(group), tokens, rules) for group in samples]
    return {name: [outcome[name] for outcome in outcomes] for name in (*rules, "pass")}


# Figures that are no mean over problems

Run = TypeVar("Run", bound=Sized)  # an entry for each problem, such as its attempts
Figure = Callable[[Run, np.ndarray], float]  # of a run, each problem with a weight
DRAWS = 2000  # of a bootstrap


def estimated(figure: Figure[Run], runs: Sequence[Run], others: Sequence[Run] | None = None) -> Estimate:
    """A figure's mean over seeds, or its difference to that of other runs, with a Bayesian bootstrap over problems."""

    def mean(weights: np.ndarray) -> float:
        value = np.mean([figure(run, weights) for run in runs])
        return float(value - np.mean([figure(run, weights) for run in others]) if others else value)

    n = len(runs[0])
    drawn = [mean(weights) for weights in np.random.default_rng(0).standard_exponential((DRAWS, n))]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean(np.ones(n)), float(low), float(high), n)


def unweighted(figure: Figure[Run], runs: Sequence[Run]) -> float:
    """A figure's mean over seeds, all problems alike."""
    return float(np.mean([figure(run, np.ones(len(run))) for run in runs]))


def resampled(figure: Callable[[np.ndarray], float], n: int, draws: int = DRAWS) -> Estimate:
    """A figure of n rows with their bootstrap. `figure` is given the places of rows, from 0 to n - 1."""
    rng = np.random.default_rng(0)
    drawn = [figure(rng.integers(n, size=n)) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(figure(np.arange(n)), float(low), float(high), n)
