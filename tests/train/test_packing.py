"""Rows laid end to end: the same losses and weights as with padding, and no row sees another."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_rows import LORA, rows, weights
from transformers import LlamaForCausalLM

from selfimprove.schema import Training
from selfimprove.train import TrainContext
from selfimprove.train.dpo import dpo
from selfimprove.train.sft import sft

Make = Callable[..., TrainContext]
PACKED = Training(packing=True)


@pytest.mark.parametrize("lora", [None, LORA])
def test_packed_rows_learn_as_padded_ones(context: Make, lora: dict[str, Any] | None) -> None:
    data = rows(11)
    data[1].mask = [0, 1] + [0] * (len(data[1].completion_ids) - 2)
    data[2].weight = 0.25
    logs: dict[str, list[dict[str, float]]] = {"padded": [], "packed": []}
    for out, how in (("padded", Training()), ("packed", PACKED)):
        target = context(out, training=how, lora=lora, log=logs[out].append)
        sft(data, target, batch_size=8, learning_rate=1e-3, epochs=2)
    for padded, packed in zip(logs["padded"], logs["packed"], strict=True):
        assert packed == pytest.approx(padded, rel=1e-4)
    padded_weights, packed_weights = (weights(context(out).out) for out in logs)
    assert max((padded_weights[k] - packed_weights[k]).abs().max().item() for k in padded_weights) < 2e-5


def test_the_model_gets_one_row_without_padding(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = LlamaForCausalLM.forward

    def spy(self: Any, input_ids: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **kwargs)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    data = rows(4)
    sft(data, context(training=PACKED), batch_size=4, learning_rate=1e-5)
    assert shapes == [(1, sum(e.tokens for e in data))]


def test_a_row_does_not_see_the_one_before_it(context: Make) -> None:
    """Other ids of one row, which bears no loss, leave the other's loss and gradient as they were."""
    one, other = rows(2, seed=5)
    one.mask = [0] * len(one.completion_ids)
    seen = []
    for out, shift in (("first", 0), ("second", 1)):
        one.prompt_ids = [(token + shift) % 256 for token in one.prompt_ids]
        one.completion_ids = [(token + shift) % 256 for token in one.completion_ids]
        for name, data in (("both", [one, other]), ("turned", [other, one])):
            logged: list[dict[str, float]] = []
            sft(data, context(out + name, training=PACKED, log=logged.append), batch_size=2, learning_rate=1e-5)
            seen.append((logged[0]["loss"], logged[0]["grad_norm"]))
    logged = []
    sft([other], context("alone", log=logged.append), batch_size=1, learning_rate=1e-5)
    for loss, norm in seen:
        assert loss == pytest.approx(logged[0]["loss"], rel=1e-6)
        assert norm == pytest.approx(logged[0]["grad_norm"], rel=1e-5)


def test_pairs_are_padded_all_the_same(context: Make) -> None:
    """TRL packs no pairs: `packing` is for supervised fine-tuning, and changes nothing of DPO."""
    data = rows(4, pairs=True)
    for out, how in (("padded", Training()), ("packed", PACKED)):
        dpo(data, context(out, training=how), batch_size=4, learning_rate=1e-3)
    padded, packed = (weights(context(out).out) for out in ("padded", "packed"))
    assert all(torch.equal(padded[k], packed[k]) for k in padded)
