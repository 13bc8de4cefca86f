"""A reply that a problem holds, as if the policy had given it: for a first stage that teaches a form."""

from __future__ import annotations

from selfimprove.policy import Policy
from selfimprove.types import Problem, Sample, Trajectory


async def recite(problem: Problem, policy: Policy) -> list[Trajectory]:
    """The reply in metadata["reply"] and its end token, with what the policy says of them. Raises KeyError for a
    problem without one."""
    prompt, reply = policy.render(problem.prompt), str(problem.metadata["reply"])
    ids = [*policy.encode(reply), policy.engine.end]
    logprobs = await policy.logprobs(prompt, ids)
    return [Trajectory(problem.id, [Sample(prompt, ids, logprobs, reply, "stop", 0, role=policy.role)])]
