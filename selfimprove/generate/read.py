"""Reading: the policy gives the log-probabilities of a problem's text, and samples nothing."""

from __future__ import annotations

from selfimprove.policy import Policy
from selfimprove.types import Problem, Sample, Trajectory

NEEDS = ("logprobs", "gold")


async def read(problem: Problem, policy: Policy) -> list[Trajectory]:
    """One trajectory: the gold text after the prompt, cut at the end of the policy's window."""
    prompt_ids = policy.render(problem.prompt)
    ids = policy.encode(problem.gold or "")[: policy.engine.max_length - len(prompt_ids)]
    logprobs = await policy.logprobs(prompt_ids, ids)
    return [Trajectory(problem.id, [Sample(prompt_ids, ids, logprobs, problem.gold or "", "stop", seed=0)])]
