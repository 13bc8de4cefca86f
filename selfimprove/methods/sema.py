"""SEMA: a mixture of adapters that grows if new data are unlike all earlier data.

Self-Expansion of Pre-trained Models with Mixture of Adapters for Continual Learning (Wang et al. 2024, arXiv
2403.18886). A round is a task t with data D_t; the pre-trained body is frozen. Each of its last blocks has k modules
and a router with a column for each. A module is an adapter A_j and a descriptor R_j. The descriptor is an autoencoder
of the block's input x, averaged over tokens.

    generate   predict the class of each new picture (test, then train)
    filter     D_t with its labels
    train      scan, from the first of these blocks on:
                   z_j = mean over D_t of |R_j's error - mean_j| / std_j
                   a block that has not grown in this task, and has min_j z_j > threshold, gets a module:
                       A, its router column and the head learn CE(D_t) over the new classes
                       R learns |R(x) - x|^2; mean and std of its errors are kept
                       A, R and the column are frozen, and the scan starts again
               if no block grew, only the head learns CE(D_t)
    answer     each of these blocks adds sum_j softmax(router(mean x))_j A_j(x)

docs/methods/sema.md says which parts are the paper's and which our own choice.

*Wrong when* a task changes the meaning of pictures but not their look: then z is small, and no block grows. Also wrong
when every task looks new: then there is one adapter for each task, and the router only adds errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy, softmax

from selfimprove.filter.replay import labelled
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.policy import nets
from selfimprove.policy.adapters import Bottleneck, features, grown, only
from selfimprove.policy.vit import Vit
from selfimprove.report.continual import figures
from selfimprove.train import TrainContext, own
from selfimprove.train.own import require_stage
from selfimprove.types import Batch, Count, Epochs, Example, NonNegative, Rate

__all__ = ["figures", "filter", "generate", "require_stage", "train"]

generate, filter = best_of_n, labelled

BUFFER = 500  # the mean and std of a descriptor are over so many errors


class Mixture(torch.nn.Module):
    """The modules of one block: adapters, router columns, and descriptors with the mean and std of their errors."""

    def __init__(self, count: int, width: int, bottleneck: int, descriptor: int) -> None:
        super().__init__()
        make = torch.nn.Linear
        self.adapters = torch.nn.ModuleList(Bottleneck(width, bottleneck) for _ in range(count))
        self.descriptors = torch.nn.ModuleList(
            torch.nn.Sequential(make(width, descriptor), make(descriptor, width)) for _ in range(count)
        )
        self.router = torch.nn.ModuleList(make(width, 1) for _ in range(count))
        self.statistics = torch.nn.ParameterList(
            torch.nn.Parameter(torch.zeros(2), requires_grad=False) for _ in range(count)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | None:
        """From a block's input, shape (n, tokens, width), what is added to its output; None without an adapter."""
        if not self.adapters:
            return None
        pooled = x.mean(1)
        shares = softmax(torch.cat([column(pooled) for column in self.router], -1), -1)  # (n, k)
        every = torch.stack([adapter(x) for adapter in self.adapters], -1)  # (n, tokens, width, k)
        return (every * shares[:, None, None]).sum(-1)

    def error(self, x: torch.Tensor, which: int) -> torch.Tensor:
        """A descriptor's mean squared error on each picture's mean token, shape (n,)."""
        pooled = x.mean(1)
        found: torch.Tensor = (self.descriptors[which](pooled) - pooled).square().mean(-1)
        return found

    def unlike(self, x: torch.Tensor) -> float:
        """min_j z_j over pictures; infinite without a descriptor."""
        scores = [math.inf]
        for number, kept in enumerate(self.statistics):
            mean, std = kept
            scores.append(((self.error(x, number) - mean).abs() / std.clamp(min=1e-12)).mean().item())
        return min(scores)


