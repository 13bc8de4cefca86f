"""Adapters in the blocks of a frozen vision transformer, which methods add task by task."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from transformers import ViTModel

from selfimprove.policy import nets

Larger = TypeVar("Larger", bound=nets.Net)


class Bottleneck(torch.nn.Module):
    """Down, ReLU, up: shape (..., width) to (..., width). Its output is 0 until it is trained."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = torch.nn.Linear(width, bottleneck), torch.nn.Linear(bottleneck, width)
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(torch.relu(self.down(x)))  # type: ignore[no-any-return]


def features(
    body: ViTModel, pictures: torch.Tensor, added: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> torch.Tensor:
    """Pictures, shape (n, size, size), to features, (n, width), with `added` beside each block.

    `added` gets the number of a block and its input, (n, tokens, width). Its result is added to the block's output.
    """
    x = body.embeddings(pictures[:, None])
    for number, block in enumerate(body.layers):
        more = added(number, x)
        x = block(x) if more is None else block(x) + more
    return body.layernorm(x)[:, 1:].mean(1)  # type: ignore[no-any-return]


def grown(larger: Larger, net: nets.Net, device: str) -> Larger:
    """The larger net with all weights of the other net, and with a frozen body."""
    larger.load_state_dict(net.state_dict(), strict=False)
    larger.get_submodule("body").requires_grad_(False)
    return larger.to(device).train()


def only(logits: torch.Tensor, classes: list[int]) -> torch.Tensor:
    """Logits, shape (n, classes), in which only these classes are possible."""
    kept = torch.full_like(logits, -1e9)
    kept[:, classes] = logits[:, classes]
    return kept
