"""The train slot of a stream of picture tasks: one baseline for each family of continual learning.

`selfimprove.methods.cl_suite` has the losses. `views` is another way to show the pictures, for every family.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from selfimprove.binding import Target, bind
from selfimprove.errors import ConfigError
from selfimprove.policy import nets
from selfimprove.policy.vit import Vit
from selfimprove.train import TrainContext, own
from selfimprove.train.own import require_stage as require_stage
from selfimprove.types import Batch, Epochs, Example, NonNegative, Positive, Rate

Family = Literal["finetune", "ewc", "lwf", "replay", "agem", "prototypes", "adapters"]
STATE = "state.safetensors"  # beside the weights: `seen`, the classes so far, and EWC's Fisher diagonals
BOTTLENECK = 8
Grown = TypeVar("Grown", bound=nets.Net)


def continual(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    family: Family,
    epochs: Epochs,
    learning_rate: Rate,
    batch_size: Batch,
    strength: NonNegative = 100.0,
    temperature: Positive = 2.0,
    views: Target | None = None,
) -> dict[str, float]:
    """The family's update on a task. `strength` is EWC's lambda, and `temperature` LwF's T. `views` names a function
    that makes a `Views`; None: each picture as it is.

    Returns the figures of `own.fit`. Raises ConfigError and RunError as `own.fit` does.
    """
    net, state = own.start(context), _state(context.start, context.device)
    new, old = ([row for row in rows if ("replay" in row.metadata) == kept] for kept in (False, True))
    x, y = own.inputs(new, context.device), own.labels(new, context.device)
    if family == "prototypes":
        net = Prototypes.of(net, context)
        found = {"loss": net.learn(x, y), "steps": 0.0, "seconds": 0.0, "tokens": float(len(new))}
    else:
        parameters = None
        if family == "adapters":
            net = Adapters.of(net, sorted(set(y.tolist())), context)
            parameters = [*net.adapters[-1].parameters(), *net.heads[-1].parameters()]
        of_memory = _of_memory(net, old, context) if old else None
        shown: Views = bind(views, "train.views")(seed=context.seed) if views else Plain()
        last = nets.load(context.start).to(context.device).eval()

        def loss(batch: list[int]) -> torch.Tensor:
            pictures = shown.pictures(x[batch])
            logits = net(pictures)
            total = cross_entropy(logits, y[batch]) + shown.loss(logits)
            if family == "ewc" and "seen" in state:
                total = total + strength / 2 * moved(net, last, state)
            if family == "lwf" and "seen" in state:
                with torch.no_grad():
                    before = last(pictures)
                total = total + distilled(before, logits, state["seen"], temperature)
            if family == "replay" and of_memory:
                total = total + of_memory(len(batch))
            return total

        def before_step() -> None:
            if family == "agem" and of_memory:
                project(list(net.parameters()), of_memory(batch_size))

        steps = shown.batches(len(new), epochs, batch_size, context.seed)
        how = {"learning_rate": learning_rate, "parameters": parameters, "before_step": before_step}
        found = own.fit(net, steps, loss, context, **how)  # type: ignore[arg-type]
    if family == "ewc":
        state |= {name: value + state.get(name, 0) for name, value in fisher(net, x, y).items()}
    seen = one_hot(y, net.options["classes"]).amax(0).bool()
    state["seen"] = seen | state.get("seen", torch.zeros_like(seen))
    nets.save(net, context.out)
    save_file(state, context.out / STATE)
    return found


def require_options(*, batch_size: int, views: Target | None = None, **others: object) -> None:
    """Raises ConfigError for views that do not fit the batch size."""
    if views:
        try:
            bind(views, "train.views")(seed=0).batches(batch_size, 1, batch_size, 0)
        except ValueError as problem:
            raise ConfigError(str(problem), "train") from None


class Views(Protocol):
    """How a phase shows its pictures."""

    def batches(self, count: int, epochs: float, size: int, seed: int) -> list[list[int]]:
        """The rows of each optimizer step."""

    def pictures(self, x: torch.Tensor) -> torch.Tensor:
        """A step's pictures (n, size, size) as they are shown."""

    def loss(self, logits: torch.Tensor) -> torch.Tensor | float:
        """A term of a step's loss, from its logits (n, classes)."""


