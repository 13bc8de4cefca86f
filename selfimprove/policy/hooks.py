"""What acts inside the decoder, between a model's logits and the token that is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Rows:
    """One decoding step of the requests that have equal hooks. Row i is one request; all sequences go by rows."""

    logits: torch.Tensor  # the model's, float32, shape (rows, vocabulary)
    ids: Sequence[Sequence[int]]  # prompt and completion so far
    positions: Sequence[int]  # of the token that is to be drawn, in its completion, from 0
    temperatures: Sequence[float]
    hooks: Sequence[Hook]  # of each request its own
    notes: Sequence[dict[str, Any]]  # what the hook keeps from token to token; empty at a completion's first
    hidden: Callable[[Sequence[int]], list[torch.Tensor]]
    """Of the rows with these numbers the last layer's hidden states, each of shape (tokens, width): of the prompt and
    the completion so far, read anew. `head` makes the model's logits of them."""
    head: Callable[[torch.Tensor], torch.Tensor]
    """Logits of hidden states, shape (..., width) -> (..., vocabulary), float32."""


class Hook(Protocol):
    """Changes what tokens are drawn from. A sample's log-probabilities stay those of the policy itself.

    Equal hooks (`==`) are called together, as one of them. What a hook makes of a row must not depend on the others.
    """

    def logits(self, rows: Rows) -> torch.Tensor:
        """The logits to draw from, shape (rows, vocabulary)."""
        ...
