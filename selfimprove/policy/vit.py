"""A small vision transformer as a classifier, with the blocks of transformers."""

from __future__ import annotations

import torch
from transformers import ViTConfig, ViTModel

from selfimprove.policy.nets import Classifier


class Vit(Classifier):
    """A classifier of grey pictures of size x size in [0, 1], cut into patches of patch x patch, without dropout.

    `features` are the mean over the patches, shape (n, width). The head is linear.
    """

    def __init__(self, *, size: int, patch: int, width: int = 32, blocks: int = 4, heads: int = 4, classes: int = 10):
        super().__init__(size=size, patch=patch, width=width, blocks=blocks, heads=heads, classes=classes)
        self.body = ViTModel(vit_config(size, patch, width, blocks, heads), add_pooling_layer=False)
        self.head = torch.nn.Linear(width, classes)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures, shape (n, size, size), to features, shape (n, width)."""
        found: torch.Tensor = self.body(pictures[:, None]).last_hidden_state[:, 1:].mean(1)
        return found

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, classes)."""
        logits: torch.Tensor = self.head(self.features(pictures))
        return logits


def vit_config(size: int, patch: int, width: int, blocks: int, heads: int) -> ViTConfig:
    """The configuration of the blocks; the MLP of a block has twice the width."""
    return ViTConfig(
        image_size=size,
        patch_size=patch,
        num_channels=1,
        hidden_size=width,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        encoder_stride=patch,
    )
