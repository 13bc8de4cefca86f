"""An episode as a coroutine: the policy writes, acts and reads the observation, until it acts no more.

An observation is put into the conversation unchanged. No policy sampled it, so it bears no loss
(`selfimprove.filter.spans`), and no special token is read in it (`selfimprove.policy.chat`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from selfimprove.generate.dialogue import Dialogue

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

    The episode ends at the first text without an action, after the text behind the last action, or when the model's
    window is full. So there is at most one text more than there are observations. `stop` ends an action's text. `into`
    says whose turn an observation stands in: the user's, or the assistant's, which then goes on. `sampling` is as in
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
