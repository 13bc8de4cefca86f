"""What an arm of solvers costs, and what plain samples of as many tokens solve."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove.policy import Engine
from selfimprove.report.curve import sampled_tokens, samples_of
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import Check, Groups, Solver, at_tokens, attempts, plain, solve
from selfimprove.types import Problem
from selfimprove.verify.answers import vote


def tokens_of(runs: Sequence[Groups]) -> float:
    """Sampled tokens a problem, mean over problems and seeds."""
    return float(np.mean([sampled_tokens(group) for groups in runs for group in groups]))


def sample_cells(runs: Sequence[Groups]) -> dict[str, str]:
    """Cells of a table: means a problem of the samples, and of the tokens that were sampled and read."""
    samples = [samples_of(a.trajectory for a in group) for groups in runs for group in groups]
    return {
        "samples": f"{np.mean([len(found) for found in samples]):.1f}",
        "tokens": f"{np.mean([sum(len(s.completion_ids) for s in found) for found in samples]):.0f}",
        "read": f"{np.mean([sum(len(s.prompt_ids) for s in found) for found in samples]):.0f}",
    }


# An arm, timed


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
