"""What the transformers engine answers without sampling: scores, layers and beam search. Each waits in its own queue.

A queue's `step` answers one batch of what waits, and says whether there was any.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from selfimprove.policy.hf_reader import Read, Reader, pad
from selfimprove.policy.lens import Layer, by_head, lens

LOOK_TOKENS = 2048  # padded tokens in one forward pass that keeps the hidden states of all layers
LOGIT_ENTRIES = 2**26  # tokens x vocabulary in one scoring batch: 256 MiB in float32


@dataclass(eq=False, slots=True)
class _Score:
    prompt_ids: list[int]
    completion_ids: list[int]
    future: asyncio.Future[list[float]]

    def __len__(self) -> int:
        return (
            len(self.prompt_ids) + len(self.completion_ids) - 1
        )  # the model predicts the last token, and reads the rest


class Scores:
    """Completions whose log-probabilities are asked for. The longest come first."""

    def __init__(self, reader: Reader, vocabulary: int) -> None:
        self._reader = reader
        self._vocabulary = vocabulary
        self._waiting: list[tuple[int, int, _Score]] = []  # a heap

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, prompt_ids: Sequence[int], completion_ids: Sequence[int], number: int) -> asyncio.Future[list[float]]:
        """The answer to come: log pi of each completion token, in nats. `number` is the order of arrival."""
        item = _Score(list(prompt_ids), list(completion_ids), asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, (-len(item), number, item))
        return item.future

    def step(self) -> bool:
        items = self._take()
        self._reader.share(list(items))
        reads = [Read(ids, min(len(item.prompt_ids) for item in same) - 1) for ids, same in items.items()]
        for batch in self._reader.batches(reads):
            asked = [(i, item) for i, read in enumerate(batch) for item in items[read.ids]]
            scores = self._score(batch, asked)
            start = 0
            for _, item in asked:
                end = start + len(item.completion_ids)
                item.future.set_result(scores[start:end])
                start = end
        return bool(items)

    def _take(self) -> dict[tuple[int, ...], list[_Score]]:
        """One batch of what waits, grouped by the ids that the model has to read."""
        items: dict[tuple[int, ...], list[_Score]] = {}
        targets = 0
        while self._waiting and len(items) < self._reader.max_batch:
            item = self._waiting[0][-1]
            targets += len(item.completion_ids)
            if items and targets * self._vocabulary > LOGIT_ENTRIES:
                break
            heapq.heappop(self._waiting)
            if not item.future.done():  # else it was cancelled
                items.setdefault((*item.prompt_ids, *item.completion_ids[:-1]), []).append(item)
        return items

    def _score(self, batch: list[Read], asked: Sequence[tuple[int, _Score]]) -> list[float]:
        """The log-probabilities of all completion tokens in `asked`, one completion behind the other.

        Each entry of `asked` has its place in `batch`.
        """
        reader = self._reader
        rows = [i for i, item in asked for _ in item.completion_ids]
        columns = [
            len(item.prompt_ids) - 1 - len(batch[i].path) + j
            for i, item in asked
            for j in range(len(item.completion_ids))
        ]
        # The model's own head, and what follows it (scaling, soft caps), see only the positions that count.
        where = (torch.tensor(rows, device=reader.device), torch.tensor(columns, device=reader.device))
        head = reader.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][where][None],))
        try:
            logits = reader.read(batch, reader.model, keep=False)[0].logits[0]
        finally:
            hook.remove()
        labels = torch.tensor([token for _, item in asked for token in item.completion_ids], device=reader.device)
        scores: list[float] = []
        for part, label in zip(torch.split(logits, 1024), torch.split(labels, 1024), strict=True):
            part = part.float()
            scores += (part.gather(1, label[:, None])[:, 0] - part.logsumexp(-1)).tolist()
        return scores


@dataclass(eq=False, slots=True)
class _Look:
    prompt_ids: list[int]
    completion_ids: list[int]
    heads: tuple[tuple[int, int], ...]
    future: asyncio.Future[list[Layer]]

    @property
    def read(self) -> list[int]:
        return [*self.prompt_ids, *self.completion_ids[:-1]]


class Looks:
    """Completions for which each layer's likeliest tokens are asked."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._waiting: list[_Look] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: tuple[tuple[int, int], ...]
    ) -> asyncio.Future[list[Layer]]:
        """The answer to come: what each layer would say, first to last, or with `heads` the model with each of them."""
        look = _Look(list(prompt_ids), list(completion_ids), heads, asyncio.get_running_loop().create_future())
        self._waiting.append(look)
        return look.future

    def step(self) -> bool:
        waiting = sorted((look for look in self._waiting if not look.future.done()), key=lambda look: -len(look.read))
        if not waiting:
            self._waiting = []
            return False
        count = max(1, LOOK_TOKENS // len(waiting[0].read))
        batch = [look for look in waiting if look.heads == waiting[0].heads][:count]
        self._waiting = [look for look in waiting if look not in batch]
        asked = [(look.prompt_ids, look.completion_ids) for look in batch]
        ids = pad([look.read for look in batch], self._reader.device)
        model, head, heads = self._reader.model, self._reader.head, batch[0].heads
        answers = by_head(model, head, ids, asked, heads) if heads else lens(model, head, ids, asked)
        for look, found in zip(batch, answers, strict=True):
            look.future.set_result(found)
        return True


@dataclass(eq=False, slots=True)
class _Beam:
    prompt_ids: list[int]
    width: int
    max_tokens: int
    future: asyncio.Future[list[int]]

    @property
    def order(self) -> tuple[int, int, int]:
        return self.width, self.max_tokens, -len(self.prompt_ids)


class Beams:
    """Prompts for which a beam search is asked. `eos` are the ids that end a completion."""

    def __init__(self, reader: Reader, eos: frozenset[int]) -> None:
        self._reader = reader
        self._eos = eos
        self._waiting: list[_Beam] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> asyncio.Future[list[int]]:
        """The answer to come: the ids of the best completion, with the one that ends it."""
        beam = _Beam(list(prompt_ids), width, max_tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(beam)
        return beam.future

    def step(self) -> bool:
        """Prompts of similar length are searched together. They are padded on the left, as `generate` wants it.

        All other settings of `generate` are those of plain beam search. A model's own generation config could add
        more: Qwen's has a repetition penalty.
        """
        self._waiting = sorted((beam for beam in self._waiting if not beam.future.done()), key=lambda beam: beam.order)
        if not self._waiting:
            return False
        width, limit, _ = self._waiting[0].order
        most = max(1, self._reader.max_batch // width)
        batch = [beam for beam in self._waiting[:most] if beam.order[:2] == (width, limit)]
        del self._waiting[: len(batch)]
        longest = len(batch[0].prompt_ids)
        pads = [longest - len(beam.prompt_ids) for beam in batch]
        ids = [[0] * size + beam.prompt_ids for size, beam in zip(pads, batch, strict=True)]
        mask = [[0] * size + [1] * (longest - size) for size in pads]
        eos = sorted(self._eos)
        found = self._reader.model.generate(
            torch.tensor(ids, device=self._reader.device),
            attention_mask=torch.tensor(mask, device=self._reader.device),
            num_beams=width,
            do_sample=False,
            length_penalty=1.0,
            repetition_penalty=1.0,
            max_new_tokens=limit,
            eos_token_id=eos,
            pad_token_id=eos[0],
        )
        for beam, row in zip(batch, found[:, longest:].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in self._eos), len(row))
            if not beam.future.done():
                beam.future.set_result(row[:end])
        return True
