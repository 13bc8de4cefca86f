"""Supervised fine-tuning: what the model sees, the loss, and what is saved."""

from __future__ import annotations

import inspect
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_rows import logprob, rows, weights
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from selfimprove.errors import ConfigError, RunError
from selfimprove.schema import Training
from selfimprove.train import TrainContext, arguments, device_steps, plan
from selfimprove.train.sft import sft
from selfimprove.types import Example

Make = Callable[..., TrainContext]


def test_the_model_sees_the_ids_and_labels_of_the_examples(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.sft_trainer import SFTTrainer

    data = rows(6)
    data[0].mask = [int(i % 2 == 0) for i in range(len(data[0].completion_ids))]
    ids: list[tuple[int, ...]] = []
    labels: list[tuple[int, ...]] = []
    forward, compute_loss = LlamaForCausalLM.forward, SFTTrainer.compute_loss

    def see_ids(self: Any, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        for row, mask in zip(input_ids, attention_mask, strict=True):
            ids.append(tuple(row[mask.bool()].tolist()))
            assert mask[: len(ids[-1])].all()  # padding is on the right
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def see_labels(self: Any, model: Any, inputs: dict[str, Any], *args: Any) -> Any:
        for row, mask in zip(inputs["labels"], inputs["attention_mask"], strict=True):
            labels.append(tuple(row[mask.bool()].tolist()))
            assert (row[~mask.bool()] == -100).all()
        return compute_loss(self, model, inputs, *args)

    see_ids.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", see_ids)
    monkeypatch.setattr(SFTTrainer, "compute_loss", see_labels)
    sft(data, context(), batch_size=6, epochs=2, learning_rate=1e-5)

    expected_ids = [tuple(e.prompt_ids + e.completion_ids) for e in data]
    expected_labels = []
    for e in data:
        kept = e.mask or [1] * len(e.completion_ids)
        completion = [t if m else -100 for t, m in zip(e.completion_ids, kept, strict=True)]
        expected_labels.append((*[-100] * len(e.prompt_ids), *completion))
    assert sorted(ids) == sorted(expected_ids * 2)
    assert sorted(labels) == sorted(expected_labels * 2)


def test_loss_and_gradient_are_those_of_the_weighted_masked_mean_nll(base: str, context: Make) -> None:
    data = rows(5)
    data[1].mask = [0, 1] + [0] * (len(data[1].completion_ids) - 2)
    data[2].weight = 0.25
    logged: list[dict[str, float]] = []
    result = sft(data, context(micro_batch=2, log=logged.append), batch_size=5, max_grad_norm=1e9, learning_rate=1e-5)

    model = AutoModelForCausalLM.from_pretrained(base)
    total, count = torch.zeros(()), 0
    for e in data:
        table = model(torch.tensor([e.prompt_ids + e.completion_ids])).logits[0].log_softmax(-1)
        for i, token in enumerate(e.completion_ids):
            if e.mask is None or e.mask[i]:
                total = total - e.weight * table[len(e.prompt_ids) + i - 1, token]
                count += 1
    loss = total / count
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert len(logged) == 1
    assert logged[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert logged[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    assert result["loss"] == logged[0]["loss"]
    assert (result["steps"], result["loss_tokens"], result["tokens"]) == (1, count, sum(e.tokens for e in data))


def test_micro_batch_changes_nothing_but_rounding(context: Make) -> None:
    data = rows(11)  # the second step has 3 rows
    for out, micro_batch in (("one", 1), ("all", 8)):
        sft(data, context(out, micro_batch=micro_batch), batch_size=8, learning_rate=1e-3, epochs=2)
    one, every = (weights(context(out).out) for out in ("one", "all"))
    assert max((one[k] - every[k]).abs().max().item() for k in one) < 2e-5


def test_same_seed_same_weights_bit_for_bit(context: Make) -> None:
    data = rows(12)
    results = []
    for out, noise in (("first", 1), ("second", 2)):
        torch.manual_seed(noise)
        random.seed(noise)
        sft(data, context(out), batch_size=4, learning_rate=1e-3)
        results.append(weights(context(out).out))
    sft(data, context("third", seed=5), batch_size=4, learning_rate=1e-3)
    first, second = results
    assert all(torch.equal(first[k], second[k]) for k in first)
    third = weights(context("third").out)
    assert any(not torch.equal(first[k], third[k]) for k in first)


def test_policy_folder_loads_and_keeps_configs_and_tokenizer(base: str, context: Make) -> None:
    data = rows(4)
    target = context()
    sft(data, target, batch_size=4, learning_rate=1e-2, epochs=5)
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (target.out / name).read_text() == (Path(base) / name).read_text(), name
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (base, target.out))
    assert after.special_tokens_map == before.special_tokens_map
    assert after.pad_token is None
    assert after("12+3").input_ids == before("12+3").input_ids
    e = data[0]
    assert (
        logprob(target.out, e.prompt_ids, e.completion_ids).sum() > logprob(base, e.prompt_ids, e.completion_ids).sum()
    )


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4, "dropout": 0.1, "target_modules": "all-linear"}])
def test_bfloat16_with_checkpointing_trains_almost_as_float32(
    base: str, context: Make, lora: dict[str, Any] | None
) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        target = context(dtype, dtype=dtype, gradient_checkpointing=True, lora=lora)
        losses.append(sft(rows(8), target, batch_size=8, learning_rate=1e-3, epochs=3)["loss"])
        saved = {str(w.dtype) for w in weights(target.out).values()}
        assert saved == {"torch.float32" if lora else f"torch.{dtype}"}
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_small_steps_are_not_lost_in_bfloat16(base: str, context: Make) -> None:
    """Thirty steps of 1e-5 move weights of about 0.2; added one by one to bfloat16 weights, they would vanish."""
    moved = {}
    for dtype in ("float32", "bfloat16"):
        target = context(dtype, dtype=dtype)
        sft(rows(4), target, batch_size=4, learning_rate=1e-5, epochs=30)
        start, end = weights(base), weights(target.out)
        moved[dtype] = torch.cat([(end[k].float() - start[k].to(end[k].dtype).float()).flatten() for k in start])
    share = moved["bfloat16"] @ moved["float32"] / moved["float32"].square().sum()
    assert share.item() == pytest.approx(1, abs=0.15)


