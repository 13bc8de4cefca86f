"""A conversation with the policy that goes on by token ids. No text is tokenised a second time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from selfimprove.policy import Policy, Prompt
from selfimprove.types import Sample


class Dialogue:
    """A growing conversation. `ids` is what the policy reads next, and `samples` are its replies in order.

    The `prompt_ids` of a reply start with the prompt and completion of the reply before it. Only two things are
    missing: an end token that `append` took back, and turns that `show` left out.
    """

    def __init__(self, policy: Policy, prompt: Prompt) -> None:
        self.policy = policy
        self.ids = policy.render(prompt)
        self.samples: list[Sample] = []
        self._starts: list[int] = []  # where in `ids` each shown reply begins
        self._ended = False  # the last id is the end token of a reply

    @property
    def full(self) -> bool:
        """Whether the model's window has no room for another token."""
        return len(self.ids) >= self.policy.engine.max_length

    def user(self, text: str) -> None:
        """Close the assistant's turn, and say `text` as the user."""
        self.ids = [*self.ids, *self.policy.turn(text, self._ended)]
        self._ended = False

    def append(self, text: str) -> None:
        """Put `text` into the assistant's turn, as if the policy had written it. A turn that had ended goes on."""
        so_far = self.ids[:-1] if self._ended else self.ids
        self.ids = [*so_far, *self.policy.encode(text)]
        self._ended = False

    def show(self, last: int) -> None:
        """Keep only the `last` replies in `ids`, each with what was said behind it. The prompt stays."""
        if (cut := len(self._starts) - last) > 0:
            first = self._starts[0]
            gone = (self._starts[cut] if last else len(self.ids)) - first
            self.ids = [*self.ids[:first], *self.ids[first + gone :]]
            self._starts = [start - gone for start in self._starts[cut:]]

    async def propose(self, n: int = 1, **sampling: Any) -> list[Sample]:
        """What the policy may say next. `sampling`, and what is raised, are as in `Policy.sample`."""
        return await self.policy.sample(self.ids, n, **sampling)

    def take(self, sample: Sample, stop: Sequence[str] = ()) -> None:
        """Go on with one of the proposed replies. `stop` has the stop strings that it was sampled with."""
        self.samples.append(sample)
        self._starts.append(len(sample.prompt_ids))
        self.ids = [*sample.prompt_ids, *sample.completion_ids]
        cut = any(text in sample.text for text in stop)  # a stop string is not an end token
        self._ended = sample.finish == "stop" and not cut

    async def reply(self, **sampling: Any) -> Sample:
        """What the policy says next. `sampling`, and what is raised, are as in `Policy.sample`."""
        (sample,) = await self.propose(**sampling)
        self.take(sample, sampling.get("stop", ()))
        return sample
