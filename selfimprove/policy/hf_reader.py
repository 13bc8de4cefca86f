"""How the transformers engine runs its model on whole sequences: prefill, scoring, and shared prefixes.

A prefix that several sequences have in common is run once and kept (`Prefixes` in slots.py). There are two kinds. Some
prefixes are shared by waiting requests. Others are prompts with a completion that a stop string ended: a search goes on
from there, and asks for opinions about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from transformers import DynamicCache

from selfimprove.errors import ConfigError
from selfimprove.policy.slots import Pair, Prefixes
from selfimprove.policy.tune import Adapters

PREFILL_TOKENS = 8192  # padded tokens in one forward pass without sampling: limits the memory of activations
SHARED = 32  # a common prefix is worth its own pass if it has at least this many tokens that are not known yet


@dataclass
class Stats:
    """Counters since the engine was made. `running` and `waiting` are the current numbers."""

    prompt_tokens: int = 0  # of finished requests
    sampled_tokens: int = 0
    prefilled_tokens: int = 0  # tokens that prefill really ran: a shared prompt counts once
    finished: int = 0
    waiting: int = 0
    running: int = 0
    peak_rows: int = 0
    steps: int = 0
    cache_bytes: int = 0  # largest size of a cache that was dropped


@dataclass(eq=False, slots=True)
class Read:
    """A sequence to run the model on. The model skips the prefix that is already known."""

    ids: tuple[int, ...]
    most: int  # length of the longest prefix that may be skipped, tokens
    adapter: str = ""
    path: list[int] = field(default_factory=list)  # nodes of the known prefix in Prefixes

    @property
    def left(self) -> int:
        """How many tokens the model has to read."""
        return len(self.ids) - len(self.path)


class Reader:
    """Runs a model on batches of sequences, and keeps the prefixes that they share.

    `windows` has the window of each kind of attention layer in tokens, as `attention_windows` returns it. A batch has
    at most `max_batch` rows.
    """

    def __init__(
        self, model: Any, adapters: Adapters, windows: dict[str, int], max_batch: int, max_length: int, stats: Stats
    ) -> None:
        self.model = model
        self.adapters = adapters
        self.windows = windows
        self.max_batch = max_batch
        self.max_length = max_length
        self.stats = stats
        self.device: torch.device = model.device
        self.known = Prefixes()

    def head(self, states: torch.Tensor) -> torch.Tensor:
        """The model's logits, float32, for hidden states: (..., width) -> (..., vocabulary)."""
        logits: torch.Tensor = self.model.get_output_embeddings()(states.to(self.model.dtype)).float()
        cap = getattr(self.model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        return cap * torch.tanh(logits / cap) if cap else logits

    def share(self, sequences: list[tuple[int, ...]]) -> None:
        """Run the prefixes that sequences have in common once, and keep them.

        Examples are a system message, worked examples, or the question in front of several solutions. Prefixes can
        themselves share a prefix, which is run first.
        """
        ordered = sorted(sequences)
        common = {_common_prefix(*pair) for pair in pairwise(ordered)}
        if prefixes := self._worth_reading(common):
            self.share(prefixes)
            for batch in self.batches([Read(prefix, len(prefix)) for prefix in self._worth_reading(prefixes)]):
                _, layers = self.read(batch, self.model.base_model)
                self.known.keep(layers, [(i, read.ids) for i, read in enumerate(batch)])

    def _worth_reading(self, prefixes: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The prefixes with at least SHARED tokens that are not known yet."""
        return [prefix for prefix in prefixes if len(prefix) >= SHARED + len(self.known.find(prefix))]

    def batches(self, reads: list[Read]) -> Iterator[list[Read]]:
        """Batches of similar work, longest first. Within a batch the shortest has at least half of the longest's tokens
        to read."""
        for read in reads:
            read.path = self.known.find(read.ids[: read.most])
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

    def read(self, batch: list[Read], model: Any, keep: bool = True) -> tuple[Any, list[Pair]]:
        """Run `model` on the tokens of each sequence that are not known.

        Returns the output and, with `keep`, the keys and values of whole sequences. The output is None if every
        sequence was known. Padding is on the right, and the mask hides it.
        """
        starts, left = [len(read.path) for read in batch], batch[0].left
        self.stats.prefilled_tokens += sum(read.left for read in batch) if keep else 0
        ids = pad([read.ids[start:] for read, start in zip(batch, starts, strict=True)], self.device)
        if not any(starts):
            fresh = DynamicCache() if keep else None
            with self.adapters.on([read.adapter for read in batch]):
                output = model(input_ids=ids, past_key_values=fresh, use_cache=keep)
            return output, [(keys, values) for keys, values, _ in fresh or ()]
        width = max(starts) + left
        cache = self.known.gather([read.path for read in batch], width)
        if not left:
            return None, cache.buffers
        columns = torch.tensor(starts, device=self.device)[:, None] + torch.arange(left, device=self.device)
        cache.aim(columns, width)
        with self.adapters.on([read.adapter for read in batch]):
            output = model(
                input_ids=ids,
                position_ids=columns.clamp(max=self.max_length - 1),  # padding may go beyond the window
                attention_mask=self.masks(columns, width),
                past_key_values=cache,
                use_cache=True,
            )
        return output, cache.buffers

    def masks(self, positions: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """The attention masks for tokens at `positions` (rows, tokens), each of shape (rows, 1, tokens, width).

        A token sees the columns up to its own. In a sliding-window layer it sees the last few of them.
        """
        columns = torch.arange(width, device=self.device)
        masks = {}
        for kind, window in self.windows.items():
            seen = columns <= positions[..., None]
            if window:
                seen &= columns > positions[..., None] - window
            blocked = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            masks[kind] = blocked.masked_fill_(~seen, torch.finfo(self.model.dtype).min)[:, None]
        return masks if len(masks) > 1 else next(iter(masks.values()))


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Token ids as one tensor, padded on the right to the longest row. The padding is any valid id."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]).to(device)


def _common_prefix(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


# What a model and its tokenizer say of themselves


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a completion, by the generation config, the model's config and the tokenizer."""
    ids: set[int] = set()
    for value in (model.generation_config.eos_token_id, model.config.eos_token_id, tokenizer.eos_token_id):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def attention_windows(path: str, config: Any) -> dict[str, int]:
    """The kinds of attention layer in a model, each with its window in tokens. 0 means the whole context.

    Raises ConfigError for a kind that the cache cannot hold.
    """
    sliding = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if sliding else "full_attention"])
    windows = {"full_attention": 0, "sliding_attention": sliding}
    if kinds - set(windows):
        raise ConfigError(
            f"model {path}: this engine cannot serve layers of kind {', '.join(sorted(kinds - set(windows)))}; it can "
            "serve models with full or sliding-window attention"
        )
    return {kind: windows[kind] for kind in sorted(kinds)}


def pieces(tokenizer: Any, vocabulary: int) -> list[str]:
    """The text that each token adds after another token.

    Some tokenizers drop a leading space when they decode one token alone. So each token is decoded after an anchor,
    and the anchor's text is cut off.
    """
    anchor = next(i for i in range(vocabulary) if len(tokenizer.decode([i]).strip()) == 1)
    size = len(tokenizer.decode([anchor]))
    known = len(tokenizer)
    texts: list[str] = tokenizer.batch_decode([[anchor, i] for i in range(min(known, vocabulary))])
    return [text[size:] for text in texts]
