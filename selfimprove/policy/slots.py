"""The key-value cache of the transformers engine, one slot a row, and the attention that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

COLUMNS = 64  # the cache grows by multiples of this
KEPT_BYTES = 2**28  # of keys and values in Prefixes
GROUPED = "grouped_sdpa"  # the name of grouped_attention in transformers

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values of a layer


class Slots(DynamicCache):
    """Keys and values of every row. Each layer has two buffers of shape (slots, heads, columns, head size)."""

    def __init__(self, slots: int, buffers: Sequence[Pair] = ()) -> None:
        super().__init__()
        self.slots = slots
        self.buffers = list(buffers)
        self.width = 0  # columns that the current step reads
        self.rows = self.columns = torch.empty(0)

    @property
    def bytes(self) -> int:
        return sum(states.numel() * states.element_size() for pair in self.buffers for states in pair)

    def aim(self, columns: torch.Tensor, width: int) -> None:
        """Set where the next update writes row i's tokens, columns[i], and that it reads the first `width` columns.

        `columns` has shape (rows, tokens).
        """
        self.rows = torch.arange(len(columns), device=columns.device)[:, None]
        self.columns, self.width = columns, width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Pair:
        out = []
        for buffer, states in zip(
            self._room(layer_idx, key_states, value_states, self.width), (key_states, value_states), strict=True
        ):
            buffer[self.rows, :, self.columns] = states.transpose(1, 2)
            out.append(buffer[: len(states), :, : self.width])
        return out[0], out[1]

    def fill(self, layers: Sequence[Pair], source: list[int], slots: list[int], width: int) -> None:
        """Copy the first `width` columns of another cache's rows `source` to `slots`."""
        for i, (keys, values) in enumerate(layers):
            for buffer, states in zip(self._room(i, keys, values, width), (keys, values), strict=True):
                buffer[slots, :, :width] = states[source, :, :width]

    def copy(self, source: list[int], slots: list[int], width: int) -> None:
        """Copy the first `width` columns of the slots `source` to `slots`."""
        for pair in self.buffers:
            for buffer in pair:
                buffer[slots, :, :width] = buffer[source, :, :width]

    def _room(self, layer: int, keys: torch.Tensor, values: torch.Tensor, width: int) -> Pair:
        """The buffers of a layer, grown to hold `width` columns. New columns are zeros: a mask multiplies them by 0."""
        if layer == len(self.buffers):
            self.buffers.append((keys.new_zeros(0), values.new_zeros(0)))
        old = self.buffers[layer]
        if old[0].dim() == 1 or old[0].shape[2] < width:
            columns = -(-width // COLUMNS) * COLUMNS
            grown = []
            for buffer, states in zip(old, (keys, values), strict=True):
                new = states.new_zeros(self.slots, states.shape[1], columns, states.shape[3])
                if buffer.dim() > 1:
                    new[:, :, : buffer.shape[2]] = buffer
                grown.append(new)
            self.buffers[layer] = grown[0], grown[1]
        return self.buffers[layer]


class Prefixes:
    """A cache of prompt prefixes: keys and values for later sequences that start alike.

    It is a trie. A node is a token after a given prefix, and has one row in pools of shape (nodes, heads, head size).
    Row 0 is the empty prefix, all zeros. The cache holds at most KEPT_BYTES; `tidy` empties a full one.
    """

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], int] = {}  # (node before, token) -> node
        self.pools: list[Pair] = []
        self.full = False

    def find(self, ids: Sequence[int]) -> list[int]:
        """The nodes of the longest known prefix of `ids`."""
        path, node = list[int](), 0
        for token in ids:
            if (node := self.nodes.get((node, token), 0)) == 0:
                break
            path.append(node)
        return path

    def gather(self, paths: Sequence[Sequence[int]], width: int) -> Slots:
        """A cache with one row for each path, padded with zeros to `width` columns."""
        index = torch.tensor([[*path, *[0] * (width - len(path))] for path in paths], device=self.pools[0][0].device)
        return Slots(
            len(paths), [(keys[index].transpose(1, 2), values[index].transpose(1, 2)) for keys, values in self.pools]
        )

    def keep(self, layers: Sequence[Pair], sequences: Sequence[tuple[int, Sequence[int]]]) -> None:
        """Add the new tokens of some sequences, each given with its row in `layers`, as long as there is room."""
        new, rows, columns = list[int](), list[int](), list[int]()
        room = KEPT_BYTES // sum(states[0, :, 0].nbytes for pair in layers for states in pair) - 1
        for row, ids in sequences:
            if len(self.nodes) + len(ids) > room:
                self.full = True
                break
            path = self.find(ids)
            node = path[-1] if path else 0
            for column in range(len(path), len(ids)):
                new.append(len(self.nodes) + 1)
                self.nodes[node, ids[column]] = node = new[-1]
                rows.append(row)
                columns.append(column)
        if not new:
            return
        if not self.pools:
            self.pools = [(keys[:1, :, 0] * 0, values[:1, :, 0] * 0) for keys, values in layers]
        if (missing := len(self.nodes) + 1 - len(self.pools[0][0])) > 0:
            extra = max(missing, min(len(self.nodes), room - len(self.nodes)))
            self.pools = [
                (F.pad(keys, (0, 0, 0, 0, 0, extra)), F.pad(values, (0, 0, 0, 0, 0, extra)))
                for keys, values in self.pools
            ]
        for pair, layer in zip(self.pools, layers, strict=True):
            for pool, states in zip(pair, layer, strict=True):
                pool[new] = states[rows, :, columns]

    def tidy(self) -> None:
        """Forget everything if the cache is full. Paths found earlier are then void."""
        if self.full:
            self.nodes, self.full = {}, False


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa attention for grouped-query models, without copies of keys and values.

    With one query a row, the query heads of a group attend as several queries of their shared key-value head. The stock
    version copies keys and values for every query head at every step, which is 8 to 27 times slower on a CPU. Shapes:
    query (rows, heads, 1, head size), key and value (rows, key-value heads, columns, head size), mask (rows, 1, 1,
    columns). Returns (rows, 1, heads, head size).
    """
    rows, heads, queries, size = query.shape
    shared = key.shape[1]
    if queries > 1 or heads == shared or kwargs.get("position_bias") is not None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return result
    output = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, shared, heads // shared, size), key, value, attn_mask=attention_mask, scale=scaling
    )
    return output.reshape(rows, 1, heads, value.shape[-1]), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
