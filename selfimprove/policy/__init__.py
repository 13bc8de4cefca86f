"""The policy: what a solver asks for samples and log-probabilities.

A solver is a coroutine for one problem; thousands run at once. Each awaits the policy, the policy passes requests on to
an engine, and the engine answers whatever is waiting in one batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from selfimprove import seeds
from selfimprove.types import Message, Problem, Sample

Prompt = str | list[Message] | Sequence[int]  # text, chat messages, or token ids as they are


@dataclass(frozen=True, slots=True)
class Request:
    """Asks an engine for one completion of `prompt_ids`.

    temperature 0 is greedy; top_k 0 and top_p 1 truncate nothing; sampling stops after the end token, or as soon as
    the completion's text contains one of `stop` (which is kept, ids and text), or at `max_tokens`.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


def require_room(request: Request, window: int) -> None:
    """Raises ValueError for a request that does not fit a model's window, of `window` tokens."""
    if not request.prompt_ids:
        raise ValueError("the prompt is empty: the model needs at least one token to start from")
    if request.max_tokens < 1 or len(request.prompt_ids) + request.max_tokens > window:
        raise ValueError(
            f"{len(request.prompt_ids)} prompt tokens and max_tokens={request.max_tokens} do not fit the window of "
            f"{window}"
        )


def require_fit(prompt_ids: Sequence[int], completion_ids: Sequence[int], window: int) -> None:
    """Raises ValueError for a completion that cannot be scored: without a prompt, or beyond the window."""
    if not prompt_ids or len(prompt_ids) + len(completion_ids) > window:
        raise ValueError(f"{len(prompt_ids)} + {len(completion_ids)} tokens: need 1 to {window}, with a prompt")


class Engine(Protocol):
    """What answers requests. All calls come from one event loop; batching is the engine's business."""

    max_length: int  # tokens of prompt and completion together

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt, through the chat template where there is one."""
        ...

    def turn(self, text: str, ended: bool) -> list[int]:
        """The ids that close an assistant's turn (unless it `ended` with its end token), say `text` as the user and
        open the assistant's next turn: what a dialogue goes on with behind its ids so far."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text inside an assistant's running turn."""
        ...

    async def sample(self, request: Request) -> Sample:
        """One completion. Its content depends on the weights and the request, not on what else is in flight."""
        ...

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """log pi of each completion token, in nats at temperature 1, shape (len(completion_ids),)."""
        ...

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        """The finished completion of the highest mean log-probability a token that beam search finds."""
        ...

    def load(self, path: str) -> None:
        """Take the weights of the policy folder `path` in place, and forget what was cached for the old ones."""
        ...

    async def sleep(self) -> None:
        """Let go of what memory can be let go of until the next request, so that a trainer can have it."""
        ...

    def close(self) -> None: ...


@dataclass
class Meter:
    """What was asked of engines: requests, and tokens of prompts, of completions sampled and of completions scored."""

    calls: int = 0
    prompt: int = 0
    sampled: int = 0
    scored: int = 0

    def take(self) -> dict[str, int]:
        """The counts so far, which then start again from zero."""
        taken = {"calls": self.calls, "prompt": self.prompt, "sampled": self.sampled, "scored": self.scored}
        self.calls = self.prompt = self.sampled = self.scored = 0
        return taken


@dataclass
class Policy:
    """The model at one version, as one solver sees it: it renders, derives seeds and stamps versions.

    Make one for each problem with `for_problem`, so that a problem's samples depend on the run's seed, the round, the
    problem and the order of its own calls, and on nothing that other problems do.
    """

    engine: Engine
    seed: int
    version: int = 0
    role: str = "policy"
    max_tokens: int = 256  # default for a sample, from the model's config
    scope: tuple[str | int, ...] = ()
    meter: Meter = field(default_factory=Meter)  # shared by all that were made from one policy
    _calls: int = field(default=0, repr=False)

    def for_problem(self, problem: Problem, *scope: str | int) -> Policy:
        return replace(self, scope=(*self.scope, *scope, problem.id), _calls=0)

    def on(self, engine: Engine, role: str) -> Policy:
        """Another model in another role, e.g. a judge, with the same seed, scope and meter."""
        return replace(self, engine=engine, role=role, _calls=0)

    async def sample(
        self,
        prompt: Prompt,
        n: int = 1,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Sample]:
        """n completions of one prompt, in the order of their seeds.

        Raises ValueError when the prompt leaves no room for a single token in the model's window.
        """
        ids = tuple(self.render(prompt))
        limit = self._limit(ids, max_tokens)
        requests = []
        for _ in range(n):
            seed = seeds.derive(self.seed, self.role, *self.scope, self._calls)
            self._calls += 1
            requests.append(Request(ids, limit, seed, temperature, top_p, top_k, tuple(stop)))
        samples = await asyncio.gather(*map(self.engine.sample, requests))
        for sample in samples:
            sample.role, sample.version = self.role, self.version
        self.meter.calls += n
        self.meter.prompt += n * len(ids)
        self.meter.sampled += sum(len(sample.completion_ids) for sample in samples)
        return samples

    async def beam(self, prompt: Prompt, width: int, *, max_tokens: int | None = None) -> Sample:
        """The completion that beam search finds, as `Engine.beam` says. Raises ValueError as `sample` does.

        The meter counts the tokens of the completion found, not those of the beams that were left.
        """
        ids = self.render(prompt)
        sample = await self.engine.beam(ids, width, self._limit(ids, max_tokens))
        sample.role, sample.version = self.role, self.version
        self.meter.calls += 1
        self.meter.prompt += len(ids)
        self.meter.sampled += len(sample.completion_ids)
        return sample

    async def logprobs(self, prompt: Prompt, completion_ids: Sequence[int]) -> list[float]:
        """log pi of each token of a completion, in nats at temperature 1."""
        ids = self.render(prompt)
        self.meter.calls += 1
        self.meter.prompt += len(ids)
        self.meter.scored += len(completion_ids)
        return await self.engine.logprobs(ids, completion_ids)

    def _limit(self, ids: Sequence[int], max_tokens: int | None) -> int:
        room = self.engine.max_length - len(ids)
        if room < 1:
            raise ValueError(f"the prompt has {len(ids)} tokens and the model's window is {self.engine.max_length}")
        return min(max_tokens or self.max_tokens, room)

    def render(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids pass through as they are."""
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], dict)):
            return self.engine.render(prompt)  # type: ignore[arg-type]
        return list(prompt)  # type: ignore[arg-type]

    def turn(self, text: str, ended: bool) -> list[int]:
        """The ids of a user's turn behind an assistant's, as `Engine.turn` says."""
        return self.engine.turn(text, ended)

    def encode(self, text: str) -> list[int]:
        """The ids of a text inside an assistant's running turn."""
        return self.engine.encode(text)
