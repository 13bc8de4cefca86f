"""A conversation with the policy that goes on id for id. No text of it is tokenised a second time."""

from __future__ import annotations

from typing import Any

from selfimprove.policy import Policy, Prompt
from selfimprove.types import Sample


class Dialogue:
    """A growing conversation: `ids` is all of it so far, `samples` are the replies in order.

    The `prompt_ids` of a reply start with the prompt and completion of the reply before it. Only an end token that
    `append` took back is missing.
    """

    def __init__(self, policy: Policy, prompt: Prompt) -> None:
        self.policy = policy
        self.ids = policy.render(prompt)
        self.samples: list[Sample] = []
        self._ended = False  # the last id is the end token of a reply

    def user(self, text: str) -> None:
        """Close the assistant's turn, and say `text` as the user."""
        self.ids = [*self.ids, *self.policy.turn(text, self._ended)]
        self._ended = False

    def append(self, text: str) -> None:
        """Put `text` into the assistant's turn, as if it had written it. A turn that had ended goes on."""
        so_far = self.ids[:-1] if self._ended else self.ids
        self.ids = [*so_far, *self.policy.encode(text)]
        self._ended = False

    async def reply(self, **sampling: Any) -> Sample:
        """What the policy says next. `sampling` and what is raised are those of `Policy.sample`."""
        (sample,) = await self.policy.sample(self.ids, **sampling)
        self.samples.append(sample)
        self.ids = [*sample.prompt_ids, *sample.completion_ids]
        cut = any(text in sample.text for text in sampling.get("stop", ()))  # a stop text is no end token
        self._ended = sample.finish == "stop" and not cut
        return sample
