"""Plays an episode's actions again, in an environment of its own. The verdict is the result of this replay.

So no solver can claim a success. The actions are read from the episode's texts; without an action the verdict is
`unparseable`. The reward is the sum of the steps' rewards; with 1 or more the status is `correct`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from selfimprove.env import WAIT, actions_of
from selfimprove.env.worlds import Worlds, require_worlds, worlds
from selfimprove.types import Count, Problem, Seconds, Trajectory
from selfimprove.verify import Context, Opening, Outcome


def require(*, env: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Raises ConfigError if this machine lacks something that the environment needs."""
    require_worlds(env=env)
    return {}


def resource(
    opening: Opening,
    *,
    env: dict[str, Any],
    seconds: Seconds = 10.0,
    memory_mb: Count = 2048,
    workers: Count | None = None,
) -> Worlds:
    """The environment, open."""
    return worlds(env=env, seconds=seconds, memory_mb=memory_mb, workers=workers)


async def replayed(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    env: dict[str, Any],
    seconds: Seconds = 10.0,
    memory_mb: Count = 2048,
    workers: Count | None = None,
) -> list[Outcome]:
    """A verdict for each episode. `env` is the environment, a node with `_target_`; the other options are those of
    `selfimprove.env.worlds.worlds`."""
    return await asyncio.gather(*(one(context.resource, problem, trajectory) for trajectory in trajectories))


async def one(worlds: Worlds, problem: Problem, trajectory: Trajectory) -> Outcome:
    """The verdict of one episode."""
    actions = actions_of(trajectory.samples)
    if not actions:
        return Outcome("unparseable", 0.0, reason="no line `Action: ...`")
    _, outcome = await worlds.play(problem, [action for action in actions if action != WAIT])
    said = "; ".join(actions)
    if outcome.status in ("timeout", "error"):
        return Outcome(outcome.status, 0.0, said, reason=outcome.reason)
    return Outcome(
        outcome.status, outcome.reward, said, outcome.step_rewards, f"the last thing seen: {outcome.extracted}"
    )
