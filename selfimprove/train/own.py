"""The training loop of a policy that is a torch module, for methods with their own loss.

    def train(rows, context, *, ...):
        net = own.start(context)
        x, y = own.inputs(rows), own.labels(rows)
        steps = own.batches(len(rows), epochs, batch_size, context.seed)
        figures = own.fit(net, steps, lambda batch: cross_entropy(net(x[batch]), y[batch]), context, learning_rate=...)
        nets.save(net, context.out)
        return figures

A killed phase starts again; on a CPU the result is the same, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import nets
from selfimprove.schema import Config, Stage
from selfimprove.train import TrainContext, plan
from selfimprove.train.fitting import require_finite
from selfimprove.types import Example


def start(context: TrainContext) -> nets.Net:
    """The net that a phase starts from, on the phase's device, ready to train. It also seeds torch's generator.

    Raises ConfigError for several processes, and for a folder without a net.
    """
    require_one_process(context)
    torch.manual_seed(context.seed)
    return nets.load(context.start).to(context.device).train()


def require_one_process(context: TrainContext) -> None:
    """Raises ConfigError if several processes are asked to share a phase."""
    if context.training.processes > 1:
        said = f"hardware.training.processes={context.training.processes}: this policy is trained by one process"
        raise ConfigError(said, "hardware.training.processes")


def inputs(rows: Sequence[Example], device: str = "cpu") -> torch.Tensor:
    """The arrays of examples, `metadata["input"]`, stacked: shape (n, *shape), float32."""
    shape = rows[0].metadata["input"]["shape"]
    data = np.array([row.metadata["input"]["data"] for row in rows], np.float32)
    return torch.from_numpy(data).reshape(len(rows), *shape).to(device)


def labels(rows: Sequence[Example], device: str = "cpu") -> torch.Tensor:
    """The classes of examples: the one id of each completion, shape (n,), int64."""
    return torch.tensor([row.completion_ids[0] for row in rows], device=device)


def batches(count: int, epochs: float, size: int, seed: int) -> list[list[int]]:
    """The rows of each optimizer step, in the order of `selfimprove.train.plan`."""
    order = plan([0] * count, epochs, size, seed)
    return [order[i : i + size] for i in range(0, len(order), size)]


def fit(
    net: torch.nn.Module,
    steps: Sequence[list[int]],
    loss: Callable[[list[int]], torch.Tensor],
    context: TrainContext,
    *,
    learning_rate: float,
    parameters: Iterable[torch.nn.Parameter] | None = None,
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Train by Adam on `loss(batch)` for each step's rows. The rate falls along a cosine; gradients are clipped at norm
    1.

    `before_step` may change the gradients, and `after_step` the weights. `parameters`: those that learn; None: all.
    Returns `loss` (mean over steps), `steps`, `seconds` and `tokens` (rows read). Raises RunError for a loss or a
    weight that is not finite.
    """
    begin, losses = time.monotonic(), list[float]()
    learning = [p for p in (net.parameters() if parameters is None else parameters) if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, len(steps)))
    for number, batch in enumerate(steps, start=1):
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()  # type: ignore[no-untyped-call]
        before_step()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        after_step()
        losses.append(value.item())
        if not math.isfinite(losses[-1]):
            raise RunError(
                f"train: the loss is {losses[-1]} at step {number} of {len(steps)}; a smaller learning rate?"
            )
        context.log({"step": number, "progress": number / len(steps), "loss": losses[-1]})
    require_finite(net.named_parameters())
    seconds, read = time.monotonic() - begin, sum(map(len, steps))
    return {"loss": float(np.mean(losses)), "steps": len(steps), "seconds": seconds, "tokens": float(read)}


def require_stage(config: Config, stage: Stage, where: str) -> None:
    """Raises ConfigError if a run has more rounds than the data set has tasks. A method's module imports this check."""
    tasks = (config.dataset.model_extra or {}).get("tasks")
    if isinstance(tasks, list) and config.rounds > len(tasks):
        said = (
            f"a round is a task, and dataset={config.dataset.name} has {len(tasks)}; set rounds={len(tasks)} or fewer"
        )
        raise ConfigError(f"rounds={config.rounds}: {said}", "rounds")
