"""Maximum likelihood for policies that are not language models. Each example is one draw to fit."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from selfimprove.errors import ConfigError, RunError
from selfimprove.train import TrainContext, plan
from selfimprove.types import Batch, Epochs, Example, Rate


def categorical(rows: Sequence[Example], context: TrainContext) -> dict[str, float]:
    """Fit a table by maximum likelihood: the share of each outcome. Only the length of the last table is used.

    Returns `loss` (nats a draw), `steps`, `seconds` and `tokens` (draws). Raises ConfigError for several processes.
    """
    from selfimprove.policy.categorical import probabilities, save

    _require_one_process(context)
    begin = time.monotonic()
    outcomes = [row.completion_ids[0] for row in rows]
    counts = np.bincount(outcomes, minlength=len(probabilities(context.start)))
    table = counts / counts.sum()
    save(table, context.out)
    loss = -float(np.log(table[outcomes]).mean())
    context.log({"step": 1, "progress": 1.0, "loss": loss})
    return {"loss": loss, "steps": 1, "seconds": time.monotonic() - begin, "tokens": float(len(rows))}


def flow(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    epochs: Epochs,
    learning_rate: Rate,
    batch_size: Batch,
) -> dict[str, float]:
    """Train the last flow further, by gradient ascent on the points' log density. Adam's rate falls along a cosine.

    Returns `loss` (nats a point, mean over steps), `steps`, `seconds` and `tokens` (coordinates read). Raises
    ConfigError for several processes.
    """
    import torch

    from selfimprove.policy.flow import load, save

    _require_one_process(context)
    begin = time.monotonic()
    model = load(context.start)
    points = torch.tensor([row.array for row in rows], dtype=torch.float32)
    order = plan([2] * len(rows), epochs, batch_size, context.seed)
    steps = math.ceil(len(order) / batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for step in range(steps):
        loss = -model.log_density(points[order[step * batch_size : (step + 1) * batch_size]]).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RunError(f"train: the loss is {losses[-1]} at step {step + 1} of {steps}; a smaller learning rate?")
        context.log({"step": step + 1, "progress": (step + 1) / steps, "loss": losses[-1]})
    save(model, context.out)
    seconds = time.monotonic() - begin
    return {"loss": float(np.mean(losses)), "steps": steps, "seconds": seconds, "tokens": 2.0 * len(order)}


def _require_one_process(context: TrainContext) -> None:
    if context.training.processes > 1:
        said = f"hardware.training.processes={context.training.processes}: tables and flows are trained by one process"
        raise ConfigError(said, "hardware.training.processes")
