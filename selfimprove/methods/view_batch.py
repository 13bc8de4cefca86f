"""Several views of a picture side by side, and a V times longer interval before the picture comes again.

Do Your Best and Get Enough Rest for Continual Learning (Kang et al. 2025, arXiv:2503.18371), by the released code. For
a task with n pictures, a batch of B and V views:

    order      an epoch takes n/V pictures of a permutation, the next epoch the next n/V; after V epochs a new one. Each
               picture stands V times in a row. So it comes again after V L steps instead of L = n/B
    views      the first of the V is the picture itself, the others are strongly augmented
    loss       L_base of all V views  +  alpha mean_v KL(stopgrad p(first) || p(v)),  the second term from epoch E on

L_base is the loss of a family of `train/continual.py`. Pictures in memory are shown as they are.

*Wrong when* a task has a single epoch: then no picture comes again, and the learner only sees fewer of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from torch.nn.functional import kl_div, log_softmax, pad

from selfimprove.filter.replay import labelled, reservoir
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.report.continual import figures as figures
from selfimprove.train.continual import continual
from selfimprove.types import Count, NonNegative

generate, filter, remember, train = best_of_n, labelled, reservoir, continual


@dataclass
class Views:
    """The order, the pictures and the second term of the loss."""

    repeat: int  # V
    alpha: float
    start: int  # E, from 0
    generator: torch.Generator
    _epochs: list[int] = field(default_factory=list)  # of each step to come

    def batches(self, count: int, epochs: float, size: int, seed: int) -> list[list[int]]:
        """The rows of each step, each V times in a row. There are as many steps as without views.

        Raises ValueError if V does not divide the batch.
        """
        if size % self.repeat:
            raise ValueError(f"train.views.repeat={self.repeat} must divide train.batch_size={size}")
        total, rng, order = round(epochs * count), random.Random(seed), list[int]()
        while len(order) * self.repeat < total:
            order += rng.sample(range(count), count)
        rows = [row for row in order for _ in range(self.repeat)][: max(total, self.repeat)]
        steps = [rows[i : i + size] for i in range(0, len(rows), size)]
        self._epochs = [i * size // count for i in range(len(steps))]
        return steps

    def pictures(self, x: torch.Tensor) -> torch.Tensor:
        """Pictures (n, size, size): the first of each V as it is, the others augmented."""
        shown = augmented(x, self.generator)
        shown[:: self.repeat] = x[:: self.repeat]
        return shown

    def loss(self, logits: torch.Tensor) -> torch.Tensor | float:
        """alpha KL of a step's logits (n, classes), 0 before epoch E."""
        epoch = self._epochs.pop(0)
        whole = len(logits) // self.repeat * self.repeat  # the last step can end between two views of a picture
        if self.alpha == 0 or epoch < self.start or self.repeat == 1 or not whole:
            return 0.0
        return self.alpha * spread(logits[:whole].reshape(-1, self.repeat, logits.shape[-1]))


def views(*, repeat: Count = 4, alpha: NonNegative = 1.0, start: Annotated[int, Ge(0)] = 5, seed: int) -> Views:
    """V views of each picture. `alpha` is the weight of the KL term, which counts from epoch `start` on (from 0)."""
    return Views(repeat, alpha, start, torch.Generator().manual_seed(seed))


def spread(logits: torch.Tensor) -> torch.Tensor:
    """mean KL(stopgrad p(first) || p(v)) over pictures and v > 1, in nats, of logits (pictures, V, classes)."""
    logs = log_softmax(logits, -1)
    first = logs[:, :1].detach().expand_as(logs[:, 1:])
    return kl_div(logs[:, 1:], first, reduction="none", log_target=True).sum(-1).mean()


def augmented(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (n, size, size), moved by up to an eighth of their size and dimmed to 60 to 100 %. A square with a side
    of a quarter of their size is blank."""
    n, size = x.shape[:2]
    reach, side = max(1, size // 8), size // 4

    def drawn(most: int) -> list[int]:
        return torch.randint(most, (n,), generator=generator).tolist()

    dim = 0.6 + 0.4 * torch.rand(n, generator=generator).to(x.device)
    wide = pad(x, (reach,) * 4) * dim[:, None, None]
    found = torch.empty_like(x)
    places = zip(
        drawn(2 * reach + 1), drawn(2 * reach + 1), drawn(size - side + 1), drawn(size - side + 1), strict=True
    )
    for i, (down, right, top, left) in enumerate(places):
        found[i] = wide[i, down : down + size, right : right + size]
        found[i, top : top + side, left : left + side] = 0
    return found
