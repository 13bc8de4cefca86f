"""The transformers engine: continuous batching in one process, on a CPU or one accelerator.

Requests come from any number of coroutines. A pump task, alive while there is work, lets them all speak, prefills
waiting prompts into free slots of a key-value cache, and decodes one token for every slot at a time. No threads and no
timers: what is batched with what follows from the order of events alone, and what a request draws from its seed alone.

The cache holds a slot a row, written in place: row i's token at position p is in column p. A row that finishes is
replaced by the last row, so the live slots are always a prefix and a step reads a view, never a copy. A prompt's last
token is not prefilled but decoded, so that every sampled token comes out of one code path; requests for one prompt
share its prefill, also with a row that is already under way.

Not supported: models whose layers are not all full or sliding-window attention.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import DynamicCache

from selfimprove.errors import ConfigError
from selfimprove.policy import Request, models
from selfimprove.policy.sampling import Settings, choose
from selfimprove.policy.slots import GROUPED, Slots
from selfimprove.types import Message, Sample

PREFILL_TOKENS = 8192  # padded tokens in one forward without sampling: bounds activations
LOGIT_ENTRIES = 2**26  # tokens x vocabulary in one scoring batch: 256 MiB in float32
SHARED = 32  # tokens that prompts must have in common before a shared prefill pays
SETTLED = 8  # turns of the event loop without a new request, after which nobody is about to speak
_Answer = TypeVar("_Answer")


@dataclass
class Stats:
    """Counters since the engine was made; `running` and `waiting` are now."""

    prompt_tokens: int = 0  # of finished requests
    sampled_tokens: int = 0
    scored_tokens: int = 0
    prefilled_tokens: int = 0  # what prefill really read: shared prompts once
    finished: int = 0
    waiting: int = 0
    running: int = 0
    peak_rows: int = 0
    steps: int = 0


@dataclass(eq=False, slots=True)
class _Row:
    """A sampling request, waiting or in a slot."""

    request: Request
    future: asyncio.Future[Sample]
    watch: frozenset[int]  # tokens that can complete a stop string
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = ""

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


class TransformersEngine:
    """Implements selfimprove.policy.Engine with transformers.

    `path` is a model folder, an adapter folder or a hub id; `max_batch` the rows in flight; `max_length` the window in
    tokens (None: the model's own). Memory for the cache is at most max_batch x max_length tokens.
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
        self._groups: dict[tuple[int, ...], list[_Row]] = {}  # waiting rows by prompt
        self._queue: list[tuple[int, int, tuple[int, ...]]] = []  # heap of the keys of _groups, longest first
        self._scores: list[tuple[int, int, _Score]] = []  # heap, longest first
        self._rows: list[_Row] = []  # row i is in slot i
        self._settings: Settings | None = None  # of _rows; None when they changed
        self._cache = Slots(max_batch)
        self._prefix: tuple[int, ...] = ()
        self._prefix_cache = DynamicCache()  # of the prefix, one row

    # What a policy calls

    def render(self, prompt: str | list[Message]) -> list[int]:
        """Token ids of a prompt. With a chat template, text is one user message, and messages that end with the
        assistant's are left open for it to go on; without one, messages are joined by blank lines. One BOS, if the
        tokenizer or the template adds any."""
        if self.tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            resume = messages[-1]["role"] == "assistant"
            ids: list[int] = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=not resume, continue_final_message=resume, return_dict=False
            )
            return ids
        text = prompt if isinstance(prompt, str) else "\n\n".join(m["content"] for m in prompt)
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token_id
        ids = self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos))).input_ids
        if ids and ids[-1] == eos and not text.endswith(self.tokenizer.eos_token):
            ids = ids[:-1]  # some tokenizers end every text: a prompt is to be continued
        return ids

    async def sample(self, request: Request) -> Sample:
        """One completion. Raises ValueError for a request that does not fit the window, and what the model raises."""
        if not request.prompt_ids:
            raise ValueError("the prompt is empty: the model needs at least one token to start from")
        if request.max_tokens < 1 or len(request.prompt_ids) + request.max_tokens > self.max_length:
            raise ValueError(
                f"{len(request.prompt_ids)} prompt tokens and max_tokens={request.max_tokens} do not fit the window "
                f"of {self.max_length}"
            )
        row = _Row(request, asyncio.get_running_loop().create_future(), self._watch(request.stop))
        if request.prompt_ids not in self._groups:
            self._groups[request.prompt_ids] = []
            heapq.heappush(self._queue, (-len(request.prompt_ids), self._arrivals, request.prompt_ids))
        self._groups[request.prompt_ids].append(row)
        self.stats.waiting += 1
        try:
            return await self._answer(row.future)
        except asyncio.CancelledError:
            if row in (group := self._groups.get(request.prompt_ids, [])):
                group.remove(row)
                self.stats.waiting -= 1
            raise

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        """Teacher-forced log pi of each completion token, in nats at temperature 1. Raises ValueError when too long."""
        if not completion_ids:
            return []
        if not prompt_ids or len(prompt_ids) + len(completion_ids) > self.max_length:
            raise ValueError(
                f"{len(prompt_ids)} + {len(completion_ids)} tokens: need 1 to {self.max_length}, with a prompt"
            )
        item = _Score(list(prompt_ids), list(completion_ids), asyncio.get_running_loop().create_future())
        heapq.heappush(self._scores, (-len(item), self._arrivals, item))
        return await self._answer(item.future)

    def load(self, path: str) -> None:
        """Take the weights of a checkpoint folder, or of an adapter folder merged into this engine's base.

        Raises RuntimeError while requests are in flight, and ConfigError for an adapter of another base or weights of
        another architecture; the old weights stay in either case.
        """
        if self._rows or self._groups or self._scores:
            raise RuntimeError("the weights cannot change while requests are in flight")
        fresh = models.load_model(
            path, self.base, dtype=self.model.dtype, device="cpu", trust_remote_code=self.trust_remote_code
        )
        weights, old = fresh.state_dict(), self.model.state_dict()
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in old.items()}:
            raise ConfigError(f"{path}: not the architecture of {self.base}, whose weights it was to replace")
        self.model.load_state_dict(weights)
        self._cache, self._prefix = Slots(self.max_batch), ()

    def close(self) -> None:
        """Free the weights and the cache. The engine is of no use after that."""
        self.model = None
        self._cache, self._prefix, self._prefix_cache = Slots(self.max_batch), (), DynamicCache()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # The pump

    async def _answer(self, future: asyncio.Future[_Answer]) -> _Answer:
        self._arrivals += 1
        self._open.add(future)
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
                if not (self._groups or self._scores or self._rows):
                    self._prefix = ()  # so that what a batch of requests gets does not depend on earlier ones
                    return
                with torch.inference_mode():
                    settle = self._score()
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
        self._groups, self._queue, self._scores, self._rows, self._settings = {}, [], [], [], None
        self._cache, self._prefix = Slots(self.max_batch), ()
        self.stats.waiting = self.stats.running = 0
        for future in self._open:
            if future.done():
                continue
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()

    # Sampling

    def _admit(self) -> None:
        """Move waiting rows into free slots, longest prompts first: they are the furthest on, and similar lengths
        pad little. Few at a time would make prefill dear, so an eighth of the slots must be free."""
        free = self.max_batch - len(self._rows)
        if not self._queue or free * 8 < self.max_batch:
            return
        live = {row.request.prompt_ids: slot for slot, row in enumerate(self._rows)}
        fresh: dict[tuple[int, ...], list[int]] = {}  # prompt -> its new slots
        while self._queue and free:
            prompt = self._queue[0][-1]
            group = self._groups[prompt]
            taken, rest = group[:free], group[free:]
            if rest:
                self._groups[prompt] = rest
            else:
                heapq.heappop(self._queue)
                del self._groups[prompt]
            slots = list(range(len(self._rows), len(self._rows) + len(taken)))
            self._rows += taken
            free -= len(taken)
            if slots and len(prompt) > 1:
                if prompt in live:
                    self._cache.copy([live[prompt]] * len(slots), slots, len(prompt) - 1)
                else:
                    fresh[prompt] = slots
        self.stats.waiting -= len(self._rows) - self.stats.running
        self.stats.running = len(self._rows)
        self.stats.peak_rows = max(self.stats.peak_rows, len(self._rows))
        self._settings = None
        self._prefill(fresh)

    def _prefill(self, prompts: dict[tuple[int, ...], list[int]]) -> None:
        """Fill the cache with all but the last token of each prompt. Padding is on the right, where the causal mask
        hides it and later tokens overwrite it."""
        waiting = list(prompts.items())  # longest first
        start = self._share(list(prompts))
        while waiting:
            width = len(waiting[0][0]) - 1
            count = max(1, PREFILL_TOKENS // width)
            chunk, waiting = waiting[:count], waiting[count:]
            cache = DynamicCache()
            if start:
                for i, (keys, values, _) in enumerate(self._prefix_cache):
                    rows = len(chunk), -1, -1, -1
                    cache.update(keys[:, :, :start].expand(rows), values[:, :, :start].expand(rows), i)
            ids = _pad([prompt[start:-1] for prompt, _ in chunk], self.device)
            self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            source = [i for i, (_, slots) in enumerate(chunk) for _ in slots]
            self._cache.fill(cache, source, [slot for _, slots in chunk for slot in slots])
            self.stats.prefilled_tokens += sum(len(prompt) - 1 - start for prompt, _ in chunk)

    def _share(self, prompts: list[tuple[int, ...]]) -> int:
        """How many tokens at their start all these prompts share with `_prefix_cache`, which holds them: a system
        message and worked examples are prefilled once while the pump runs. 0 where sharing does not pay."""
        if not prompts or min(map(len, prompts)) < SHARED + 2:
            return 0
        most = min(map(len, prompts)) - 2  # a token of each is left to prefill
        shared = len(_common_start([self._prefix, *prompts])[:most])
        if shared >= SHARED:
            return shared
        if len(prompts) == 1 or len(common := _common_start(prompts)[:most]) < SHARED:
            return 0
        self._prefix, self._prefix_cache = common, DynamicCache()
        ids = torch.tensor([common], device=self.device)
        self.model.base_model(input_ids=ids, past_key_values=self._prefix_cache, use_cache=True)
        self.stats.prefilled_tokens += len(common)
        return len(common)

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
        self._cache.aim(inputs[1], max(row.position for row in rows) + 1)
        logits = (
            self.model(
                input_ids=inputs[0, :, None],
                position_ids=positions,
                attention_mask=self._masks(positions, self._cache.width),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        counts = np.array([len(row.ids) for row in rows])
        tokens, logprobs = choose(logits, self._settings, counts)
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
            self._release(done)
        return bool(done)

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
        """What each row may attend to, (rows, 1, 1, width): columns up to its own, for a sliding layer the last few."""
        columns = torch.arange(width, device=self.device)
        masks = {}
        for kind, window in self._windows.items():
            seen = columns <= positions
            if window:
                seen &= columns > positions - window
            blocked = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            masks[kind] = blocked.masked_fill_(~seen, torch.finfo(self.model.dtype).min)[:, None, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))

    # Stop strings

    def _text(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

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
        """Score one batch of what waits, longest first; True when there was any."""
        batch: list[_Score] = []
        targets = 0
        while self._scores and len(batch) < self.max_batch:
            item = self._scores[0][-1]
            width = len(batch[0]) if batch else len(item)
            targets += len(item.completion_ids)
            if batch and ((len(batch) + 1) * width > PREFILL_TOKENS or targets * self.vocabulary > LOGIT_ENTRIES):
                break
            heapq.heappop(self._scores)
            if not item.future.done():  # cancelled
                batch.append(item)
        if not batch:
            return False
        ids = _pad([[*item.prompt_ids, *item.completion_ids[:-1]] for item in batch], self.device)
        rows = [i for i, item in enumerate(batch) for _ in item.completion_ids]
        columns = [len(item.prompt_ids) - 1 + j for item in batch for j in range(len(item.completion_ids))]
        # The model's own head and whatever follows it (scaling, soft caps) see only the positions that are asked for.
        where = (torch.tensor(rows, device=self.device), torch.tensor(columns, device=self.device))
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][where][None],))
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            hook.remove()
        labels = torch.tensor([token for item in batch for token in item.completion_ids], device=self.device)
        scores: list[float] = []
        for part, label in zip(torch.split(logits, 1024), torch.split(labels, 1024), strict=True):
            part = part.float()
            scores += (part.gather(1, label[:, None])[:, 0] - part.logsumexp(-1)).tolist()
        start = 0
        for item in batch:
            end = start + len(item.completion_ids)
            item.future.set_result(scores[start:end])
            start = end
        self.stats.scored_tokens += end
        return True


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids padded on the right to the longest row, with any valid id."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]).to(device)


def _common_start(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest start that all share: that of the first and the last in order."""
    first, last = min(prompts), max(prompts)
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:length]


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
