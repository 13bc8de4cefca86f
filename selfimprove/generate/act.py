"""An episode as a coroutine: the policy writes, acts and reads the observation, until a text has no action.

An observation is put into the conversation unchanged. No policy sampled it, so it bears no loss
(`selfimprove.filter.spans`). No special token is read in it (`selfimprove.policy.chat`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from selfimprove.env import action_of
from selfimprove.env.worlds import Episode
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.types import Count, NonNegative, Problem, Trajectory

NEEDS = ("episodes",)  # of the data set, by a solver
TOOLS = ("env",)  # what a solver calls
Step = Callable[[str], Awaitable[str | None]]  # a text of the policy -> the observation; None: the text has no action


async def act(
    dialogue: Dialogue,
    step: Step,
    *,
    actions: int,
    stop: Sequence[str] = (),
    into: Literal["user", "assistant"] = "user",
    **sampling: Any,
) -> list[str]:
    """Let the policy act up to `actions` times. Returns the observations in order. `dialogue.samples` has its texts.

    The episode ends at the first text without an action, after the text that follows the last action, or when the
    model's window is full. So there is at most one text more than there are observations. `stop` ends an action's text.
    `into` names the turn of an observation: the user's, or the assistant's, which then goes on. `sampling` is as in
    `Policy.sample`. Raises what `Policy.sample` and `step` raise.
    """
    seen = list[str]()
    while not dialogue.full:
        text = (await dialogue.reply(stop=stop, **sampling)).text
        if len(seen) == actions or (found := await step(text)) is None:
            break
        seen.append(found)
        if into == "user":
            dialogue.user(found)
        else:
            dialogue.append(found)
    return seen


async def episodes(
    problem: Problem,
    policy: Policy,
    *,
    actions: Count,
    tools: Mapping[str, Any],
    n: Count = 1,
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n episodes of at most `actions` actions in the problem's environment. `max_tokens` is the limit of one text."""
    own = [policy.for_problem(problem, number) for number in range(n)]
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    return await asyncio.gather(
        *(episode(Dialogue(p, problem.prompt), tools["env"].start(problem), actions=actions, **options) for p in own)
    )


async def episode(dialogue: Dialogue, world: Episode, *, actions: int, **sampling: Any) -> Trajectory:
    """Let the policy act in an environment until the episode is over. `sampling` is as in `Policy.sample`.

    metadata["seen"] has [observation, reward] of each action. metadata["ended"] says why the episode ended: "done";
    "actions", after the last allowed one; "action", at a text without one; "window", when it was full; or `timeout` or
    `error` of the environment.
    """
    seen, ended = list[tuple[str, float]](), "window"

    async def step(text: str) -> str | None:
        nonlocal ended
        action = action_of(text)
        if action is None:
            ended = "action"
            return None
        found = await world.step(action)
        seen.append((found.text, found.reward))
        if found.done or len(seen) == actions:
            ended = "actions" if not found.done else "done" if found.status == "ok" else found.status
            return None
        return found.text

    await act(dialogue, step, actions=actions, **sampling)
    return Trajectory(world.problem.id, dialogue.samples, {"seen": seen, "ended": ended})
