"""MOS: an adapter for each task, merged with the earlier ones; at inference the answers find the right adapter.

MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning (Sun et al. 2024, arXiv 2412.09441). A round
is a task b with data D_b; the pre-trained body phi is frozen.

    generate   predict the class of each new picture (test, then train)
    filter     D_b with its labels
    train      A_b <- A_{b-1}, an adapter in each block
               L = CE(D_b) over the new classes + reg CE(M M^T / 0.8, identity)
                   M has the class means so far and the batch's features as rows
               after every step  A_b <- (1 - alpha) A_b + alpha mean(A_1 ... A_{b-1})
               mu_c, Sigma_c of the features of each new class; p_c, their mean without an adapter
               alignment: the head learns again, from draws of N(mu_c, Sigma_c) of every class so far
    answer     t_1: the task of the class whose p_c has the largest cosine with the picture's adapter-free features
               t_{i+1}: the task of the class that the head gives with adapter t_i; until it repeats, at most 4 loops
               softmax(head with the last adapter) + softmax(b cosine)

docs/methods/mos.md says which parts are the paper's and which our own choice.

*Wrong when* the classes of one task look like those of another: then a wrong adapter confirms its own task. Also wrong
when the features of a class are far from Gaussian: alignment draws from a Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributions import MultivariateNormal
from torch.nn.functional import cosine_similarity, cross_entropy, softmax

from selfimprove.filter.replay import labelled
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.policy import nets
from selfimprove.policy.adapters import Bottleneck, features, grown, only
from selfimprove.policy.vit import Vit
from selfimprove.report.continual import figures
from selfimprove.train import TrainContext, own
from selfimprove.train.own import require_stage
from selfimprove.types import Batch, Count, Epochs, Example, NonNegative, Rate, Share

__all__ = ["figures", "filter", "generate", "require_stage", "train"]

generate, filter = best_of_n, labelled

LOOPS = 4
SIMILARITY = 0.8  # the temperature of the orthogonality loss
DRAWS = 5  # times the batch size: draws of each class in an epoch of alignment


class Mos(Vit):
    """A frozen body, an adapter for each task, one head, and the statistics of each class for alignment and retrieval.

    `tasks` has the classes of each task so far.
    """

    prototypes: torch.Tensor  # p_c, shape (classes, width)
    means: torch.Tensor  # mu_c, shape (classes, width)
    covariances: torch.Tensor  # Sigma_c, shape (classes, width, width)
    task_of: torch.Tensor  # the task of each class; -1: not seen yet

    def __init__(self, *, tasks: list[list[int]], bottleneck: int, **options: int) -> None:
        super().__init__(**options)
        self.options |= {"tasks": tasks, "bottleneck": bottleneck}
        width, classes = self.options["width"], self.options["classes"]
        self.adapters = torch.nn.ModuleList(
            torch.nn.ModuleList(Bottleneck(width, bottleneck) for _ in range(self.options["blocks"])) for _ in tasks
        )
        self.register_buffer("prototypes", torch.zeros(classes, width))
        self.register_buffer("means", torch.zeros(classes, width))
        self.register_buffer("covariances", torch.zeros(classes, width, width))
        task_of = torch.full((classes,), -1)
        for number, own_classes in enumerate(tasks):
            task_of[own_classes] = number
        self.register_buffer("task_of", task_of, persistent=False)

    def adapted(self, pictures: torch.Tensor, task: int) -> torch.Tensor:
        """Features with a task's adapter, shape (n, width)."""
        return features(self.body, pictures, lambda block, x: self.adapters[task][block](x))  # type: ignore[index]

    def cosines(self, pictures: torch.Tensor) -> torch.Tensor:
        """Cosines of adapter-free features with the prototypes, shape (n, classes); -1 for classes not seen yet."""
        found = cosine_similarity(self.features(pictures)[:, None], self.prototypes, dim=-1)
        return found.masked_fill(self.task_of < 0, -1.0)

    def retrieved(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's logits with the last loop's adapter, shape (n, classes), and each loop's task, (LOOPS, n)."""
        every = torch.stack([self.head(self.adapted(pictures, task)) for task in range(len(self.adapters))])
        every = every.masked_fill(self.task_of < 0, -1e9)  # (tasks, n, classes)
        rows = torch.arange(len(pictures), device=every.device)
        loops = [self.task_of[self.cosines(pictures).argmax(-1)]]
        while len(loops) < LOOPS:
            loops.append(self.task_of[every[loops[-1], rows].argmax(-1)])
        return every[loops[-1], rows], torch.stack(loops)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """The log of the sum of the ensemble's two probabilities, shape (n, classes)."""
        logits, _ = self.retrieved(pictures)
        plain = (len(self.adapters) * self.cosines(pictures)).masked_fill(self.task_of < 0, -1e9)
        return (softmax(logits, -1) + softmax(plain, -1) + 1e-9).log()


def train(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    epochs: Epochs,
    learning_rate: Rate,
    batch_size: Batch,
    bottleneck: Count,
    momentum: Share,
    reg: NonNegative,
    align_epochs: NonNegative,
    align_rate: Rate,
) -> dict[str, float]:
    """Train a task's adapter, and align the head. `momentum` is alpha; with `align_epochs` 0 there is no alignment.

    Returns the figures of `own.fit` of the adapter's training. Raises ConfigError and RunError as `own.fit` does.
    """
    before = own.start(context)
    x, y = own.inputs(rows, context.device), own.labels(rows, context.device)
    classes = sorted(set(y.tolist()))
    net = next_task(before, classes, bottleneck, context.device)
    task = len(net.adapters) - 1
    known = net.means[(net.task_of >= 0) & (net.task_of < task)]

    def loss(batch: list[int]) -> torch.Tensor:
        found = net.adapted(x[batch], task)
        return cross_entropy(only(net.head(found), classes), y[batch]) + reg * alike(found, known)

    figures = own.fit(
        net,
        own.batches(len(rows), epochs, batch_size, context.seed),
        loss,
        context,
        learning_rate=learning_rate,
        parameters=[*net.adapters[task].parameters(), *net.head.parameters()],
        after_step=lambda: merge(net.adapters, momentum),
    )
    note(net, x, y, classes)
    if task:
        align(net, int(align_epochs), align_rate, DRAWS * batch_size)
    nets.save(net, context.out)
    return figures


def next_task(net: nets.Net, classes: list[int], bottleneck: int, device: str) -> Mos:
    """The net with one more adapter, a copy of the last one."""
    options = {name: value for name, value in net.options.items() if name not in ("tasks", "bottleneck")}
    larger = Mos(tasks=[*net.options.get("tasks", []), classes], bottleneck=bottleneck, **options)
    larger = grown(larger, net, device)
    if len(larger.adapters) > 1:
        larger.adapters[-1].load_state_dict(larger.adapters[-2].state_dict())
    return larger


def alike(found: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """The orthogonality loss of a batch's features (n, width) and class means (k, width). It is small if each row is
    most like itself."""
    every = torch.cat([means, found])
    return cross_entropy(every @ every.T / SIMILARITY, torch.arange(len(every), device=every.device))


@torch.no_grad()
def merge(adapters: torch.nn.ModuleList, momentum: float) -> None:
    """A_b <- (1 - alpha) A_b + alpha mean(A_1 ... A_{b-1}); the first adapter stays as it is."""
    *earlier, last = adapters
    if earlier and momentum:
        for weight, *others in zip(last.parameters(), *(one.parameters() for one in earlier), strict=True):
            weight.lerp_(torch.stack(list(others)).mean(0), momentum)


@torch.no_grad()
def note(net: Mos, x: torch.Tensor, y: torch.Tensor, classes: list[int]) -> None:
    """p_c, mu_c and Sigma_c of the new classes, from their pictures x (n, size, size) with labels y (n,)."""
    plain, found = net.features(x), net.adapted(x, len(net.adapters) - 1)
    for label in classes:
        own_features = found[y == label]
        net.prototypes[label] = plain[y == label].mean(0)
        net.means[label] = own_features.mean(0)
        net.covariances[label] = own_features.T.cov(correction=0) + 1e-4 * torch.eye(found.shape[1]).to(found)


def align(net: Mos, epochs: int, rate: float, count: int) -> None:
    """Train the head. An epoch has `count` features of each class so far, drawn from its Gaussian; a batch has
    `count`."""
    if not epochs:
        return
    seen = torch.nonzero(net.task_of >= 0)[:, 0]
    gaussians = MultivariateNormal(net.means[seen], net.covariances[seen])
    optimizer = torch.optim.SGD(net.head.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    labels = seen.repeat(count)
    for _ in range(epochs):
        drawn = gaussians.sample((count,)).flatten(0, 1)  # (count * classes, width)
        for batch in torch.split(torch.randperm(len(drawn)), count):
            optimizer.zero_grad()
            cross_entropy(only(net.head(drawn[batch]), seen.tolist()), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
