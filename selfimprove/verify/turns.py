"""Checks every answer of a dialogue: one reward for each turn."""

from __future__ import annotations

import asyncio

from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Outcome


async def each(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, unparseable: float | None = None
) -> list[Outcome]:
    """The outcome of each trajectory's last answer, with the reward of every turn in `step_rewards`, shape (turns,).

    The data set's own verifier checks the answers. `unparseable` is the reward of an answer that cannot be read; None:
    that verifier's reward. If the check of any turn ends as `timeout` or `error`, so does the trajectory. Nothing is
    known of that turn, and a reward of 0 would blame the policy.
    """
    texts = list(dict.fromkeys(sample.text for t in trajectories for sample in t.samples))  # shared turns once
    checked = dict(zip(texts, await asyncio.gather(*(context.check(text, problem) for text in texts)), strict=True))

    def outcome(trajectory: Trajectory) -> Outcome:
        turns = [checked[sample.text] for sample in trajectory.samples]
        rewards = [o.reward if unparseable is None or o.status != "unparseable" else unparseable for o in turns]
        failed = next((o for o in turns if o.status in ("timeout", "error")), None)
        if failed:
            return Outcome(failed.status, failed.reward, failed.extracted, rewards, failed.reason)
        last = turns[-1]
        return Outcome(last.status, rewards[-1], last.extracted, rewards, last.reason)

    return [outcome(trajectory) for trajectory in trajectories]