class Plain:
    """Each picture as it is."""

    batches = staticmethod(own.batches)

    def pictures(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def loss(self, logits: torch.Tensor) -> float:
        return 0.0


def _of_memory(net: nets.Net, old: Sequence[Example], context: TrainContext) -> Callable[[int], torch.Tensor]:
    """A function that gives CE(M) of so many random examples in memory."""
    x, y = own.inputs(old, context.device), own.labels(old, context.device)
    rng = random.Random(context.seed)

    def loss(size: int) -> torch.Tensor:
        drawn = [rng.randrange(len(x)) for _ in range(size)]
        return cross_entropy(net(x[drawn]), y[drawn])

    return loss


def moved(net: nets.Net, last: nets.Net, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """sum_i F_i (theta_i - theta_{k-1,i})^2."""
    pairs = zip(net.named_parameters(), last.parameters(), strict=True)
    return torch.stack([(state[name] * (p - q.detach()).square()).sum() for (name, p), q in pairs]).sum()


def project(parameters: Sequence[torch.nn.Parameter], of_memory: torch.Tensor) -> None:
    """Remove the part of the parameters' gradients that would raise the memory's loss."""
    learning = [p for p in parameters if p.grad is not None]
    r = torch.cat([part.flatten() for part in torch.autograd.grad(of_memory, learning)])
    g = torch.cat([p.grad.flatten() for p in learning if p.grad is not None])
    parts = torch.split(projected(g, r), [p.numel() for p in learning])
    for p, part in zip(learning, parts, strict=True):
        p.grad = part.reshape(p.shape)


def distilled(before: torch.Tensor, after: torch.Tensor, seen: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(p_before || p_after) over the `seen` classes, a mask (classes,), as a mean over logits (n, classes)."""
    old, new = (logits[:, seen] / temperature for logits in (before, after))
    return temperature**2 * kl_div(log_softmax(new, -1), softmax(old, -1), reduction="batchmean")


def projected(g: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """A-GEM's gradient: g, or if g . r < 0 the part of g that is orthogonal to r. Shapes (parameters,)."""
    dot = g @ r
    return g if dot >= 0 else g - dot / (r @ r) * r


def fisher(net: nets.Net, x: torch.Tensor, y: torch.Tensor, most: int = 64) -> dict[str, torch.Tensor]:
    """F_i, one tensor for each parameter: the mean square of d log p(y | x) / d theta_i over the first `most`
    examples."""
    total = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    count = min(most, len(x))
    for i in range(count):
        net.zero_grad()
        cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()  # type: ignore[no-untyped-call]
        for name, p in net.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square() / count
    net.zero_grad()
    return total


class Prototypes(Vit):
    """Pre-trained features. Logits are minus half the squared distance to the mean feature of each class seen."""

    sums: torch.Tensor  # of features by class, shape (classes, width)
    counts: torch.Tensor  # shape (classes,)

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.register_buffer("sums", torch.zeros(self.options["classes"], self.options["width"]))
        self.register_buffer("counts", torch.zeros(self.options["classes"]))

    @classmethod
    def of(cls, net: nets.Net, context: TrainContext) -> Prototypes:
        return net if isinstance(net, cls) else _grown(cls(**net.options), net, context)

    @torch.no_grad()
    def learn(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Add pictures (n, size, size) of classes (n,) to the means. Returns their cross-entropy afterwards."""
        self.sums.index_add_(0, y, self.features(x))
        self.counts += torch.bincount(y, minlength=len(self.counts))
        return float(cross_entropy(self(x), y))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.features(pictures)
        means = self.sums / self.counts.clamp(min=1)[:, None]
        distances = (features[:, None] - means).square().sum(-1)
        return (-distances / 2).masked_fill(self.counts == 0, -1e9)


class Adapters(Vit):
    """A frozen body. Each task has a residual bottleneck on the features, and a head for its own classes."""

    def __init__(self, tasks: list[list[int]], **options: int) -> None:
        super().__init__(**options)
        self.options["tasks"] = tasks
        width = self.options["width"]
        make = torch.nn.Linear
        self.adapters = torch.nn.ModuleList(
            torch.nn.Sequential(make(width, BOTTLENECK), torch.nn.ReLU(), make(BOTTLENECK, width)) for _ in tasks
        )
        self.heads = torch.nn.ModuleList(make(width, len(classes)) for classes in tasks)

    @classmethod
    def of(cls, net: nets.Net, classes: list[int], context: TrainContext) -> Adapters:
        options = {name: value for name, value in net.options.items() if name != "tasks"}
        return _grown(cls([*net.options.get("tasks", []), classes], **options), net, context)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            features = self.features(pictures)
        logits = features.new_full((len(features), self.options["classes"]), -1e9)
        for adapter, head, classes in zip(self.adapters, self.heads, self.options["tasks"], strict=True):
            logits[:, classes] = head(features + adapter(features))
        return logits


def _grown(larger: Grown, net: nets.Net, context: TrainContext) -> Grown:
    """The larger net with all weights of the other net."""
    larger.load_state_dict(net.state_dict(), strict=False)
    return larger.to(context.device).train()


def _state(folder: str, device: str) -> dict[str, torch.Tensor]:
    file = Path(folder) / STATE
    return load_file(file, device=device) if file.exists() else {}