def test_silent_and_leaves_nothing_behind(
    context: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "cwd")
    logged: list[dict[str, float]] = []
    sft(rows(4), context(log=logged.append), batch_size=2, learning_rate=1e-3, warmup_ratio=0.5, schedule="linear")
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "cwd").iterdir())
    assert sorted(f.name for f in (tmp_path / "policy").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [(r["step"], r["progress"], r["learning_rate"]) for r in logged] == [(1, 0.5, 0.0), (2, 1.0, 1e-3)]


def test_a_phase_of_one_step_is_not_all_warm_up(context: Make) -> None:
    logged: list[dict[str, float]] = []
    sft(rows(2), context(log=logged.append), batch_size=2, learning_rate=1e-3, warmup_ratio=0.03, schedule="cosine")
    assert [record["learning_rate"] for record in logged] == [1e-3]


@pytest.mark.parametrize("data", [[], [Example("p", [], [1, 2], [3, 4], mask=[0, 0])]])
def test_rows_without_a_token_to_learn_are_refused(data: list[Example], context: Make) -> None:
    with pytest.raises(ValueError, match="no token to train on"):
        sft(data, context(), learning_rate=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(context: Make) -> None:
    target = context()
    with pytest.raises(RunError, match="the loss is nan at step 2"):
        sft(rows(8), target, batch_size=4, learning_rate=1e38)
    assert not target.out.exists()


def test_plan_covers_each_epoch_once_and_sorts_inside_a_step() -> None:
    lengths = [random.Random(0).randrange(50) for _ in range(10)]
    order = plan(lengths, 2.5, 4, seed=0)
    assert len(order) == 25
    assert sorted(order[:20] + order[20:]) == sorted(order)
    counts = [order.count(i) for i in range(10)]
    assert set(counts) <= {2, 3}
    for start in range(0, 25, 4):
        step = [lengths[i] for i in order[start : start + 4]]
        assert step == sorted(step, reverse=True)
    assert order != plan(lengths, 2.5, 4, seed=1)


@pytest.mark.parametrize(
    ("processes", "micro_batch", "expected"), [(1, 4, (4, 3)), (1, 5, (4, 3)), (1, 100, (12, 1)), (2, 4, (3, 2))]
)
def test_global_batch_is_kept(context: Make, processes: int, micro_batch: int, expected: tuple[int, int]) -> None:
    target = context(micro_batch=micro_batch, training=Training(processes=processes))
    made = arguments(target, "unused", 24, {"batch_size": 12, "learning_rate": 1e-5})
    assert (made["per_device_train_batch_size"], made["gradient_accumulation_steps"]) == expected


def test_a_batch_that_processes_cannot_share_is_refused_before_a_model_loads(context: Make) -> None:
    with pytest.raises(ConfigError, match="batch_size is 12: it must be a multiple"):
        sft(rows(2), context(start="nowhere", training=Training(processes=5)), batch_size=12, learning_rate=1e-5)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 12, 17, 23, 24])
def test_device_steps_hold_each_row_once_and_never_cross_an_optimizer_step(processes: int, count: int) -> None:
    order, micro, batch = list(range(100, 100 + count)), 4 if processes == 1 else 2, 12
    steps = device_steps(order, batch, micro, processes, blank=-1)
    assert [row for step in steps for row in step if row != -1] == order
    assert len(steps) % processes == 0  # all processes take as many
    assert all(1 <= len(step) <= micro for step in steps)
    assert all(step == [-1] or -1 not in step for step in steps)
    accumulated = batch // processes // micro  # device steps of a process in an optimizer step
    for i, step in enumerate(steps):
        whole = i // (processes * accumulated)
        assert all(whole == (row - 100) // batch for row in step if row != -1)
