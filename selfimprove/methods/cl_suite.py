"""One baseline of each family of continual learning, on a stream of tasks whose data come once.

A Comprehensive Survey of Continual Learning (Wang et al. 2024, arXiv:2302.00487). A round is a task k with data D_k:

    generate   predict the class of each new picture (test, then train)
    verify     is it the label
    filter     D_k with its labels, and the memory M
    remember   M: a reservoir of all examples so far
    train      theta_k from theta_{k-1}, by the family:
      finetune    L = CE(D_k)
      ewc         L + lambda/2 sum_i F_i (theta_i - theta_{k-1,i})^2,  F = sum of the tasks' Fisher diagonals
                  (Kirkpatrick et al. 2017; one anchor, as in online EWC)
      lwf         L + T^2 KL(p_{k-1} || p_k) at temperature T over the classes seen before (Li and Hoiem 2016)
      replay      L + CE(M), a batch of each a step (experience replay, ER)
      agem        g - (g . r) / (r . r) r  where g . r < 0; g of L, r the gradient of CE(M) (Chaudhry et al. 2019)
      prototypes  features stay as pre-trained; the class whose mean feature is nearest
      adapters    the body stays; each task trains a bottleneck and a head of its own

    joint: finetune from the base policy on D_1 ... D_k together, an upper bound and no continual learner.

Picks of one baseline a family are ours; the survey compares none. Labels are of all tasks in one head, and no task is
named when a class is asked for (class-incremental).

*Wrong when* the tasks' data may be kept: joint training is better. AA compares learners only at equal memory and steps.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, one_hot, softmax

from selfimprove.filter.replay import labelled, reservoir
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.policy import nets
from selfimprove.policy.vit import Vit
from selfimprove.report.continual import figures
from selfimprove.train import TrainContext, own
from selfimprove.train.own import require_stage
from selfimprove.types import Batch, Epochs, Example, NonNegative, Positive, Rate

__all__ = ["figures", "filter", "generate", "remember", "require_stage", "train"]

generate, filter, remember = best_of_n, labelled, reservoir

Family = Literal["finetune", "ewc", "lwf", "replay", "agem", "prototypes", "adapters"]
STATE = "state.safetensors"  # beside the weights: `seen`, the classes so far, and of EWC the Fisher diagonals
BOTTLENECK = 8
Grown = TypeVar("Grown", bound=nets.Net)


def train(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    family: Family,
    epochs: Epochs,
    learning_rate: Rate,
    batch_size: Batch,
    strength: NonNegative = 100.0,
    temperature: Positive = 2.0,
) -> dict[str, float]:
    """The family's update on a task. `strength` is EWC's lambda, `temperature` LwF's T.

    Returns the figures of `own.fit`. Raises ConfigError and RunError as that does.
    """
    net, state = own.start(context), _state(context.start, context.device)
    new = [row for row in rows if "replay" not in row.metadata]
    old = [row for row in rows if "replay" in row.metadata]
    x, y = own.inputs(new, context.device), own.labels(new, context.device)
    steps = own.batches(len(new), epochs, batch_size, context.seed)
    parameters = None
    if family == "prototypes":
        net = Prototypes.of(net, context)
        net.learn(x, y)
        found = {"loss": float(cross_entropy(net(x), y)), "steps": 0.0, "seconds": 0.0, "tokens": float(len(new))}
    else:
        if family == "adapters":
            net = Adapters.of(net, sorted(set(y.tolist())), context)
            parameters = [*net.adapters[-1].parameters(), *net.heads[-1].parameters()]
        rule = Rule(net, family, old, state, context, strength, temperature)
        found = own.fit(
            net,
            steps,
            lambda batch: rule.loss(x[batch], y[batch]),
            context,
            learning_rate=learning_rate,
            parameters=parameters,
            before_step=rule.project,
        )
    nets.save(net, context.out)
    seen = one_hot(y, net.options["classes"]).amax(0).bool()
    state["seen"] = seen | state.get("seen", torch.zeros_like(seen))
    if family == "ewc":
        for name, value in fisher(net, x, y).items():
            state[name] = value + state.get(name, 0)
    _save_state(state, context.out)
    return found


class Rule:
    """The loss of a step, and what becomes of its gradient."""

    def __init__(
        self,
        net: nets.Net,
        family: Family,
        old: Sequence[Example],
        state: dict[str, torch.Tensor],
        context: TrainContext,
        strength: float,
        temperature: float,
    ) -> None:
        self.net, self.family, self.state = net, family, state
        self.strength, self.temperature = strength, temperature
        self.rng, self.memory = random.Random(context.seed), None
        if old and family in ("replay", "agem"):
            self.memory = own.inputs(old, context.device), own.labels(old, context.device)
        self.last = nets.load(context.start).to(context.device).eval() if family in ("ewc", "lwf") else None
        self.anchor = dict(self.last.named_parameters()) if self.last else {}
        self.size = 0

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean over the batch: x (n, *shape), y (n,)."""
        logits, self.size = self.net(x), len(x)
        total = cross_entropy(logits, y)
        if self.family == "ewc" and "seen" in self.state:
            total = total + self.strength / 2 * sum(
                (self.state[name] * (p - self.anchor[name].detach()).square()).sum()
                for name, p in self.net.named_parameters()
            )
        if self.family == "lwf" and self.last and "seen" in self.state:
            with torch.no_grad():
                before = self.last(x)
            total = total + distilled(before, logits, self.state["seen"], self.temperature)
        if self.family == "replay" and self.memory:
            total = total + self._of_memory()
        return total

    def _of_memory(self) -> torch.Tensor:
        assert self.memory
        x, y = self.memory
        drawn = [self.rng.randrange(len(x)) for _ in range(self.size)]
        return cross_entropy(self.net(x[drawn]), y[drawn])

    def project(self) -> None:
        """A-GEM: take from the gradient what would raise the memory's loss."""
        if self.family != "agem" or not self.memory:
            return
        parameters = list(self.net.parameters())
        reference = torch.autograd.grad(self._of_memory(), parameters, allow_unused=True)
        pairs = [(p, r) for p, r in zip(parameters, reference, strict=True) if p.grad is not None and r is not None]
        gradient = torch.cat([p.grad.flatten() for p, _ in pairs if p.grad is not None])
        ahead = projected(gradient, torch.cat([r.flatten() for _, r in pairs]))
        for (p, _), part in zip(pairs, ahead.split([p.numel() for p, _ in pairs]), strict=True):
            p.grad = part.reshape(p.shape)


