"""The policy: solvers ask it for samples and log-probabilities.

A solver is a coroutine for one problem; thousands run at once. Each awaits the policy. The policy passes requests on to
an engine, and the engine answers all waiting requests in one batch.
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
from selfimprove.types import Array, Message, Problem, Sample

if TYPE_CHECKING:
    from selfimprove.policy.hooks import Hook

Prompt = str | list[Message] | Sequence[int]  # text, chat messages, or token ids
Base = tuple[str, tuple[str, ...], tuple[int, ...]]  # adapter, media, prompt ids: with the weights, these fix the cache


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
    """A request to an engine for one completion of `prompt_ids`.

    temperature 0 is greedy; top_k 0 and top_p 1 truncate nothing. Sampling stops after the end token, at `max_tokens`,
    or as soon as the completion's text contains one of `stop`, which stays in ids and text.

    The answer depends on the request and the weights alone. `media` are digests of pictures or arrays in the prompt,
    `adapter` is trained for this request and forgotten after it, and `hook` acts inside the decoder. `array` is the
    problem's. An engine raises ValueError for a feature that it lacks.
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
    array: Array | None = None

    @property
    def base(self) -> Base:
        """All that the prompt's keys and values depend on beside the weights. It is the key of every cache."""
        return self.adapter.name if self.adapter else "", self.media, self.prompt_ids


def plain(prompt_ids: Sequence[int]) -> Base:
    """The base of a request without media or an adapter."""
    return "", (), tuple(prompt_ids)


def require_plain(request: Request, engine: str) -> None:
    """Raises ValueError if a request has media, an adapter, a hook or an array, for an `engine` without them."""
    features = {"media": request.media, "adapter": request.adapter, "hook": request.hook, "array": request.array}
    if lacking := [name for name, value in features.items() if value]:
        raise ValueError(f"engine={engine} has no {', '.join(lacking)}")


def require_room(request: Request, window: int) -> None:
    """Raises ValueError if a request does not fit the model's window of `window` tokens, or has no prompt."""
    if not request.prompt_ids:
        raise ValueError("the prompt is empty: the model needs at least one token to start from")
    if request.max_tokens < 1 or len(request.prompt_ids) + request.max_tokens > window:
        raise ValueError(
            f"{len(request.prompt_ids)} prompt tokens and max_tokens={request.max_tokens} do not fit the window of "
            f"{window}"
        )


def require_fit(prompt_ids: Sequence[int], completion_ids: Sequence[int], window: int) -> None:
    """Raises ValueError if a completion cannot be scored: it has no prompt, or is longer than the window."""
    if not prompt_ids or len(prompt_ids) + len(completion_ids) > window:
        raise ValueError(f"{len(prompt_ids)} + {len(completion_ids)} tokens: need 1 to {window}, with a prompt")


