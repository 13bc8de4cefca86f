"""The transformers engine: continuous batching in one process, on a CPU or one accelerator.

Any number of coroutines make requests. A task, the pump, runs while there is work. In each turn it lets the coroutines
make their requests, prefills waiting prompts into free slots of a key-value cache, and decodes one token for every
slot. There are no threads and no timers. So the order of events alone decides what is batched together, and a
request's draws depend on its seed alone.

The cache has one slot a row and is written in place: row i's token at position p is in column p. When a row finishes,
the last row takes its slot. So the live slots are always the first ones, and a step reads a view and copies nothing. A
prompt's last token is not prefilled but decoded, so that one piece of code gives every sampled token. Requests for one
prompt share its prefill, even with a row that has begun.

hf_reader.py runs the model on whole sequences, and runs a prefix that several of them share once. The shared prefixes
are forgotten when the work ends and when the weights change. hf_queues.py has the requests that sample nothing.

A request with an adapter waits until the adapter is trained (tune.py). It is then decoded in one batch with others. A
prefix that was read with an adapter is not shared.

Not supported: models with layers other than full or sliding-window attention.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from selfimprove.errors import ConfigError
from selfimprove.policy import Base, Request, chat, models, require_fit, require_plain, require_room
from selfimprove.policy.hf_queues import Beams, Looks, Scores
from selfimprove.policy.hf_reader import Read, Reader, Stats, attention_windows, end_tokens, pad, pieces
from selfimprove.policy.hooks import Hook, Rows
from selfimprove.policy.lens import require_head
from selfimprove.policy.sampling import Settings, choose
from selfimprove.policy.slots import GROUPED, Prefixes, Slots
from selfimprove.policy.tune import Adapters
from selfimprove.types import Sample

SCORE_PART = 4  # while all slots are busy, scoring waits for max_batch / SCORE_PART requests
SETTLED = 8  # after so many turns of the event loop without a new request, none is about to come
_Answer = TypeVar("_Answer")


@dataclass(eq=False, slots=True)
class _Row:
    """A sampling request, waiting or in a slot."""

    request: Request
    future: asyncio.Future[Sample]
    watch: frozenset[int]  # the tokens that can complete a stop string
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    note: dict[str, Any] = field(default_factory=dict)  # what its hook keeps
    before: torch.Tensor | None = None  # hidden states of the prompt without its last token, shape (tokens, width)
    states: list[torch.Tensor] = field(default_factory=list)  # of the tokens behind, each (1, width)

    @property
    def adapter(self) -> str:
        """The name of its adapter; "" if it has none."""
        return self.request.adapter.name if self.request.adapter else ""

    @property
    def token(self) -> int:
        """The newest token, which the model reads next."""
        return self.ids[-1] if self.ids else self.request.prompt_ids[-1]

    @property
    def position(self) -> int:
        return len(self.request.prompt_ids) + len(self.ids) - 1


class TransformersEngine(chat.Speaker):
    """The engine (selfimprove.policy.Engine) that runs a model with transformers.

    `path` is a model folder, an adapter folder or a hub id. `max_batch` is the number of requests that are decoded at
    once. `max_length` is the window in tokens (None: the model's own). The cache takes at most max_batch x max_length
    tokens, and KEPT_BYTES (slots.py) for shared prefixes.
    Raises ConfigError if the model cannot be loaded, or has layers that the cache cannot hold.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        max_batch: int = 64,
        max_length: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.base = models.adapter_base(path) if models.is_adapter(path) else path
        self.tokenizer: Any = models.load_tokenizer(path, trust_remote_code=trust_remote_code)
        self.model: Any = models.load_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        self.model.set_attn_implementation(GROUPED)
        self.model.requires_grad_(False)
        self.device: torch.device = self.model.device
        self.trust_remote_code = trust_remote_code
        self.max_batch = max_batch
        config = self.model.config.get_text_config(decoder=True)
        self.max_length = min(max_length or config.max_position_embeddings, config.max_position_embeddings)
        self.vocabulary: int = config.vocab_size
        self.eos = end_tokens(self.model, self.tokenizer)
        self.stats = Stats()
        self._watches: dict[tuple[str, ...], frozenset[int]] = {}
        self._pieces: list[str] = []
        self._pump: asyncio.Task[None] | None = None
        self._arrivals = 0
        self._open: set[asyncio.Future[Any]] = set()  # answers that somebody awaits
        self._groups: dict[Base, list[_Row]] = {}  # waiting rows
        self._queue: list[tuple[int, int, Base]] = []  # a heap of the keys of _groups, longest prompt first
        self._untuned: dict[str, list[tuple[int, int, Base]]] = {}  # adapter -> entries of _queue that wait for it
        self._rows: list[_Row] = []  # row i is in slot i
        self._settings: Settings | None = None  # of _rows; None after they changed
        self._cache = Slots(max_batch)
        self._adapters = Adapters(self.model, self.vocabulary)
        windows = attention_windows(path, config)
        self._reader = Reader(self.model, self._adapters, windows, max_batch, self.max_length, self.stats)
        self._scores = Scores(self._reader, self.vocabulary)
        self._looks = Looks(self._reader)
        self._beams = Beams(self._reader, self.eos)
        self._asleep = False

    @property
    def memory(self) -> int:
        """Bytes of the weights, and of adapters and the cache at the largest that each has been."""
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in self.model.parameters())
        return weights + self._adapters.peak + max(self.stats.cache_bytes, self._cache.bytes)

    # What a policy calls

    async def sample(self, request: Request) -> Sample:
        """One completion.

        Raises ValueError for a request that does not fit the window or has media, and what the model or the request's
        hook raises.
        """
        require_plain(replace(request, hook=None, adapter=None), "transformers")
        require_room(request, self.max_length)
        row = _Row(request, asyncio.get_running_loop().create_future(), self._watch(request.stop))
        name = row.adapter
        tuned = self._adapters.ask(request.adapter) if request.adapter else True
        if request.base not in self._groups:
            self._groups[request.base] = []
            entry = -len(request.prompt_ids), self._arrivals, request.base
            if tuned:
                heapq.heappush(self._queue, entry)
            else:
                self._untuned.setdefault(name, []).append(entry)
        self._groups[request.base].append(row)
        self.stats.waiting += 1
        try:
            return await self._answer(row.future)
        except asyncio.CancelledError:
            if row in (group := self._groups.get(request.base, [])):
                group.remove(row)
                self.stats.waiting -= 1
            raise
        finally:
            if name and self._adapters.release(name):
                for *_, base in self._untuned.pop(name, []):
                    self._groups.pop(base, None)

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Log pi of each completion token, in nats at temperature 1. Raises ValueError if too long."""
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        return await self._answer(self._scores.add(prompt_ids, completion_ids, self._arrivals))

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        """The completion with the highest mean log-probability a token that transformers' beam search finds.

        The search goes on until no beam is likely to do better. If it stopped at `width` finished beams, it would
        favour short completions. Raises ValueError for a request that does not fit the window.
        """
        if not prompt_ids or max_tokens < 1 or len(prompt_ids) + max_tokens > self.max_length:
            raise ValueError(f"{len(prompt_ids)} + {max_tokens} tokens: need 2 to {self.max_length}, with a prompt")
        ids = await self._answer(self._beams.add(prompt_ids, width, max_tokens))
        return self._undrawn(prompt_ids, ids, await self.logprobs(prompt_ids, ids))

    def _undrawn(self, prompt_ids: Sequence[int], ids: list[int], logprobs: list[float]) -> Sample:
        """The sample of a completion that no seed has drawn."""
        ended = ids[-1] in self.eos
        return Sample(
            prompt_ids=list(prompt_ids),
            completion_ids=ids,
            logprobs=logprobs,
            text=self._text(ids[:-1] if ended else ids),
            finish="stop" if ended else "length",
            seed=0,
            temperature=0.0,
        )

    async def lens(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
        """What each layer, or the model with one head of a layer, would say (`Engine.lens`).

        Raises ValueError if prompt and completion do not fit the window, for a model whose layers cannot be read, and
        for a head that it does not have.
        """
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        layers = await self._answer(self._looks.add(prompt_ids, completion_ids, tuple(heads)))
        return [self._undrawn(prompt_ids, *layer) for layer in layers]

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint folder, or of an adapter folder, which is merged into this engine's base.

        Raises RuntimeError while requests are in flight, and ConfigError for an adapter of another base or for weights
        of another architecture. The old weights stay in either case.
        """
        self._require_idle()
        fresh = models.load_model(
            path, self.base, dtype=self.model.dtype, device="cpu", trust_remote_code=self.trust_remote_code
        )
        weights, old = fresh.state_dict(), self.model.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in old.items()}:
            raise ConfigError(
                f"{path}: its weights are not of the architecture of {self.base}, so they cannot replace it"
            )
        self.model.load_state_dict(weights)
        self._empty()

    async def sleep(self) -> None:
        """Empty the cache, and move the weights to the host's memory until the next request.

        Raises RuntimeError while requests are in flight.
        """
        self._require_idle()
        self.model.to("cpu")
        self._asleep = True
        self._empty()

    def close(self) -> None:
        """Free the weights and the cache. The engine cannot be used after that."""
        self.model = self._reader.model = None
        self._adapters = self._reader.adapters = Adapters(None, self.vocabulary)
        self._empty()

    def _require_idle(self) -> None:
        if self._busy:
            raise RuntimeError("the weights cannot change or sleep while requests are in flight")

    @property
    def _busy(self) -> bool:
        return bool(self._rows or self._groups or self._scores or self._beams or self._looks)

    def _empty(self) -> None:
        """Forget all keys and values, and free their memory."""
        self.stats.cache_bytes = max(self.stats.cache_bytes, self._cache.bytes)
        self._cache, self._reader.known = Slots(self.max_batch), Prefixes()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # The pump

    async def _answer(self, future: asyncio.Future[_Answer]) -> _Answer:
        self._arrivals += 1
        self._open.add(future)
        if self._asleep:
            self.model.to(self.device)
            self._asleep = False
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._run())
        try:
            return await future
        finally:
            self._open.discard(future)

    async def _run(self) -> None:
        settle = True
        try:
            while True:
                await (self._settle() if settle else asyncio.sleep(0))
                if not self._busy:
                    self._reader.known = Prefixes()  # so that later requests do not depend on these ones
                    return
                self._reader.known.tidy()
                with torch.inference_mode():
                    settle = self._score()
                    settle |= self._beams.step()
                    settle |= self._looks.step()
                    self._tune()
                    self._admit()
                    settle |= self._decode()
        except BaseException as error:  # nobody awaits the pump, so everybody who waits for an answer is told
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    async def _settle(self) -> None:
        """Let coroutines make their requests until no new one comes."""
        quiet = 0
        while quiet < SETTLED:
            before = self._arrivals
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._arrivals == before else 0

    def _fail(self, error: BaseException) -> None:
        self._groups, self._queue, self._untuned, self._rows = {}, [], {}, []
        self._scores = Scores(self._reader, self.vocabulary)
        self._looks, self._beams = Looks(self._reader), Beams(self._reader, self.eos)
        self._settings = None
        self._empty()
        self.stats.waiting = self.stats.running = 0
        for future in self._open:
            if future.done():
                continue
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()

    # Adapters

    def _tune(self) -> None:
        """Train adapters that requests wait for, and queue the requests whose adapter is trained."""
        for name in self._adapters.train(idle=not (self._rows or self._queue)):
            for entry in self._untuned.pop(name, []):
                heapq.heappush(self._queue, entry)

    # Sampling

    def _admit(self) -> None:
        """Move waiting rows into free slots, longest prompts first.

        The longest are the furthest on in their problem, and prompts of similar length need little padding. Prefill of
        a few rows is expensive, so an eighth of the slots must be free.
        """
        free = self.max_batch - len(self._rows)
        if not self._queue or free * 8 < self.max_batch:
            return
        live = {row.request.base: slot for slot, row in enumerate(self._rows)}
        fresh: dict[Base, list[int]] = {}  # prompt -> its new slots
        while self._queue and free:
            base = self._queue[0][-1]
            group = self._groups[base]
            taken, rest = group[:free], group[free:]
            if rest:
                self._groups[base] = rest
            else:
                heapq.heappop(self._queue)
                del self._groups[base]
            slots = list(range(len(self._rows), len(self._rows) + len(taken)))
            self._rows += taken
            free -= len(taken)
            if slots and (length := len(base[-1])) > 1:
                if base in live:
                    self._cache.copy([live[base]] * len(slots), slots, length - 1)
                else:
                    fresh[base] = slots
        self.stats.waiting -= len(self._rows) - self.stats.running
        self.stats.running = len(self._rows)
        self.stats.peak_rows = max(self.stats.peak_rows, len(self._rows))
        self._settings = None
        self._prefill(fresh)

    def _prefill(self, prompts: dict[Base, list[int]]) -> None:
        """Fill the cache with all but the last token of each prompt.

        No request here has media, so keys and values depend on ids and adapter alone. Prefixes are shared between
        prompts without an adapter.
        """
        starts = {(adapter, ids[:-1]): slots for (adapter, _, ids), slots in prompts.items()}
        self._reader.share([ids for adapter, ids in starts if not adapter])
        reads = [Read(ids, 0 if adapter else len(ids), adapter) for adapter, ids in starts]
        for batch in self._reader.batches(reads):
            _, layers = self._reader.read(batch, self.model.base_model)
            source = [i for i, read in enumerate(batch) for _ in starts[read.adapter, read.ids]]
            slots = [slot for read in batch for slot in starts[read.adapter, read.ids]]
            self._cache.fill(layers, source, slots, max(len(read.ids) for read in batch))

    def _decode(self) -> bool:
        """Sample one token for every row; True if a row finished."""
        rows = self._rows
        if any(row.future.done() for row in rows):  # cancelled
            self._release([i for i, row in enumerate(rows) if row.future.done()])
        if not rows:
            return True
        if self._settings is None:
            self._settings = Settings.of([row.request for row in rows], self.vocabulary, self.device)
        inputs = torch.tensor([[row.token for row in rows], [row.position for row in rows]]).to(self.device)
        positions = inputs[1, :, None]
        self._cache.aim(positions, max(row.position for row in rows) + 1)
        with self._adapters.on([row.adapter for row in rows]), self._keeping(rows):
            output = self.model(
                input_ids=inputs[0, :, None],
                position_ids=positions,
                attention_mask=self._reader.masks(positions, self._cache.width),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].float()
        counts = np.array([len(row.ids) for row in rows])
        hooked = self._hooked(logits) if any(row.request.hook for row in rows) else logits
        tokens, logprobs = choose(logits, self._settings, counts, hooked)
        done = []
        # One transfer from the device a step. Token ids are exact in float64.
        drawn = torch.stack((tokens.double(), logprobs.double())).tolist()
        for i, (row, token, logprob) in enumerate(zip(rows, *drawn, strict=True)):
            row.ids.append(int(token))
            row.logprobs.append(logprob)
            if self._ended(row):
                done.append(i)
                if not row.future.done():
                    row.future.set_result(self._sample_of(row))
        self.stats.steps += 1
        self.stats.sampled_tokens += len(rows)
        if done:
            # A completion that a stop string ended is a step of a search: later requests go on from it or ask about it.
            cut = [i for i in done if rows[i].request.stop and not rows[i].adapter]
            steps = [(i, [*rows[i].request.prompt_ids, *rows[i].ids[:-1]]) for i in cut]
            self._reader.known.keep(self._cache.buffers, steps)
            self._release(done)
        return bool(done)

    # Hooks

    def _hooked(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits to draw from, after the rows' hooks. Equal hooks are called together."""
        groups: dict[Hook, list[int]] = {}
        for i, row in enumerate(self._rows):
            if row.request.hook is not None:
                groups.setdefault(row.request.hook, []).append(i)
        found = logits.clone()
        for hook, places in groups.items():
            rows = [self._rows[i] for i in places]
            ids = [[*row.request.prompt_ids, *row.ids] for row in rows]
            found[places] = hook.logits(
                Rows(
                    logits[places],
                    ids,
                    [len(row.ids) for row in rows],
                    [row.request.temperature for row in rows],
                    [row.request.hook for row in rows if row.request.hook is not None],
                    [row.note for row in rows],
                    partial(self._hidden, rows, logits[places]),
                    self._reader.head,
                )
            )
        return found

    @contextmanager
    def _keeping(self, rows: Sequence[_Row]) -> Iterator[None]:
        """While the model decodes a token, keep its last hidden state for the rows whose hook reads them."""
        readers = [i for i, row in enumerate(rows) if row.request.hook is not None and row.request.hook.reads]
        if not readers:
            yield
            return

        def keep(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
            last = inputs[0][:, -1]
            for i in readers:
                rows[i].states.append(last[i : i + 1])

        handle = self.model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def _hidden(self, rows: Sequence[_Row], logits: torch.Tensor, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The last layer's hidden states of rows `numbers`, each of shape (tokens, width).

        Raises ValueError if the hook does not say that it reads them, or if the model's head does not turn them into
        the rows' logits. Some models scale their logits behind the head.
        """
        if not numbers:
            return []
        chosen = [rows[i] for i in numbers]
        if not all(row.states for row in chosen):
            raise ValueError("hidden states: this hook's `reads` is False")
        last = torch.cat([row.states[-1] for row in chosen])
        require_head(self.model, self._reader.head(last), logits[list(numbers)])
        before = self._prompt_states(chosen)
        return [torch.cat([states, *row.states]) for states, row in zip(before, chosen, strict=True)]

    def _prompt_states(self, chosen: Sequence[_Row]) -> list[torch.Tensor]:
        """Hidden states of each row's prompt without its last token. A prompt is read once while it is in a slot."""
        known = {row.request.base: row.before for row in self._rows if row.before is not None}
        unread = list({row.request.base: row for row in chosen if row.request.base not in known}.values())
        if unread:
            prompts = [row.request.prompt_ids for row in unread]
            with self._adapters.on([row.adapter for row in unread]):
                output = self.model.base_model(
                    input_ids=pad(prompts, self.device),  # padding is on the right, where no token sees it
                    use_cache=False,
                )
            for row, states in zip(unread, output.last_hidden_state, strict=True):
                known[row.request.base] = states[: len(row.request.prompt_ids) - 1]
        for row in chosen:
            row.before = known[row.request.base]
        return [known[row.request.base] for row in chosen]

    def _ended(self, row: _Row) -> bool:
        token, request = row.ids[-1], row.request
        if token in self.eos or (token in row.watch and self._stopped(row)):
            row.finish = "stop"
        elif len(row.ids) == request.max_tokens:
            row.finish = "length"
        return bool(row.finish)

    def _stopped(self, row: _Row) -> bool:
        """Whether the newest token completed a stop string.

        Each token adds at least a byte, as a rule. So it is enough to look at a short tail of the completion.
        """
        tail = max(len(stop.encode()) for stop in row.request.stop) + 4
        text = self._text(row.ids[-tail:])
        return any(stop in text for stop in row.request.stop)

    def _sample_of(self, row: _Row) -> Sample:
        request = row.request
        self.stats.finished += 1
        self.stats.prompt_tokens += len(request.prompt_ids)
        end = len(row.ids) - (row.ids[-1] in self.eos)
        return Sample(
            prompt_ids=list(request.prompt_ids),
            completion_ids=row.ids,
            logprobs=row.logprobs,
            text=self._text(row.ids[:end]),
            finish="stop" if row.finish == "stop" else "length",
            seed=request.seed,
            temperature=request.temperature,
        )

    def _release(self, done: list[int]) -> None:
        """Free the slots of rows that are done: rows from the end take their places."""
        gone = set(done)
        left = len(self._rows) - len(done)
        holes = [i for i in done if i < left]
        movers = [i for i in range(left, len(self._rows)) if i not in gone]
        if movers:
            self._cache.copy(movers, holes, max(self._rows[i].position for i in movers) + 1)
        for mover, hole in zip(movers, holes, strict=True):
            self._rows[hole] = self._rows[mover]
        del self._rows[left:]
        self.stats.running = left
        self._settings = None

    # Stop strings

    def _text(self, ids: list[int]) -> str:
        return chat.text(self.tokenizer, ids)

    def _watch(self, stop: tuple[str, ...]) -> frozenset[int]:
        """The tokens that can complete a stop string.

        Their text has a stop string's last character, or a part of a character. Only after such a token has the
        completion's text to be searched.
        """
        if stop not in self._watches:
            if stop and not self._pieces:
                self._pieces = pieces(self.tokenizer, self.vocabulary)
            last = {text[-1] for text in stop} | {"\N{REPLACEMENT CHARACTER}"}
            self._watches[stop] = frozenset(i for i, p in enumerate(self._pieces) if stop and not last.isdisjoint(p))
        return self._watches[stop]

    # Scoring

    def _score(self) -> bool:
        """Score one batch of what waits; True if there was any.

        While all slots are busy there is time to wait for more requests, which makes better batches.
        """
        if self._queue and len(self._scores) * SCORE_PART < self.max_batch:
            return False
        return self._scores.step()
