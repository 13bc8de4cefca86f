"""For studies of solvers: many problems in one event loop, with any engine and no run folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove.generate.until import until
from selfimprove.policy import Engine, Policy
from selfimprove.report.curve import Rule, Trace, baselines, trace
from selfimprove.report.statistics import Estimate
from selfimprove.studies.arms import arms_table
from selfimprove.types import Attempt, Problem, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.answers import vote

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


def at_tokens(samples: Sequence[Sequence[Attempt]], tokens: float, **rules: Rule) -> dict[str, list[bool]]:
    """Which problems plain samples worth `tokens` a problem solve: by each rule (as in `maj=vote`), and any, `pass`."""
    outcomes = [baselines(group, right(group), tokens, rules) for group in samples]
    return {name: [outcome[name] for outcome in outcomes] for name in (*rules, "pass")}


# Figures that are no mean over problems

Figure = Callable[[Groups, np.ndarray], float]  # of a run's attempts, each problem with a weight
DRAWS = 2000  # of a bootstrap


def estimated(figure: Figure, runs: Sequence[Groups], others: Sequence[Groups] | None = None) -> Estimate:
    """A figure's mean over seeds, or its difference to that of other runs, with a Bayesian bootstrap over problems."""

    def mean(weights: np.ndarray) -> float:
        value = np.mean([figure(groups, weights) for groups in runs])
        return float(value - np.mean([figure(groups, weights) for groups in others]) if others else value)

    n = len(runs[0])
    drawn = [mean(weights) for weights in np.random.default_rng(0).standard_exponential((DRAWS, n))]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean(np.ones(n)), float(low), float(high), n)


# What an arm costs


@dataclass(frozen=True)
class Answers:
    """What a solver gave on some problems with one seed."""

    groups: Groups  # each problem's answers, in order, with verdicts
    seconds: float  # of wall time, for all problems together


def timed(
    solver: Solver, engine: Engine, problems: Sequence[Problem], check: Check, *, asks: bool = False, **options: Any
) -> Answers:
    """A solver's answers with their verdicts, and how long it took. `asks`: the solver is given the check too."""
    began = time.monotonic()
    solutions = solve(solver, engine, problems, check=check if asks else None, **options)
    seconds = time.monotonic() - began
    return Answers(attempts(problems, solutions, check), seconds)


@dataclass(frozen=True)
class Cost:
    """What a problem costs, means over problems and seeds, and what plain samples of as many tokens solve."""

    tokens: float  # sampled
    prompt_tokens: float
    calls: float
    seconds: float
    passed: float  # share of problems that any of the plain samples solves
    majority: float  # and that their majority solves


def cost(engine: Engine, arm: Sequence[Answers], check: Check, *, separate: bool = False, **sampling: Any) -> Cost:
    """The cost of an arm, one `Answers` a seed. `sampling` is that of the plain samples.

    A chain's last trajectory has all samples that led to it. `separate`: each trajectory has samples of its own.
    """
    problems = [group[0].problem for group in arm[0].groups]
    whole = [[a.trajectory for a in (group if separate else group[-1:])] for answers in arm for group in answers.groups]
    tokens = float(np.mean([sum(t.sampled_tokens for t in group) for group in whole]))
    beside = at_tokens(plain(engine, problems, check, tokens, **sampling), tokens, maj=vote)
    return Cost(
        tokens,
        float(np.mean([sum(t.prompt_tokens for t in group) for group in whole])),
        float(np.mean([sum(len(t.samples) for t in group) for group in whole])),
        float(np.mean([answers.seconds for answers in arm])) / len(problems),
        float(np.mean(beside["pass"])),
        float(np.mean(beside["maj"])),
    )


def cost_table(costs: Mapping[str, Cost], shares: Mapping[str, float], label: str, first: str = "arm") -> Table:
    """What each arm costs, and the share of problems that its own answers solve, under `label`."""
    return arms_table(
        "Cost of a problem, means; beside it plain samples worth as many sampled tokens",
        {name: (c, shares[name]) for name, c in costs.items()},
        {
            "tokens": lambda arm: f"{arm[0].tokens:.0f}",
            "prompt tokens": lambda arm: f"{arm[0].prompt_tokens:.0f}",
            "calls": lambda arm: f"{arm[0].calls:.1f}",
            "seconds": lambda arm: f"{arm[0].seconds:.2f}",
            label: lambda arm: f"{arm[1]:.3f}",
            "plain, pass@tokens": lambda arm: f"{arm[0].passed:.3f}",
            "plain, maj@tokens": lambda arm: f"{arm[0].majority:.3f}",
        },
        first,
    )