class Sema(Vit):
    """A frozen body and one head for the classes `seen`. `modules_of` has the number of modules of each last block."""

    def __init__(
        self, *, modules_of: list[int], bottleneck: int, descriptor: int, seen: list[int], **options: int
    ) -> None:
        super().__init__(**options)
        self.options |= {"modules_of": modules_of, "bottleneck": bottleneck, "descriptor": descriptor, "seen": seen}
        self.first = self.options["blocks"] - len(modules_of)
        width = self.options["width"]
        self.mixtures = torch.nn.ModuleList(Mixture(count, width, bottleneck, descriptor) for count in modules_of)

    def blocks(self) -> list[Mixture]:
        """The modules of each of the last blocks."""
        return [mixture for mixture in self.mixtures if isinstance(mixture, Mixture)]

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures, shape (n, size, size), to features, shape (n, width)."""
        return features(self.body, pictures, self._added)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, classes); a class that was not seen cannot be the answer."""
        return only(super().forward(pictures), self.options["seen"])

    def _added(self, block: int, x: torch.Tensor) -> torch.Tensor | None:
        return None if block < self.first else self.mixtures[block - self.first](x)

    @torch.no_grad()
    def inputs(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """The inputs of the last blocks, each of shape (n, tokens, width)."""
        seen: list[torch.Tensor] = []

        def added(block: int, x: torch.Tensor) -> torch.Tensor | None:
            seen.append(x)
            return self._added(block, x)

        features(self.body, pictures, added)
        return seen[self.first :]


@dataclass
class Learning:
    """Trains the parts of a net on a task, one after another, and keeps the figures."""

    context: TrainContext
    x: torch.Tensor  # pictures, shape (n, size, size)
    y: torch.Tensor  # labels, shape (n,)
    batch_size: int
    fits: list[dict[str, float]] = field(default_factory=list)

    def fit(
        self, net: Sema, loss: Callable[[list[int]], torch.Tensor], epochs: float, rate: float, parts: list[Any]
    ) -> None:
        """Run `own.fit` on some of a net's parts; the log's step numbers go on from call to call."""
        done = sum(found["steps"] for found in self.fits)
        context = replace(self.context, log=lambda record: self.context.log(record | {"step": record["step"] + done}))
        steps = own.batches(len(self.x), epochs, self.batch_size, self.context.seed)
        weights = [weight for part in parts for weight in part.parameters()]
        self.fits.append(own.fit(net, steps, loss, context, learning_rate=rate, parameters=weights))

    def classify(self, net: Sema, epochs: float, rate: float, parts: list[Any]) -> None:
        """Train the head and `parts` on the task's classes."""
        classes = sorted(set(self.y.tolist()))

        def loss(batch: list[int]) -> torch.Tensor:
            return cross_entropy(only(net(self.x[batch]), classes), self.y[batch])

        self.fit(net, loss, epochs, rate, [net.head, *parts])

    def describe(self, net: Sema, place: int, epochs: float, rate: float) -> None:
        """Train the newest descriptor of a block on the block's input."""
        mixture, x = net.blocks()[place], net.inputs(self.x)[place]
        last = len(mixture.adapters) - 1
        self.fit(net, lambda batch: mixture.error(x[batch], last).mean(), epochs, rate, [mixture.descriptors[last]])
        with torch.no_grad():
            errors = mixture.error(x, last)[-BUFFER:]
            mixture.statistics[last].copy_(torch.stack([errors.mean(), errors.std(correction=0)]))

    def figures(self) -> dict[str, float]:
        """The figures of all fits: sums, and the mean loss of the last fit."""
        total = {name: sum(found[name] for found in self.fits) for name in ("steps", "seconds", "tokens")}
        return {"loss": self.fits[-1]["loss"], **total}


def train(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    threshold: NonNegative,
    blocks: Count,
    bottleneck: Count,
    descriptor: Count,
    epochs: Epochs,
    learning_rate: Rate,
    descriptor_epochs: Epochs,
    descriptor_rate: Rate,
    batch_size: Batch,
    shared: bool = False,
) -> dict[str, float]:
    """Train a task's modules, and the head. `blocks` is the number of last blocks that can grow. With `shared` none
    grows after the first task, and their only adapters learn every task.

    Returns the figures of `own.fit` and `grown`, the number of blocks that grew. For each of these blocks `modules/B`
    is its number of modules, and `z/B` is min_j z_j before the task was learnt. Raises ConfigError and RunError as
    `own.fit`.
    """
    task = Learning(context, own.inputs(rows, context.device), own.labels(rows, context.device), batch_size)
    classes = set(task.y.tolist())
    net = _opened(own.start(context), classes, blocks, bottleneck, descriptor, context.device)
    unlike = [mixture.unlike(x) for mixture, x in zip(net.blocks(), net.inputs(task.x), strict=True)]
    new = not any(net.options["modules_of"])
    grew = set[int]()
    while (place := scan(net, task.x, threshold, grew)) is not None and (new or not shared):
        net = larger(net, place, context.device)
        mixture = net.blocks()[place]
        task.classify(net, epochs, learning_rate, [mixture.adapters[-1], mixture.router[-1]])
        task.describe(net, place, descriptor_epochs, descriptor_rate)
        grew.add(place)
    if not grew:
        task.classify(net, epochs, learning_rate, [m.adapters for m in net.mixtures] if shared else [])
    nets.save(net, context.out)
    found = {"grown": float(len(grew))}
    for place, (count, z) in enumerate(zip(net.options["modules_of"], unlike, strict=True)):
        found[f"modules/{net.first + place}"] = float(count)
        found |= {} if new else {f"z/{net.first + place}": z}
    return task.figures() | found


def scan(net: Sema, x: torch.Tensor, threshold: float, grew: set[int]) -> int | None:
    """The place, among the blocks that can grow, of the first one with z above the threshold; None: there is none."""
    for place, (mixture, seen) in enumerate(zip(net.blocks(), net.inputs(x), strict=True)):
        if place not in grew and mixture.unlike(seen) > threshold:
            return place
    return None


def larger(net: Sema, place: int, device: str) -> Sema:
    """The net with one more module in a block."""
    counts = [count + (number == place) for number, count in enumerate(net.options["modules_of"])]
    return grown(Sema(**net.options | {"modules_of": counts}), net, device)


def _opened(net: nets.Net, classes: set[int], blocks: int, bottleneck: int, descriptor: int, device: str) -> Sema:
    """The net as a `Sema` that also knows these classes. A net of another kind gets blocks without a module."""
    options = net.options | {"seen": sorted({*net.options.get("seen", []), *classes})}
    if not isinstance(net, Sema):
        counts = [0] * min(blocks, options["blocks"])
        options = options | {"modules_of": counts, "bottleneck": bottleneck, "descriptor": descriptor}
    return grown(Sema(**options), net, device)
