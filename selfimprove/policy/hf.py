"""The transformers engine: continuous batching in one process, on a CPU or one accelerator.

Requests come from any number of coroutines. A pump task, alive while there is work, lets them all speak, prefills
waiting prompts into free slots of a key-value cache, and decodes one token for every slot at a time. No threads and no
timers: what is batched with what follows from the order of events alone, and what a request draws from its seed alone.

The cache holds a slot a row, written in place: row i's token at position p is in column p. A row that finishes is
replaced by the last row, so the live slots are always a prefix and a step reads a view, never a copy. A prompt's last
token is not prefilled but decoded, so that every sampled token comes out of one code path; requests for one prompt
share its prefill, also with a row that is already under way.

What several requests start with is read once (`Prefixes` in slots.py): starts that waiting requests have in common, and
steps, that is completions that a stop string cut, behind which a search goes on and asks for opinions. It is forgotten
when the work ends and when the weights change.

A request with an adapter waits until that is trained (policy/tune.py), and is then decoded in one batch with others.
What was read with an adapter is not shared with requests that have another.

Not supported: models whose layers are not all full or sliding-window attention.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import DynamicCache

from selfimprove.errors import ConfigError
from selfimprove.policy import Base, Request, chat, models, require_fit, require_plain, require_room
from selfimprove.policy.hooks import Hook, Rows
from selfimprove.policy.lens import Layer, lens, require_head
from selfimprove.policy.sampling import Settings, choose
from selfimprove.policy.slots import GROUPED, Pair, Prefixes, Slots
from selfimprove.policy.tune import Adapters
from selfimprove.types import Sample

PREFILL_TOKENS = 8192  # padded tokens in one forward without sampling: bounds activations
LOOK_TOKENS = 2048  # padded tokens in one forward that keeps the states of all layers
LOGIT_ENTRIES = 2**26  # tokens x vocabulary in one scoring batch: 256 MiB in float32
SHARED = 32  # tokens that requests must have in common, beyond what is known, before reading them once pays
SCORE_PART = 4  # while slots are full, scores wait until they are this part of max_batch
SETTLED = 8  # turns of the event loop without a new request, after which nobody is about to speak
_Answer = TypeVar("_Answer")


@dataclass
class Stats:
    """Counters since the engine was made; `running` and `waiting` are now."""

    prompt_tokens: int = 0  # of finished requests
    sampled_tokens: int = 0
    prefilled_tokens: int = 0  # what prefill really read: shared prompts once
    finished: int = 0
    waiting: int = 0
    running: int = 0
    peak_rows: int = 0
    steps: int = 0
    cache_bytes: int = 0  # of the keys and values that were let go of, at their largest


@dataclass(eq=False, slots=True)
class _Row:
    """A sampling request, waiting or in a slot."""

    request: Request
    future: asyncio.Future[Sample]
    watch: frozenset[int]  # tokens that can complete a stop string
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""
    note: dict[str, Any] = field(default_factory=dict)  # its hook's

    @property
    def adapter(self) -> str:
        """The name of its adapter; "" is none."""
        return self.request.adapter.name if self.request.adapter else ""

    @property
    def token(self) -> int:
        return self.ids[-1] if self.ids else self.request.prompt_ids[-1]

    @property
    def position(self) -> int:
        return len(self.request.prompt_ids) + len(self.ids) - 1


@dataclass(eq=False, slots=True)
class _Score:
    prompt_ids: list[int]
    completion_ids: list[int]
    future: asyncio.Future[list[float]]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids) - 1  # the last token is only predicted


@dataclass(eq=False, slots=True)
class _Read:
    """A sequence to run the model on, but for a start that is known."""

    ids: tuple[int, ...]
    most: int  # tokens that may be taken as known
    adapter: str = ""
    path: list[int] = field(default_factory=list)  # in Prefixes

    @property
    def left(self) -> int:
        return len(self.ids) - len(self.path)


@dataclass(eq=False, slots=True)
class _Look:
    prompt_ids: list[int]
    completion_ids: list[int]
    future: asyncio.Future[list[Layer]]

    @property
    def read(self) -> list[int]:
        return [*self.prompt_ids, *self.completion_ids[:-1]]


@dataclass(eq=False, slots=True)
class _Beam:
    prompt_ids: list[int]
    width: int
    max_tokens: int
    future: asyncio.Future[list[int]]

    @property
    def order(self) -> tuple[int, int, int]:
        return self.width, self.max_tokens, -len(self.prompt_ids)


class TransformersEngine(chat.Speaker):
    """Implements selfimprove.policy.Engine with transformers.

    `path` is a model folder, an adapter folder or a hub id; `max_batch` the rows in flight; `max_length` the window in
    tokens (None: the model's own). Memory for the cache is at most max_batch x max_length tokens, and
    KEPT_BYTES of slots.py for what requests have in common.
    Raises ConfigError when the model cannot be loaded or is of a kind the cache cannot hold.
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
        self.eos = _end_tokens(self.model, self.tokenizer)
        self.stats = Stats()
        self._windows = _attention_windows(path, config)
        self._watches: dict[tuple[str, ...], frozenset[int]] = {}
        self._pieces: list[str] = []
        self._pump: asyncio.Task[None] | None = None
        self._arrivals = 0
        self._open: set[asyncio.Future[Any]] = set()  # whoever awaits an answer
        self._groups: dict[Base, list[_Row]] = {}  # waiting rows
        self._queue: list[tuple[int, int, Base]] = []  # heap of the keys of _groups, longest first
        self._scores: list[tuple[int, int, _Score]] = []  # heap, longest first
        self._beams: list[_Beam] = []
        self._looks: list[_Look] = []
        self._rows: list[_Row] = []  # row i is in slot i
        self._settings: Settings | None = None  # of _rows; None when they changed
        self._cache = Slots(max_batch)
        self._known = Prefixes()
        self._adapters = Adapters(self.model, self.vocabulary)
        self._untuned: dict[str, list[tuple[int, int, Base]]] = {}  # entries of _queue to be, by the adapter they await
        self._asleep = False

    @property
    def memory(self) -> int:
        """Bytes of the weights, and of adapters and the keys and values of all slots at the largest they have been."""
        weights: int = sum(tensor.numel() * tensor.element_size() for tensor in self.model.parameters())
        return weights + self._adapters.peak + max(self.stats.cache_bytes, self._cache.bytes)

    # What a policy calls

    async def sample(self, request: Request) -> Sample:
        """One completion. Raises ValueError for a request that does not fit the window, or asks for media, and what the
        model or the request's hook raises."""
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
        """Teacher-forced log pi of each completion token, in nats at temperature 1. Raises ValueError when too long."""
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        item = _Score(list(prompt_ids), list(completion_ids), asyncio.get_running_loop().create_future())
        heapq.heappush(self._scores, (-len(item), self._arrivals, item))
        return await self._answer(item.future)

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        """The completion that transformers' beam search finds, of the highest mean log-probability a token. It goes on
        until no beam is likely to do better: stopping at `width` finished ones would favour short completions.
        Raises ValueError for a request that does not fit the window."""
        if not prompt_ids or max_tokens < 1 or len(prompt_ids) + max_tokens > self.max_length:
            raise ValueError(f"{len(prompt_ids)} + {max_tokens} tokens: need 2 to {self.max_length}, with a prompt")
        item = _Beam(list(prompt_ids), width, max_tokens, asyncio.get_running_loop().create_future())
        self._beams.append(item)
        ids = await self._answer(item.future)
        return self._found(item.prompt_ids, ids, await self.logprobs(prompt_ids, ids))

    def _found(self, prompt_ids: list[int], ids: list[int], logprobs: list[float]) -> Sample:
        """A completion that was not drawn."""
        ended = ids[-1] in self.eos
        return Sample(
            prompt_ids=prompt_ids,
            completion_ids=ids,
            logprobs=logprobs,
            text=self._text(ids[:-1] if ended else ids),
            finish="stop" if ended else "length",
            seed=0,
            temperature=0.0,
        )

    async def lens(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[Sample]:
        """As `Engine.lens` says. Raises ValueError when too long, and for a model whose layers cannot be read."""
        if not completion_ids:
            return []
        require_fit(prompt_ids, completion_ids, self.max_length)
        item = _Look(list(prompt_ids), list(completion_ids), asyncio.get_running_loop().create_future())
        self._looks.append(item)
        return [self._found(item.prompt_ids, *layer) for layer in await self._answer(item.future)]

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint folder, or of an adapter folder merged into this engine's base.

        Raises RuntimeError while requests are in flight, and ConfigError for an adapter of another base or weights of
        another architecture; the old weights stay in either case.
        """
        self._require_idle()
        fresh = models.load_model(
            path, self.base, dtype=self.model.dtype, device="cpu", trust_remote_code=self.trust_remote_code
        )
        weights, old = fresh.state_dict(), self.model.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in old.items()}:
            raise ConfigError(f"{path}: not the architecture of {self.base}, whose weights it was to replace")
        self.model.load_state_dict(weights)
        self._empty()

    async def sleep(self) -> None:
        """Empty the cache, and move the weights from an accelerator to the host's memory until the next request.

        Raises RuntimeError while requests are in flight.
        """
        self._require_idle()
        self.model.to("cpu")
        self._asleep = True
        self._empty()

    def close(self) -> None:
        """Free the weights and the cache. The engine is of no use after that."""
        self.model = None
        self._adapters = Adapters(None, self.vocabulary)
        self._empty()

    def _require_idle(self) -> None:
        if self._rows or self._groups or self._scores or self._beams or self._looks:
            raise RuntimeError("the weights can neither change nor sleep while requests are in flight")

    def _empty(self) -> None:
        """Forget keys and values, and give their memory back."""
        self.stats.cache_bytes = max(self.stats.cache_bytes, self._cache.bytes)
        self._cache, self._known = Slots(self.max_batch), Prefixes()
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
                if not (self._groups or self._scores or self._beams or self._looks or self._rows):
                    self._known = Prefixes()  # so that what a batch of requests gets does not depend on earlier ones
                    return
                self._known.tidy()
                with torch.inference_mode():
                    settle = self._score()
                    settle |= self._search()
                    settle |= self._look()
                    self._tune()
                    self._admit()
                    settle |= self._decode()
        except BaseException as error:  # every waiter learns of it; nobody awaits the pump itself
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    async def _settle(self) -> None:
        quiet = 0
        while quiet < SETTLED:
            before = self._arrivals
            await asyncio.sleep(0)
            quiet = quiet + 1 if self._arrivals == before else 0

    def _fail(self, error: BaseException) -> None:
        self._groups, self._queue, self._scores, self._beams, self._rows = {}, [], [], [], []
        self._looks, self._untuned = [], {}
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
        """Train adapters that requests wait for, and let the requests of those that are trained into the queue."""
        for name in self._adapters.train(idle=not (self._rows or self._queue)):
            for entry in self._untuned.pop(name, []):
                heapq.heappush(self._queue, entry)

    # Sampling

    def _admit(self) -> None:
        """Move waiting rows into free slots, longest prompts first: they are the furthest on, and similar lengths
        pad little. Few at a time would make prefill dear, so an eighth of the slots must be free."""
        free = self.max_batch - len(self._rows)
        if not self._queue or free * 8 < self.max_batch:
            return
        live = {row.request.base: slot for slot, row in enumerate(self._rows)}
        fresh: dict[Base, list[int]] = {}  # new slots
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
        """Fill the cache with all but the last token of each prompt. No request here has media, so that ids and adapter
        are all that keys and values depend on; starts are shared where there is no adapter."""
        starts = {(adapter, ids[:-1]): slots for (adapter, _, ids), slots in prompts.items()}
        self._share([ids for adapter, ids in starts if not adapter])
        reads = [_Read(ids, 0 if adapter else len(ids), adapter) for adapter, ids in starts]
        for batch in self._batches(reads):
            _, layers = self._read(batch, self.model.base_model)
            source = [i for i, read in enumerate(batch) for _ in starts[read.adapter, read.ids]]
            slots = [slot for read in batch for slot in starts[read.adapter, read.ids]]
            self._cache.fill(layers, source, slots, max(len(read.ids) for read in batch))

    def _share(self, sequences: list[tuple[int, ...]]) -> None:
        """Read what some sequences have in common with others once, and keep it: a system message, worked examples, the
        question that several solutions are behind. What starts share with each other comes first."""
        ordered = sorted(sequences)
        common = {_common_start(*pair) for pair in pairwise(ordered)}
        if starts := self._worth(common):
            self._share(starts)
            for batch in self._batches([_Read(start, len(start)) for start in self._worth(starts)]):
                _, layers = self._read(batch, self.model.base_model)
                self._known.keep(layers, [(i, read.ids) for i, read in enumerate(batch)])

    def _worth(self, starts: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Those of which enough is not known."""
        return [start for start in starts if len(start) >= SHARED + len(self._known.find(start))]

    def _batches(self, reads: list[_Read]) -> Iterator[list[_Read]]:
        """Batches of like work: those with most to read first, and together with none that has less than half of it."""
        for read in reads:
            read.path = self._known.find(read.ids[: read.most])
        waiting = sorted(reads, key=lambda read: (-read.left, -len(read.ids)))
        while waiting:
            longest, count, width = waiting[0].left, 0, 0
            for read in waiting[: self.max_batch]:
                width = max(width, len(read.path) + longest)
                if count and (2 * read.left < longest or (count + 1) * width > PREFILL_TOKENS):
                    break
                count += 1
            yield waiting[:count]
            waiting = waiting[count:]

    def _read(self, batch: list[_Read], model: Any, keep: bool = True) -> tuple[Any, list[Pair]]:
        """What `model` says to the tokens that are left of each sequence, None where none are, and with `keep` the keys
        and values of all. Padding is on the right, where the mask hides it."""
        starts, left = [len(read.path) for read in batch], batch[0].left
        self.stats.prefilled_tokens += sum(read.left for read in batch) if keep else 0
        ids = _pad([read.ids[start:] for read, start in zip(batch, starts, strict=True)], self.device)
        if not any(starts):
            fresh = DynamicCache() if keep else None
            with self._adapters.on([read.adapter for read in batch]):
                output = model(input_ids=ids, past_key_values=fresh, use_cache=keep)
            return output, [(keys, values) for keys, values, _ in fresh or ()]
        width = max(starts) + left
        cache = self._known.gather([read.path for read in batch], width)
        if not left:
            return None, cache.buffers
        columns = torch.tensor(starts, device=self.device)[:, None] + torch.arange(left, device=self.device)
        cache.aim(columns, width)
        with self._adapters.on([read.adapter for read in batch]):
            output = model(
                input_ids=ids,
                position_ids=columns.clamp(max=self.max_length - 1),  # padding may go beyond the window
                attention_mask=self._masks(columns, width),
                past_key_values=cache,
                use_cache=True,
            )
        return output, cache.buffers

    def _decode(self) -> bool:
        """Sample one token for every row; True when a row finished."""
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
        with self._adapters.on([row.adapter for row in rows]):
            output = self.model(
                input_ids=inputs[0, :, None],
                position_ids=positions,
                attention_mask=self._masks(positions, self._cache.width),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].float()
        counts = np.array([len(row.ids) for row in rows])
        hooked = self._hooked(logits) if any(row.request.hook for row in rows) else logits
        tokens, logprobs = choose(logits, self._settings, counts, hooked)
        done = []
        # One transfer a step: token ids are exact in float64.
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
            # What a stop string ended is a step: others go on from it, or ask about it.
            cut = [i for i in done if rows[i].request.stop and not rows[i].adapter]
            steps = [(i, [*rows[i].request.prompt_ids, *rows[i].ids[:-1]]) for i in cut]
            self._known.keep(self._cache.buffers, steps)
            self._release(done)
        return bool(done)

    # Hooks

    def _hooked(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits to draw from, where rows have hooks: equal ones are called together."""
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
                    partial(self._hidden, ids, logits[places], [row.adapter for row in rows]),
                    self._head,
                )
            )
        return found

    def _hidden(
        self, every: Sequence[Sequence[int]], logits: torch.Tensor, adapters: Sequence[str], numbers: Sequence[int]
    ) -> list[torch.Tensor]:
        """Hidden states of some rows. Raises ValueError where `_head` does not make the rows' logits of them: a model
        may scale its logits behind its head."""
        sequences = [every[i] for i in numbers]
        with self._adapters.on([adapters[i] for i in numbers]):
            output = self.model.base_model(
                input_ids=_pad(sequences, self.device),
                use_cache=False,  # padding on the right, which no token attends to
            )
        states = [output.last_hidden_state[i, : len(ids)] for i, ids in enumerate(sequences)]
        require_head(self.model, self._head(torch.stack([one[-1] for one in states])), logits[list(numbers)])
        return states

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.get_output_embeddings()(states.to(self.model.dtype)).float()
        cap = getattr(self.model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def _ended(self, row: _Row) -> bool:
        token, request = row.ids[-1], row.request
        if token in self.eos or (token in row.watch and self._stopped(row)):
            row.finish = "stop"
        elif len(row.ids) == request.max_tokens:
            row.finish = "length"
        return bool(row.finish)

    def _stopped(self, row: _Row) -> bool:
        """Whether the newest token completed a stop string: each token before it adds at least a byte, as a rule, so a
        short tail of the completion decides."""
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
        """Free slots: rows from the end take the places of those that are done."""
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

    def _masks(self, positions: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """What each token of `positions` (rows, tokens) may attend to, (rows, 1, tokens, width): columns up to its own,
        for a sliding layer the last few."""
        columns = torch.arange(width, device=self.device)
        masks = {}
        for kind, window in self._windows.items():
            seen = columns <= positions[..., None]
            if window:
                seen &= columns > positions[..., None] - window
            blocked = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            masks[kind] = blocked.masked_fill_(~seen, torch.finfo(self.model.dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    # Stop strings

    def _text(self, ids: list[int]) -> str:
        return chat.text(self.tokenizer, ids)

    def _watch(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Tokens whose text holds the last character of a stop string, or part of a character: only they can complete
        one, so only they are worth a look at the text."""
        if stop not in self._watches:
            if stop and not self._pieces:
                self._pieces = _pieces(self.tokenizer, self.vocabulary)
            last = {text[-1] for text in stop} | {"\N{REPLACEMENT CHARACTER}"}
            self._watches[stop] = frozenset(i for i, p in enumerate(self._pieces) if stop and not last.isdisjoint(p))
        return self._watches[stop]

    # Scoring

    def _score(self) -> bool:
        """Score what waits, longest first; True when there was any. While the slots are full there is time to wait for
        more, which makes better batches."""
        if self._queue and len(self._scores) * SCORE_PART < self.max_batch:
            return False
        items: dict[tuple[int, ...], list[_Score]] = {}  # by what the model has to read
        targets = 0
        while self._scores and len(items) < self.max_batch:
            item = self._scores[0][-1]
            targets += len(item.completion_ids)
            if items and targets * self.vocabulary > LOGIT_ENTRIES:
                break
            heapq.heappop(self._scores)
            if not item.future.done():  # cancelled
                items.setdefault((*item.prompt_ids, *item.completion_ids[:-1]), []).append(item)
        self._share(list(items))
        head = self.model.get_output_embeddings()
        reads = [_Read(ids, min(len(item.prompt_ids) for item in same) - 1) for ids, same in items.items()]
        for batch in self._batches(reads):
            asked = [(i, item) for i, read in enumerate(batch) for item in items[read.ids]]
            rows = [i for i, item in asked for _ in item.completion_ids]
            columns = [
                len(item.prompt_ids) - 1 - len(batch[i].path) + j
                for i, item in asked
                for j in range(len(item.completion_ids))
            ]
            # The model's own head and whatever follows it (scaling, soft caps) see only the positions that count.
            where = (torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device))
            hook = head.register_forward_pre_hook(lambda _, args, where=where: (args[0][where][None],))
            try:
                logits = self._read(batch, self.model, keep=False)[0].logits[0]
            finally:
                hook.remove()
            labels = torch.tensor([token for _, item in asked for token in item.completion_ids], device=self.device)
            scores: list[float] = []
            for part, label in zip(torch.split(logits, 1024), torch.split(labels, 1024), strict=True):
                part = part.float()
                scores += (part.gather(1, label[:, None])[:, 0] - part.logsumexp(-1)).tolist()
            start = 0
            for _, item in asked:
                end = start + len(item.completion_ids)
                item.future.set_result(scores[start:end])
                start = end
        return bool(items)

    # Layers

    def _look(self) -> bool:
        """What the layers say to one batch of what waits, the longest together; True when there was any."""
        self._looks = sorted((look for look in self._looks if not look.future.done()), key=lambda look: -len(look.read))
        if not self._looks:
            return False
        count = max(1, LOOK_TOKENS // len(self._looks[0].read))
        batch, self._looks = self._looks[:count], self._looks[count:]
        asked = [(look.prompt_ids, look.completion_ids) for look in batch]
        for look, found in zip(
            batch, lens(self.model, self._head, _pad([look.read for look in batch], self.device), asked), strict=True
        ):
            look.future.set_result(found)
        return True

    # Beam search

    def _search(self) -> bool:
        """Beam search of one batch of what waits, prompts of like length together; True when there was any.

        Prompts are padded on the left, as `generate` wants it, and its other settings are those of plain search, not
        what a model's own generation config may add (Qwen's has a repetition penalty).
        """
        self._beams = sorted((beam for beam in self._beams if not beam.future.done()), key=lambda beam: beam.order)
        if not self._beams:
            return False
        width, limit, _ = self._beams[0].order
        most = max(1, self.max_batch // width)
        batch = [beam for beam in self._beams[:most] if beam.order[:2] == (width, limit)]
        del self._beams[: len(batch)]
        longest = len(batch[0].prompt_ids)
        pads = [longest - len(beam.prompt_ids) for beam in batch]
        ids = [[0] * pad + beam.prompt_ids for pad, beam in zip(pads, batch, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        eos = sorted(self.eos)
        found = self.model.generate(
            torch.tensor(ids, device=self.device),
            attention_mask=torch.tensor(mask, device=self.device),
            num_beams=width,
            do_sample=False,
            length_penalty=1.0,
            repetition_penalty=1.0,
            max_new_tokens=limit,
            eos_token_id=eos,
            pad_token_id=eos[0],
        )
        for beam, row in zip(batch, found[:, longest:].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in self.eos), len(row))
            if not beam.future.done():
                beam.future.set_result(row[:end])
        return True


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids padded on the right to the longest row, with any valid id."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]).to(device)


def _common_start(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a completion, from the generation config, the model's config and the tokenizer."""
    ids: set[int] = set()
    for value in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _attention_windows(path: str, config: Any) -> dict[str, int]:
    """The kinds of attention layer a model has, each with its window in tokens; 0 is the whole context."""
    sliding = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"])
    windows = {"full_attention": 0, "sliding_attention": sliding}
    if kinds - set(windows):
        raise ConfigError(
            f"model {path}: layers of kind {', '.join(sorted(kinds - set(windows)))} are beyond this engine; it serves "
            "models with full or sliding-window attention"
        )
    return {kind: windows[kind] for kind in sorted(kinds)}


def _pieces(tokenizer: Any, vocabulary: int) -> list[str]:
    """The text that each token adds after another one. Decoding it alone would lose a leading space in some
    tokenizers, so each is decoded after an anchor, whose text is then cut off."""
    anchor = next(i for i in range(vocabulary) if len(tokenizer.decode([i]).strip()) == 1)
    size = len(tokenizer.decode([anchor]))
    known = len(tokenizer)
    texts: list[str] = tokenizer.batch_decode([[anchor, i] for i in range(min(known, vocabulary))])
    return [text[size:] for text in texts]
