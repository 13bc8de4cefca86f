"""Maximum likelihood for policies that are not language models. Each example is one draw to fit."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from selfimprove.train import TrainContext
from selfimprove.types import Batch, Epochs, Example, Rate


def categorical(rows: Sequence[Example], context: TrainContext) -> dict[str, float]:
    """Fit a table by maximum likelihood: the share of each outcome. Only the length of the last table is used.

    Returns `loss` (nats a draw), `steps`, `seconds` and `tokens` (draws). Raises ConfigError for several processes.
    """
    from selfimprove.policy.categorical import probabilities, save
    from selfimprove.train.own import require_one_process

    require_one_process(context)
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
    from selfimprove.train import own

    own.require_one_process(context)
    model = load(context.start)
    points = torch.tensor([row.array for row in rows], dtype=torch.float32)
    steps = own.batches(len(rows), epochs, batch_size, context.seed)
    found = own.fit(
        model, steps, lambda rows: -model.log_density(points[rows]).mean(), context, learning_rate=learning_rate
    )
    save(model, context.out)
    return found | {"tokens": 2 * found["tokens"]}
