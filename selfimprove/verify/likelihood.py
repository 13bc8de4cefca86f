"""Scores a text that the policy reads and does not answer, by its log-likelihood."""

from __future__ import annotations

import math

from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Outcome


async def likelihood(problem: Problem, trajectories: list[Trajectory], context: Context | None) -> list[Outcome]:
    """The reward is the mean log-probability of the last sample's tokens, in nats: the negative of the loss.

    No text is wrong: each is `correct`, except a text without a token, which is `unparseable`.
    """
    return [_outcome(t.samples[-1].logprobs) for t in trajectories]


def _outcome(logprobs: list[float]) -> Outcome:
    if not logprobs:
        return Outcome("unparseable", -math.inf, reason="the text has no token")
    return Outcome("correct", sum(logprobs) / len(logprobs))
