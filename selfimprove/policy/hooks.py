"""Hooks: functions that change a model's logits before a token is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """One decoding step of the requests with equal hooks. Row i of each field is request i."""

    logits: torch.Tensor  # the model's, float32, shape (rows, vocabulary)
    ids: Sequence[Sequence[int]]  # prompt and completion so far
    positions: Sequence[int]  # the place of the next token in its completion, from 0
    temperatures: Sequence[float]
    hooks: Sequence[Hook]  # each request's own
    notes: Sequence[dict[str, Any]]  # what the hook keeps from token to token; empty at a completion's first token
    hidden: Callable[[Sequence[int]], list[torch.Tensor]]
    """Row numbers -> the last layer's hidden states of each row, of shape (tokens, width): of the prompt and of the
    completion so far. `head` turns the states into the model's logits. Only for hooks that `read`."""
    head: Callable[[torch.Tensor], torch.Tensor]
    """Hidden states -> logits, shape (..., width) -> (..., vocabulary), float32."""


class Hook(Protocol):
    """Changes the logits that tokens are drawn from. A sample's log-probabilities stay those of the policy itself.

    Equal hooks (`==`) are called together, in one call. What a hook does to a row must not depend on the other rows.
    """

    @property
    def reads(self) -> bool:
        """Whether it asks for hidden states. The engine then keeps those of each token that it decodes."""
        ...

    def logits(self, rows: Rows) -> torch.Tensor:
        """The logits to draw from, shape (rows, vocabulary)."""
        ...
