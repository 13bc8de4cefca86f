"""An episode as a coroutine: the policy writes, acts, and reads what came of it, until it acts no more.

What was observed is put into the conversation as it is. It is nobody's sample, so it bears no loss
(`selfimprove.filter.spans`), and no special token is read in it (`selfimprove.policy.chat`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from selfimprove.generate.dialogue import Dialogue

Step = Callable[[str], Awaitable[str | None]]  # what a text of the policy's does: the observation, None: no action


async def act(
    dialogue: Dialogue,
    step: Step,
    *,
    actions: int,
    stop: Sequence[str] = (),
    into: Literal["user", "assistant"] = "user",
    **sampling: Any,
) -> list[str]:
    """Let the policy act up to `actions` times. Returns the observations in order; `dialogue.samples` has its texts.

    The episode ends behind the first text without an action, or the text that follows the last action, or where the
    model's window is full. So there is at most one text more than observations. `stop` is what ends an action's text,
    and `into` whose turn an observation stands in: the user's, or the assistant's own that goes on. `sampling` and what
    is raised are those of `Policy.sample`; what `step` raises goes on.
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
