"""Every answer of a dialogue checked: one reward a turn."""

from __future__ import annotations

import asyncio

from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Outcome


async def each(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, unparseable: float | None = None
) -> list[Outcome]:
    """The outcome of each trajectory's last answer, with the reward of every turn in `step_rewards`, shape (turns,).

    Answers are checked by the data set's own verifier. `unparseable` is the reward of an answer that cannot be read;
    None: what that verifier gives. Where the check of any turn ended as `timeout` or `error`, so does the trajectory:
    nothing is known of that turn, and a reward of 0 would blame the policy.
    """
    texts = list(dict.fromkeys(sample.text for t in trajectories for sample in t.samples))  # shared turns once
    checked = dict(zip(texts, await asyncio.gather(*(context.check(text, problem) for text in texts)), strict=True))

    def outcome(trajectory: Trajectory) -> Outcome:
        found = [checked[sample.text] for sample in trajectory.samples]
        rewards = [o.reward if unparseable is None or o.status != "unparseable" else unparseable for o in found]
        failed = next((o for o in found if o.status in ("timeout", "error")), None)
        if failed:
            return Outcome(failed.status, failed.reward, failed.extracted, rewards, failed.reason)
        last = found[-1]
        return Outcome(last.status, rewards[-1], last.extracted, rewards, last.reason)

    return [outcome(trajectory) for trajectory in trajectories]
