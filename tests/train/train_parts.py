"""Train functions that tests/train/test_launch.py names in a job."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

from selfimprove.train import TrainContext
from selfimprove.train.dpo import dpo
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft
from selfimprove.types import Example


def train(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    batch_size: int,
    epochs: float = 1,
    on_cpu: bool = False,
    die_at: int = 0,
    fail: str = "",
) -> dict[str, float]:
    """`sft`, `dpo` of pairs, or policy gradients of rows with advantages and a KL term, at a learning rate of 1e-3.

    With `on_cpu` several processes on a CPU pass for one of the kinds of device for which accelerate has FSDP: it
    leaves FSDP out on a CPU, though torch's runs there over gloo. The main process kills itself after step `die_at`.
    A ValueError that says `fail` comes before the first.
    """
    if fail:
        raise ValueError(fail)
    if on_cpu:
        from accelerate import state

        kinds = state.DistributedType
        shown: Any = SimpleNamespace(**{kind.name: kind for kind in kinds} | {"MULTI_NEURON": kinds.MULTI_CPU})
        state.DistributedType = shown

    def log(figures: dict[str, float]) -> None:
        context.log(figures)
        if figures["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    how: Any = dpo if rows[0].rejected_ids else sft
    if rows[0].advantages:
        how = partial(policy_gradient, beta=0.1)
    result: dict[str, float] = how(
        rows, replace(context, log=log), batch_size=batch_size, epochs=epochs, learning_rate=1e-3
    )
    return result
