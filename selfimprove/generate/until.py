"""Plain samples for a given number of tokens. Every way of thinking longer is compared with these."""

from __future__ import annotations

import itertools
import math

from selfimprove.policy import Policy
from selfimprove.types import Count, NonNegative, Problem, Trajectory


async def until(
    problem: Problem,
    policy: Policy,
    *,
    tokens: NonNegative,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The fewest independent samples that have `tokens` sampled tokens in total. At least one.

    The policy is asked in batches. The first batch has as many samples as are needed if all are of full length. Each
    further batch has as many as are missing at the mean length so far. Samples beyond the need are dropped.
    """
    count = max(1, math.ceil(tokens / (max_tokens or policy.max_tokens)))
    samples = await policy.sample(problem.prompt, count, temperature=temperature, max_tokens=max_tokens)
    while 0 < (spent := sum(len(s.completion_ids) for s in samples)) < tokens:
        missing = math.ceil((tokens - spent) / (spent / len(samples)))
        samples += await policy.sample(problem.prompt, missing, temperature=temperature, max_tokens=max_tokens)
    before = itertools.accumulate((len(s.completion_ids) for s in samples), initial=0)
    return [
        Trajectory(problem.id, [s]) for s, spent in zip(samples, before, strict=False) if spent < tokens or not spent
    ]