def distilled(before: torch.Tensor, after: torch.Tensor, seen: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(p_before || p_after) over the classes where `seen` (classes,) is true, mean over logits (n, classes)."""
    old, new = (logits[:, seen] / temperature for logits in (before, after))
    return temperature**2 * kl_div(log_softmax(new, -1), softmax(old, -1), reduction="batchmean")


def projected(g: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """A-GEM's gradient: g, or where g . r < 0 its part that is orthogonal to r. Shapes (parameters,)."""
    dot = g @ r
    return g if dot >= 0 else g - dot / (r @ r) * r


def fisher(net: nets.Net, x: torch.Tensor, y: torch.Tensor, most: int = 64) -> dict[str, torch.Tensor]:
    """F_i: the mean square of d log p(y | x) / d theta_i over the first `most` examples, a tensor a parameter."""
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
    """Features as pre-trained; logits are minus half the squared distance to the mean feature of each class seen."""

    def __init__(self, **options: int) -> None:
        super().__init__(**options)
        self.register_buffer("sums", torch.zeros(self.options["classes"], self.options["width"]))
        self.register_buffer("counts", torch.zeros(self.options["classes"]))

    @classmethod
    def of(cls, net: nets.Net, context: TrainContext) -> Prototypes:
        return net if isinstance(net, cls) else _grown(cls(**net.options), net, context)

    @torch.no_grad()
    def learn(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.sums.index_add_(0, y, self.features(x))
        self.counts += torch.bincount(y, minlength=len(self.counts))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.features(pictures)
        means = self.sums / self.counts.clamp(min=1)[:, None]
        distances = (features[:, None] - means).square().sum(-1)
        return (-distances / 2).masked_fill(self.counts == 0, -1e9)


class Adapters(Vit):
    """A frozen body; each task has a residual bottleneck over the features, and a head for its own classes."""

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
    """The larger net with all weights of the other."""
    larger.load_state_dict(net.state_dict(), strict=False)
    return larger.to(context.device).train()


def _state(folder: str, device: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    file = Path(folder) / STATE
    return load_file(file, device=device) if file.exists() else {}


def _save_state(state: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, folder / STATE)
