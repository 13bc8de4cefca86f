"""Regression of log-ratios on rewards: the loss by hand, and where a step goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_rows import logprob, rows

from selfimprove.train import TrainContext
from selfimprove.train.residual import residual
from selfimprove.train.sft import sft

Make = Callable[..., TrainContext]


@pytest.mark.parametrize("micro_batch", [1, 5])
def test_first_loss_by_hand_against_the_base(base: str, context: Make, micro_batch: int) -> None:
    start, beta, logged = context("tuned"), 0.3, list[dict[str, float]]()
    sft(rows(8, seed=9), start, batch_size=4, learning_rate=3e-3, epochs=2)
    data = rows(5, pairs=True)
    expected = 0.0
    for i, e in enumerate(data):
        e.metadata["margin"] = i - 1.5
        ratios = [
            (logprob(start.out, e.prompt_ids, ids).sum() - logprob(base, e.prompt_ids, ids).sum()).item()
            for ids in (e.completion_ids, e.rejected_ids or [])
        ]
        expected += (beta * (ratios[0] - ratios[1]) - (i - 1.5)) ** 2 / 5
    target = context(start=str(start.out), micro_batch=micro_batch, log=logged.append)
    residual(data, target, beta=beta, batch_size=5, learning_rate=5e-7)
    assert logged[0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_log_ratios_approach_the_rewards(base: str, context: Make) -> None:
    (example,) = data = rows(1, pairs=True)
    example.metadata["margin"] = 0.5
    target = context()
    residual(data, target, beta=0.25, learning_rate=3e-3, epochs=120, batch_size=1, schedule="linear")
    ratios = [
        (logprob(target.out, example.prompt_ids, ids) - logprob(base, example.prompt_ids, ids)).sum().item()
        for ids in (example.completion_ids, example.rejected_ids or [])
    ]
    assert ratios[0] - ratios[1] == pytest.approx(2.0, abs=0.1)  # margin / beta


def test_pairs_need_a_margin(context: Make) -> None:
    with pytest.raises(ValueError, match="margin"):
        residual(rows(2, pairs=True), context(), learning_rate=5e-7)
