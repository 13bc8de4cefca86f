"""What acts inside the decoder, between a model's logits and the token that is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Hook(Protocol):
    """Sees its rows' logits before a token is drawn. Requests with equal hooks are handed to it in one call."""

    def logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits to draw from, shape (rows, vocabulary), from those of the model."""
        ...
