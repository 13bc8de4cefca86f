"""A problem's own reply as a sample of the policy, for a first stage that teaches a form."""

from __future__ import annotations

from selfimprove.policy import Policy
from selfimprove.types import Problem, Sample, Trajectory


async def recite(problem: Problem, policy: Policy) -> list[Trajectory]:
    """The reply in metadata["reply"] and the end token, with the policy's log-probabilities. Raises KeyError for a
    problem without a reply."""
    prompt, reply = policy.render(problem.prompt), str(problem.metadata["reply"])
    ids = [*policy.encode(reply), policy.engine.end]
    logprobs = await policy.logprobs(prompt, ids)
    return [Trajectory(problem.id, [Sample(prompt, ids, logprobs, reply, "stop", 0, role=policy.role)])]
