"""Reward models whose error is set: what the data set's own check says, with noise. For experiments.

A score is sigmoid(2 b + noise * g), b = +1 for right and -1 for wrong, g a standard normal number. Without noise that
is 0.88 and 0.12. With noise 2, one score in six is on the wrong side of 1/2. A text has the same scores whenever it is
asked about.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import numpy as np

from selfimprove import seeds
from selfimprove.errors import ConfigError
from selfimprove.types import NonNegative, Problem, Trajectory
from selfimprove.verify import Context, Outcome
from selfimprove.verify.reward_model import sigmoid

MARGIN = 2.0  # of a score without noise, as a logit


def reads_gold(**options: Any) -> bool:
    """It compares with gold answers, by the data set's own check."""
    return True


def require(*, gives: list[str] | None = None, **options: Any) -> None:
    """Raises ConfigError if the data set's check, whose record `gives`, has no scores of steps."""
    if gives is not None and "steps" not in gives:
        raise ConfigError(
            "verifier: the data set's own check gives no scores of steps to put noise on; choose reward models: "
            "verifier=reward_models verifier.outcome.model=FOLDER verifier.steps.model=FOLDER",
            "verifier",
        )


async def outcome(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, noise: NonNegative
) -> list[Outcome]:
    """An outcome reward model: a score for each answer. It is `correct` from 1/2 on."""

    async def one(trajectory: Trajectory) -> Outcome:
        checked = await context.check(trajectory.text, problem)
        if checked.status in ("timeout", "error"):
            return checked
        (score,) = scores([checked.status == "correct"], noise, context, problem, "outcome", trajectory.text)
        return Outcome("correct" if score >= 0.5 else "wrong", score, checked.extracted)

    return await asyncio.gather(*map(one, trajectories))


async def steps(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, noise: NonNegative
) -> list[Outcome]:
    """A process reward model: a score for each step, and their product as the reward. It is `correct` from 1/2 on."""

    async def one(trajectory: Trajectory) -> Outcome:
        checked = await context.check(trajectory.text, problem)
        if checked.status in ("timeout", "error"):
            return checked
        if not checked.step_rewards:
            return Outcome("unparseable", 0.0, reason="there is no step")
        right = [reward == 1 for reward in checked.step_rewards]
        found = scores(right, noise, context, problem, "steps", trajectory.text)
        value = math.prod(found)
        return Outcome("correct" if value >= 0.5 else "wrong", value, checked.extracted, found)

    return await asyncio.gather(*map(one, trajectories))


def scores(right: list[bool], noise: float, context: Context, problem: Problem, kind: str, text: str) -> list[float]:
    """The score of each of what is right or wrong."""
    rng = np.random.default_rng(seeds.derive(context.policy.seed, "noisy", kind, problem.id, text))
    drawn = rng.standard_normal(len(right))
    return [sigmoid(MARGIN * (1 if b else -1) + noise * float(g)) for b, g in zip(right, drawn, strict=True)]
