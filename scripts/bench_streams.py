"""Measures a task of a stream of pictures through the runner, against the same work by hand."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from selfimprove import run, sides
from selfimprove.config import compose
from selfimprove.policy import nets
from selfimprove.policy.models import resolve
from selfimprove.train import own
from selfimprove.types import Problem

Result = dict[str, Any]
WORDS = (
    "method=cl_suite",
    "method.train.family=finetune",
    "method.remember=null",  # fine-tuning reads no memory
    "tracker=none",
    "verify.workers=1",
)
TASKS, EPOCHS, BATCH, RATE = 5, 40, 32, 1e-3


def stream_vs_bare(repeats: int = 3) -> Result:
    """Seconds of a task through the runner over those of the same work by hand: classify the task's pictures, check
    them, train for 40 epochs, classify all held-out pictures. A run's start and its first task are left out on both
    sides: five tasks less one. By turns, the median of the ratios."""
    run_of(1)
    pairs = [(run_of(TASKS) - run_of(1), by_hand(TASKS) - by_hand(1)) for _ in range(repeats)]
    return {"value": statistics.median(a / b for a, b in pairs), "seconds": pairs}


def run_of(tasks: int) -> float:
    config = compose([*WORDS, f"method.train.epochs={EPOCHS}", f"rounds={tasks}"])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run.start(config, Path(folder) / "run")
        return time.perf_counter() - start


def by_hand(tasks: int) -> float:
    problems = sides.load(compose([*WORDS]).dataset, 0)
    start = time.perf_counter()
    net = nets.load(resolve("digits_vit", "package"))
    held = pictures([p for p in problems if p.split == "test"])
    for task in range(tasks):
        x, y = pictures([p for p in problems if p.split == "train" and p.metadata["task"] == task])
        right(net, x, y)
        steps = own.batches(len(x), EPOCHS, BATCH, task)
        net.train()
        optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
        for batch in steps:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        right(net, *held)
    return time.perf_counter() - start


def pictures(problems: list[Problem]) -> tuple[torch.Tensor, torch.Tensor]:
    arrays = [problem.array for problem in problems if problem.array]
    x = torch.tensor([array.data for array in arrays]).reshape(len(arrays), *arrays[0].shape)
    return x.float(), torch.tensor([int(problem.gold or 0) for problem in problems])


@torch.inference_mode()
def right(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """The share of pictures whose likeliest class is right."""
    return float((net.eval()(x).argmax(-1) == y).float().mean())
