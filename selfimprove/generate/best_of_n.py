"""n independent samples of one prompt. Best-of-n, majority vote and rejection sampling all solve problems this way."""

from __future__ import annotations

from selfimprove.policy import Policy
from selfimprove.types import Count, NonNegative, Problem, Samples, Trajectory


async def best_of_n(
    problem: Problem, policy: Policy, *, n: Samples, temperature: NonNegative, max_tokens: Count | None = None
) -> list[Trajectory]:
    """n trajectories of one sample each. `max_tokens` limits a completion; None: the model's own limit."""
    samples = await policy.sample(problem.prompt, n, temperature=temperature, max_tokens=max_tokens)
    return [Trajectory(problem.id, [sample]) for sample in samples]