class Engine(Protocol):
    """Answers requests for completions and log-probabilities, in batches. All calls come from one event loop."""

    max_length: int  # tokens of prompt and completion together

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt, by the chat template if there is one."""
        ...

    def turn(self, text: str, ended: bool) -> list[int]:
        """The ids that continue a dialogue after an assistant's turn.

        They close that turn (unless it `ended` with its end token), add `text` as the user's turn, and open the
        assistant's next one.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text inside an assistant's open turn. No special token is read in it."""
        ...

    @property
    def end(self) -> int:
        """The id that ends an assistant's turn."""
        ...

    async def sample(self, request: Request) -> Sample:
        """One completion. It depends on the weights and the request, not on other requests in flight."""
        ...

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """log pi of each completion token, in nats at temperature 1, shape (len(completion_ids),)."""
        ...

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        """Beam search: the finished completion with the highest mean log-probability a token."""
        ...

    async def lens(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
        """What each layer would say along a completion, a sample a layer, first to last: at each place the token that
        it finds likeliest behind the completion's tokens before. Log-probabilities are the layer's own.

        With `heads`, pairs (layer, head) from 0: a sample for each of them instead, which the whole model would say if
        this were the only attention head of its layer."""
        ...

    def load(self, path: str) -> None:
        """Replace the weights by those in the policy folder `path`, and empty the caches."""
        ...

    async def sleep(self) -> None:
        """Free as much memory as possible until the next request, so that a trainer can use it."""
        ...

    def close(self) -> None: ...


_KINDS = ("calls", "prompt", "sampled", "scored")


class Meter:
    """Counts requests to engines, and the tokens of prompts, of sampled completions and of scored completions. Tokens
    that temporary adapters were trained on are counted if there were any."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def count(self, role: str, **numbers: int) -> None:
        """Add the cost of one request, or of several alike, to the model in this role, as in calls=1."""
        for kind, number in numbers.items():
            self._counts[kind] += number
            if role != "policy":
                self._counts[f"{kind}@{role}"] += number

    @property
    def calls(self) -> int:
        """Requests since the last `take`."""
        return self._counts["calls"]

    def take(self) -> dict[str, int]:
        """Return the counts so far and reset them to zero.

        `calls`, `prompt`, `sampled`, `scored` and, if there is any, `tuned` are totals over all roles; `KIND@ROLE` is
        one role's count. The policy has none of its own.
        """
        taken = dict.fromkeys(_KINDS, 0) | dict(self._counts)
        self._counts.clear()
        return taken


@dataclass
class Policy:
    """The model at one version, as one solver sees it. It renders prompts, derives seeds and stamps versions.

    Make one for each problem with `for_problem`. A problem's samples then depend only on the run's seed, the round, the
    problem and the order of its own calls, not on other problems.
    """

    engine: Engine
    seed: int
    version: int = 0
    role: str = "policy"
    max_tokens: int = 256  # default for a sample, from the model's config
    scope: tuple[str | int, ...] = ()
    meter: Meter = field(default_factory=Meter)  # shared by all policies made from this one
    others: Callable[[str], Policy] | None = field(default=None, repr=False)  # role -> the run's policy in that role
    array: Array | None = field(default=None, repr=False)  # of the problem; it goes with every request for samples
    _calls: Counter[str] = field(default_factory=Counter, repr=False)  # by role, in this scope

    def for_problem(self, problem: Problem, *scope: str | int) -> Policy:
        """The same policy in the scope of one problem. Its calls are counted from zero."""
        return replace(self, scope=(*self.scope, *scope, problem.id), array=problem.array, _calls=Counter())

    def on(self, role: str) -> Policy:
        """The run's policy in another role, at that role's own version, with the same problem, scope and meter.

        Calls are counted by role and scope, so repeated `on(role)` never reuses a seed. Raises ValueError if the
        method has no such role.
        """
        if role == self.role:
            return self
        if self.others is None:
            raise ValueError(f"there is no policy in the role {role!r}")
        return replace(self.others(role), scope=self.scope, array=self.array, meter=self.meter, _calls=self._calls)

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
        """n completions of one prompt, in the order of their seeds. `Request` explains the options.

        An adapter is trained once for the n of them, and the meter counts the tokens that this reads as `tuned`.

        Raises ValueError if the prompt leaves no room for a token in the model's window.
        """
        ids = tuple(self.render(prompt))
        limit = self._limit(ids, max_tokens)
        requests = []
        for _ in range(n):
            seed = seeds.derive(self.seed, self.role, *self.scope, self._calls[self.role])
            self._calls[self.role] += 1
            how = (temperature, top_p, top_k, tuple(stop), tuple(media), adapter, hook, self.array)
            requests.append(Request(ids, limit, seed, *how))
        samples = await asyncio.gather(*map(self.engine.sample, requests))
        for sample in samples:
            sample.role, sample.version = self.role, self.version
        sampled = sum(len(sample.completion_ids) for sample in samples)
        self.meter.count(self.role, calls=n, prompt=n * len(ids), sampled=sampled)
        if adapter:
            self.meter.count(self.role, tuned=adapter.tokens)
        return samples

    async def beam(self, prompt: Prompt, width: int, *, max_tokens: int | None = None) -> Sample:
        """Beam search, as in `Engine.beam`. Raises ValueError as `sample` does.

        The meter counts the tokens of the returned completion, not those of dropped beams.
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

    async def lens(
        self, prompt: Prompt, completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
        """What each layer, or the model with one head of a layer, would say along a completion, as `Engine.lens`."""
        ids = self.render(prompt)
        self.meter.count(self.role, calls=1, prompt=len(ids), scored=len(completion_ids))
        samples = await self.engine.lens(ids, completion_ids, heads)
        for sample in samples:
            sample.role, sample.version = self.role, self.version
        return samples

    def _limit(self, ids: Sequence[int], max_tokens: int | None) -> int:
        room = self.engine.max_length - len(ids)
        if room < 1:
            raise ValueError(f"the prompt has {len(ids)} tokens and the model's window is {self.engine.max_length}")
        return min(max_tokens or self.max_tokens, room)

    def render(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt. Ids pass through unchanged."""
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], dict)):
            return self.engine.render(prompt)  # type: ignore[arg-type]
        return list(prompt)  # type: ignore[arg-type]

    def turn(self, text: str, ended: bool) -> list[int]:
        """The ids of a user's turn after an assistant's, as in `Engine.turn`."""
        return self.engine.turn(text, ended)

    def encode(self, text: str) -> list[int]:
        """The ids of a text inside an assistant's open turn."""
        return self.engine.encode(text)
