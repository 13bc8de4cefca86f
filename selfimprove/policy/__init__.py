"""The policy: what a solver asks for samples and log-probabilities.

A solver is a coroutine for one problem; thousands run at once. Each awaits the policy, the policy passes requests on to
an engine, and the engine answers whatever is waiting in one batch.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from selfimprove import seeds
from selfimprove.digests import digest
from selfimprove.types import Message, Problem, Sample

if TYPE_CHECKING:
    from selfimprove.policy.hooks import Hook

Prompt = str | list[Message] | Sequence[int]  # text, chat messages, or token ids as they are
Base = tuple[str, tuple[str, ...], tuple[int, ...]]  # what keys and values depend on beside the weights


@dataclass(frozen=True)
class Tuning:
    """A temporary adapter, by all that it depends on beside the weights: LoRA on every linear layer but the head.

    `rows` are (prompt ids, completion ids). The loss is the mean negative log-likelihood of a completion's tokens. Each
    step reads one row, in order, `epochs` times all of them. The learning rate rises over the first `warmup` of the
    steps and falls to 0 as a cosine.
    """

    rows: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    epochs: int = 5
    learning_rate: float = 1e-4
    r: int = 8
    alpha: float = 16.0
    warmup: float = 0.03
    seed: int = 0

    @cached_property
    def name(self) -> str:
        """What the adapter is found by: the same for equal tunings, another for others."""
        return digest(astuple(self))

    @property
    def steps(self) -> int:
        return self.epochs * len(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(prompt) + len(completion) for prompt, completion in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens that training reads."""
        return self.epochs * sum(len(prompt) + len(completion) for prompt, completion in self.rows)

    @property
    def kind(self) -> tuple[float, ...]:
        """What adapters must have in common to be trained together."""
        return self.steps, self.learning_rate, self.r, self.alpha, self.warmup

    def schedule(self, step: int) -> float:
        """The share of the learning rate at a step, counted from 0."""
        rise = math.ceil(self.warmup * self.steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


@dataclass(frozen=True, slots=True)
class Request:
    """Asks an engine for one completion of `prompt_ids`.

    temperature 0 is greedy; top_k 0 and top_p 1 truncate nothing; sampling stops after the end token, or as soon as
    the completion's text contains one of `stop` (which is kept, ids and text), or at `max_tokens`.

    A request says all that its answer depends on. `media` are digests of pictures or arrays that the prompt shows,
    `adapter` is trained for this request and forgotten after it, and `hook` acts inside the decoder. An engine that
    does not have what a request asks for raises ValueError.
    """

    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    media: tuple[str, ...] = ()
    adapter: Tuning | None = None
    hook: Hook | None = None

    @property
    def base(self) -> Base:
        """What the keys and values of the prompt depend on. Every cache is keyed by it, never by ids alone."""
        return self.adapter.name if self.adapter else "", self.media, self.prompt_ids


def plain(prompt_ids: Sequence[int]) -> Base:
    """The base of a request without media or an adapter."""
    return "", (), tuple(prompt_ids)


def require_plain(request: Request, engine: str) -> None:
    """Raises ValueError for a request that asks for media, an adapter or a hook, which `engine` does not have."""
    asked = {"media": request.media, "adapter": request.adapter, "hook": request.hook}
    if lacking := [name for name, value in asked.items() if value]:
        raise ValueError(f"engine={engine} has no {', '.join(lacking)}")


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

    @property
    def end(self) -> int:
        """The id that ends an assistant's turn."""
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

    async def lens(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[Sample]:
        """What each layer would say along a completion, a sample a layer, first to last: at each place the token that
        it finds likeliest behind the completion's tokens before. Log-probabilities are the layer's own."""
        ...

    def load(self, path: str) -> None:
        """Take the weights of the policy folder `path` in place, and forget what was cached for the old ones."""
        ...

    async def sleep(self) -> None:
        """Let go of what memory can be let go of until the next request, so that a trainer can have it."""
        ...

    def close(self) -> None: ...


_KINDS = ("calls", "prompt", "sampled", "scored")


class Meter:
    """What was asked of engines: requests, and tokens of prompts, of completions sampled and of completions scored; and
    those that temporary adapters were trained on, where there were any."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, role: str, **numbers: int) -> None:
        """Add what one request, or several alike, cost the model in this role, as in calls=1."""
        for kind, number in numbers.items():
            self._counts[kind] += number
            if role != "policy":
                self._counts[f"{kind}@{role}"] += number

    @property
    def calls(self) -> int:
        """Requests since the last `take`."""
        return self._counts["calls"]

    def take(self) -> dict[str, int]:
        """The counts so far, which then start again from zero: `calls`, `prompt`, `sampled`, `scored` and, where there
        is any, `tuned` of all roles together, and `KIND@ROLE` of each role but the policy."""
        taken = dict.fromkeys(_KINDS, 0) | dict(self._counts)
        self._counts.clear()
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
    others: Callable[[str], Policy] | None = field(default=None, repr=False)  # the run's policy in another role
    _calls: Counter[str] = field(default_factory=Counter, repr=False)  # by role, in this scope

    def for_problem(self, problem: Problem, *scope: str | int) -> Policy:
        """The same policy in the scope of one problem, its calls counted from zero."""
        return replace(self, scope=(*self.scope, *scope, problem.id), _calls=Counter())

    def on(self, role: str) -> Policy:
        """The run's policy in another role, at that role's own version, with the same problem, scope and meter.

        Calls are counted for each role and scope, so that two ways to the same role draw different seeds. Raises
        ValueError for a role that the method does not have.
        """
        if role == self.role:
            return self
        if self.others is None:
            raise ValueError(f"there is no policy in the role {role!r}")
        found = self.others(role)
        return replace(found, scope=self.scope, meter=self.meter, _calls=self._calls)

    def through(self, engine: Engine, role: str) -> Policy:
        """Another model, e.g. a judge's, with the same seed, scope and meter."""
        return replace(self, engine=engine, role=role)

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
        media: Sequence[str] = (),
        adapter: Tuning | None = None,
        hook: Hook | None = None,
    ) -> list[Sample]:
        """n completions of one prompt, in the order of their seeds. The options are those of a Request.

        An adapter is trained once for the n of them, and the meter counts the tokens that this reads as `tuned`.

        Raises ValueError when the prompt leaves no room for a single token in the model's window.
        """
        ids = tuple(self.render(prompt))
        limit = self._limit(ids, max_tokens)
        requests = []
        for _ in range(n):
            seed = seeds.derive(self.seed, self.role, *self.scope, self._calls[self.role])
            self._calls[self.role] += 1
            requests.append(
                Request(ids, limit, seed, temperature, top_p, top_k, tuple(stop), tuple(media), adapter, hook)
            )
        samples = await asyncio.gather(*map(self.engine.sample, requests))
        for sample in samples:
            sample.role, sample.version = self.role, self.version
        sampled = sum(len(sample.completion_ids) for sample in samples)
        self.meter.count(self.role, calls=n, prompt=n * len(ids), sampled=sampled)
        if adapter:
            self.meter.count(self.role, tuned=adapter.tokens)
        return samples

    async def beam(self, prompt: Prompt, width: int, *, max_tokens: int | None = None) -> Sample:
        """The completion that beam search finds, as `Engine.beam` says. Raises ValueError as `sample` does.

        The meter counts the tokens of the completion found, not those of the beams that were left.
        """
        ids = self.render(prompt)
        sample = await self.engine.beam(ids, width, self._limit(ids, max_tokens))
        sample.role, sample.version = self.role, self.version
        self.meter.count(self.role, calls=1, prompt=len(ids), sampled=len(sample.completion_ids))
        return sample

    async def logprobs(self, prompt: Prompt, completion_ids: Sequence[int]) -> list[float]:
        """log pi of each token of a completion, in nats at temperature 1."""
        ids = self.render(prompt)
        self.meter.count(self.role, calls=1, prompt=len(ids), scored=len(completion_ids))
        return await self.engine.logprobs(ids, completion_ids)

    async def lens(self, prompt: Prompt, completion_ids: Sequence[int]) -> list[Sample]:
        """What each layer would say along a completion, as `Engine.lens` says."""
        ids = self.render(prompt)
        self.meter.count(self.role, calls=1, prompt=len(ids), scored=len(completion_ids))
        samples = await self.engine.lens(ids, completion_ids)
        for sample in samples:
            sample.role, sample.version = self.role, self.version
        return samples

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
