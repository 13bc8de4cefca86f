"""Preference optimization: what the model sees, the loss against its reference, and the direction of a step."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_rows import logprob, rows, weights
from transformers import LlamaForCausalLM

from selfimprove.errors import ConfigError
from selfimprove.train import TrainContext
from selfimprove.train.dpo import dpo, row
from selfimprove.train.sft import sft
from selfimprove.types import Example

Make = Callable[..., TrainContext]


@pytest.fixture(scope="module")
def tuned(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy that differs from the base."""
    out = tmp_path_factory.mktemp("tuned") / "policy"
    target = TrainContext(base, base, out, 0, "cpu", "float32", 4, False, None, lambda figures: None)
    sft(rows(8, seed=9), target, batch_size=4, learning_rate=3e-3, epochs=2)
    return str(out)


def log_ratio(policy: str | Path, reference: str, e: Example, rejected: bool = False) -> float:
    completion = e.rejected_ids if rejected else e.completion_ids
    assert completion
    return (logprob(policy, e.prompt_ids, completion).sum() - logprob(reference, e.prompt_ids, completion).sum()).item()


def test_the_model_sees_the_ids_of_the_pairs(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(6, pairs=True)
    seen: list[tuple[int, ...]] = []
    forward = LlamaForCausalLM.forward

    def spy(self: Any, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.extend(tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True))
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    dpo(data, context(), batch_size=3, learning_rate=5e-7)
    expected = [tuple(e.prompt_ids + e.completion_ids) for e in data]
    expected += [tuple(e.prompt_ids + (e.rejected_ids or [])) for e in data]
    assert sorted(seen) == sorted(expected * 2)  # the reference once, the policy once


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_first_loss_by_hand_against_the_base(base: str, tuned: str, context: Make, micro_batch: int) -> None:
    data, beta, sft_weight = rows(5, pairs=True), 0.3, 0.5
    logged: list[dict[str, float]] = []
    target = context(start=tuned, micro_batch=micro_batch, log=logged.append)
    dpo(data, target, beta=beta, sft_weight=sft_weight, reference="base", batch_size=5, learning_rate=5e-7)
    losses, margins = [], []
    for e in data:
        margin = beta * (log_ratio(tuned, base, e) - log_ratio(tuned, base, e, rejected=True))
        nll = -logprob(tuned, e.prompt_ids, e.completion_ids).mean().item()
        losses.append(-F.logsigmoid(torch.tensor(margin)).item() + sft_weight * nll)
        margins.append(margin)
    assert max(map(abs, margins)) > 0.01
    assert logged[0]["loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)
    assert logged[0]["rewards/margins"] == pytest.approx(sum(margins) / 5, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_conservative_loss_of_each_pair_by_hand(base: str, tuned: str, context: Make, micro_batch: int) -> None:
    data, beta, smoothing = rows(4, pairs=True), 0.3, [0.0, 0.2, 0.5, 1.0]
    for e, share in zip(data, smoothing, strict=True):
        e.metadata["label_smoothing"] = share
    logged: list[dict[str, float]] = []
    target = context(start=tuned, micro_batch=micro_batch, log=logged.append)
    dpo(data, target, beta=beta, reference="base", batch_size=4, learning_rate=5e-7)
    losses = []
    for e, share in zip(data, smoothing, strict=True):
        z = torch.tensor(beta * (log_ratio(tuned, base, e) - log_ratio(tuned, base, e, rejected=True)))
        losses.append((-(1 - share) * F.logsigmoid(z) - share * F.logsigmoid(-z)).item())
    assert logged[0]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_weighted_loss_of_each_pair_by_hand(base: str, tuned: str, context: Make, micro_batch: int) -> None:
    data, beta, sft_weight = rows(4, pairs=True), 0.3, 0.5
    data[0].metadata["label_smoothing"] = 0.2
    for e, weight in zip(data, (1.5, 0.5, 0.0, 1.0), strict=True):
        e.weight = weight
    logged: list[dict[str, float]] = []
    target = context(start=tuned, micro_batch=micro_batch, log=logged.append)
    dpo(data, target, beta=beta, sft_weight=sft_weight, reference="base", batch_size=4, learning_rate=5e-7)
    losses = []
    for e in data:
        z = torch.tensor(beta * (log_ratio(tuned, base, e) - log_ratio(tuned, base, e, rejected=True)))
        nll = -logprob(tuned, e.prompt_ids, e.completion_ids).mean().item()
        smoothed = e.metadata.get("label_smoothing", 0.0) * z.item()
        losses.append(e.weight * (-F.logsigmoid(z).item() + smoothed + sft_weight * nll))
    assert logged[0]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-5)


def test_pairs_of_weight_zero_teach_nothing(base: str, context: Make) -> None:
    data, target = rows(4, pairs=True), context()
    for e in data:
        e.weight = 0.0
    dpo(data, target, batch_size=4, learning_rate=1e-3, sft_weight=1.0)
    before, after = weights(base), weights(target.out)
    assert max((before[k] - after[k]).abs().max().item() for k in before) < 1e-6


def test_a_weight_of_a_pair_needs_the_sigmoid_loss_and_cannot_be_negative(context: Make) -> None:
    data = rows(2, pairs=True)
    data[1].weight = 0.5
    with pytest.raises(ConfigError, match=r"train\.loss=sigmoid"):
        dpo(data, context(), loss="ipo", batch_size=2, learning_rate=5e-7)
    data[1].weight = -1.0
    with pytest.raises(ValueError, match="weight -1"):
        dpo(data, context(), batch_size=2, learning_rate=5e-7)


def test_half_smoothed_pairs_teach_nothing_at_the_reference(base: str, context: Make) -> None:
    data, target = rows(4, pairs=True), context()
    for e in data:
        e.metadata["label_smoothing"] = 0.5
    dpo(data, target, batch_size=4, learning_rate=1e-3)
    before, after = weights(base), weights(target.out)
    assert max((before[k] - after[k]).abs().max().item() for k in before) < 1e-6


def test_smoothing_of_a_pair_needs_the_sigmoid_loss(context: Make) -> None:
    data = rows(2, pairs=True)
    data[1].metadata["label_smoothing"] = 0.1
    with pytest.raises(ConfigError, match=r"train\.loss=sigmoid"):
        dpo(data, context(), loss="ipo", batch_size=2, learning_rate=5e-7)
    data[1].metadata["label_smoothing"] = 1.1
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo(data, context(), batch_size=2, learning_rate=5e-7)


def test_common_leading_tokens_bear_no_loss(base: str, tuned: str, context: Make) -> None:
    plain = Example("p", ["t"], [1, 2, 3], [7, 8, 9, 10], rejected_ids=[7, 8, 11])
    assert row(plain, skip_common=True) == {
        "prompt_ids": [1, 2, 3, 7, 8],
        "chosen_ids": [9, 10],
        "rejected_ids": [11],
        "label_smoothing": 0.0,
        "weight": 1.0,
        "counts": 1.0,
    }
    start = Example("p", ["t"], [1], [7, 8], rejected_ids=[7, 8, 9])  # one is the start of the other
    assert row(start, skip_common=True)["chosen_ids"] == [8]
    logged: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for skip, seen in logged.items():
        target = context(f"skip {skip}", start=tuned, log=seen.append)
        dpo([plain], target, reference="base", batch_size=1, skip_common=skip, learning_rate=5e-7)
    assert logged[True][0]["loss"] == pytest.approx(logged[False][0]["loss"], rel=1e-5)
    after = log_ratio(tuned, base, Example("p", [], [1, 2, 3, 7, 8], [9, 10]))
    assert logged[True][0]["rewards/chosen"] == pytest.approx(0.1 * after, rel=1e-3)
    assert logged[False][0]["rewards/chosen"] != pytest.approx(0.1 * after, rel=1e-3)


def test_the_start_is_its_own_reference(tuned: str, context: Make) -> None:
    logged: list[dict[str, float]] = []
    dpo(rows(8, pairs=True), context(start=tuned, log=logged.append), batch_size=4, learning_rate=1e-3)
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert logged[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert abs(logged[1]["rewards/margins"]) > 1e-4


def test_chosen_rises_and_rejected_falls(base: str, context: Make) -> None:
    data, target = rows(4, pairs=True), context()
    dpo(data, target, batch_size=4, learning_rate=1e-3, epochs=10)
    for e in data:
        assert log_ratio(target.out, base, e) > 0
        assert log_ratio(target.out, base, e, rejected=True) < 0


def test_micro_batch_changes_nothing_but_rounding(tuned: str, base: str, context: Make) -> None:
    data = rows(11, pairs=True)  # the second step has 3 pairs
    for out, micro_batch in (("one", 1), ("two", 2), ("all", 8)):
        target = context(out, start=tuned, micro_batch=micro_batch)
        dpo(data, target, batch_size=8, learning_rate=1e-3, sft_weight=1.0, reference="base")
    start, one, two, every = (
        weights(folder) for folder in (tuned, *(context(out).out for out in ("one", "two", "all")))
    )
    moved = apart(one, start)
    assert apart(one, every) < 2e-3 * moved  # Adam makes a whole step of a gradient that is nothing but rounding
    assert apart(one, two) < 2e-3 * moved


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The distance of two sets of weights."""
    return math.sqrt(sum((one[name] - other[name]).square().sum().item() for name in one))


def test_deterministic_silent_and_leaves_nothing_behind(
    context: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    data, results = rows(8, pairs=True), []
    for out in ("first", "second"):
        result = dpo(data, context(out), batch_size=4, learning_rate=1e-3)
        results.append(weights(context(out).out))
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "tmp").iterdir())
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert result["tokens"] == sum(e.tokens for e in data)
    assert result["loss_tokens"] == sum(len(e.completion_ids) + len(e.rejected_ids or []) for e in data)


@pytest.mark.parametrize(("loss", "smoothing"), [("ipo", 0.0), ("hinge", 0.0), ("robust", 0.1), ("apo_zero", 0.0)])
def test_other_losses_of_trl_run(context: Make, loss: str, smoothing: float) -> None:
    result = dpo(rows(2, pairs=True), context(), loss=loss, label_smoothing=smoothing, batch_size=2, learning_rate=5e-7)
    expected = {"ipo": 25.0, "hinge": 1.0, "robust": math.log(2), "apo_zero": 1.0}  # at a margin of zero, beta 0.1
    assert result["loss"] == pytest.approx(expected[loss], rel=1e-5)


def test_what_is_not_supported_is_refused(context: Make) -> None:
    pair = rows(1, pairs=True)[0]
    with pytest.raises(ConfigError, match=r"train\.loss is 'aot'"):
        dpo([pair], context(), loss="aot", learning_rate=5e-7)
    with pytest.raises(ConfigError, match="label_smoothing"):
        dpo([pair], context(), label_smoothing=0.1, learning_rate=5e-7)
    with pytest.raises(ValueError, match="no rows"):
        dpo([], context(), learning_rate=5e-7)
    with pytest.raises(ValueError, match="no preference pair"):
        dpo(rows(1), context(), learning_rate=5e-7)
    pair.mask = [1] * len(pair.completion_ids)
    with pytest.raises(ConfigError, match="has a mask"):
        dpo([pair], context(), learning_rate=5e-7)
