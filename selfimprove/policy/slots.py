"""The key-value cache of the transformers engine, one slot a row, and the attention that reads it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

COLUMNS = 64  # the cache grows by multiples of this
GROUPED = "grouped_sdpa"  # the name of grouped_attention in transformers


class Slots(DynamicCache):
    """Keys and values of every row in buffers of shape (slots, heads, columns, head size), a pair a layer."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.width = 0  # columns that the current step reads
        self.rows = self.columns = torch.empty(0)

    def aim(self, columns: torch.Tensor, width: int) -> None:
        """The next update writes row i's token into column columns[i], and reads the first `width` columns."""
        self.rows = torch.arange(len(columns), device=columns.device)
        self.columns, self.width = columns, width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = []
        for buffer, states in zip(
            self._room(layer_idx, key_states, value_states, self.width), (key_states, value_states), strict=True
        ):
            buffer[self.rows, :, self.columns] = states[:, :, 0]
            out.append(buffer[: len(states), :, : self.width])
        return out[0], out[1]

    def fill(self, cache: DynamicCache, source: list[int], slots: list[int]) -> None:
        """Copy rows `source` of a prefilled cache to `slots`, from column 0."""
        for i, (keys, values, _) in enumerate(cache):
            width = keys.shape[2]
            for buffer, states in zip(self._room(i, keys, values, width), (keys, values), strict=True):
                buffer[slots, :, :width] = states[source]

    def copy(self, source: list[int], slots: list[int], width: int) -> None:
        """Copy the first `width` columns of some slots to others."""
        for pair in self.buffers:
            for buffer in pair:
                buffer[slots, :, :width] = buffer[source, :, :width]

    def _room(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers of a layer, grown to hold `width` columns. Zeros: masked columns are still multiplied by 0."""
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


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa attention that, for one query a row, lets the query heads of a group attend as so many queries of their
    shared key-value head. The stock version copies keys and values for every query head, at every step: 8 to 27 times
    slower on a CPU. Shapes: query (rows, heads, 1, head size), key and value (rows, key-value heads, columns, head
    size), mask (rows, 1, 1, columns); returns (rows, 1, heads, head size)."""
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
