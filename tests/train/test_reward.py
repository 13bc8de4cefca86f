"""Reward models: what the model sees, the loss by hand, what a verifier reads, and that training can be repeated."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_rows import LORA, rows, timeless, weights
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.schema import Training
from selfimprove.store import file_digest
from selfimprove.train import TrainContext, checkpoint, unfinished
from selfimprove.train.dpo import dpo
from selfimprove.train.reward import classifier, reward
from selfimprove.types import Example, Problem, Sample, Trajectory
from selfimprove.verify import Context, Opening
from selfimprove.verify.reward_model import resource, verify
from selfimprove.verify.scoring import Scorer
from tests.train.test_checkpoints import die_at, killed

Make = Callable[..., TrainContext]
DROPOUT = LORA | {"dropout": 0.2}


def pairs(n: int, seed: int = 0) -> list[Example]:
    return rows(n, pairs=True, seed=seed)


def labelled(n: int, seed: int = 0) -> list[Example]:
    """Rows of which every second has the label 1."""
    found = rows(n, seed=seed)
    for i, example in enumerate(found):
        example.metadata["label"] = i % 2
    return found


def score(folder: str | Path, ids: list[int]) -> float:
    """By the model as a user would load it, one row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(model(torch.tensor([ids])).logits.item())


@pytest.fixture
def tuned(context: Make) -> str:
    """A reward model whose head is no longer near its start."""
    target = context("tuned")
    reward(pairs(8, seed=1), target, batch_size=4, learning_rate=1e-2)
    return str(target.out)


def test_the_model_sees_the_ids_of_the_pairs(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen, forward = pairs(6), list[tuple[int, ...]](), LlamaForSequenceClassification.forward

    def spy(self: Any, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.extend(tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True))
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForSequenceClassification, "forward", spy)
    result = reward(data, context(), batch_size=3, learning_rate=1e-4)
    sides = [tuple(e.prompt_ids + side) for e in data for side in (e.completion_ids, e.rejected_ids or [])]
    assert sorted(seen) == sorted(sides)
    assert result["tokens"] == sum(map(len, sides))
    assert result["steps"] == 2


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_the_loss_of_pairs_by_hand(tuned: str, context: Make, micro_batch: int) -> None:
    data, logged = pairs(5), list[dict[str, float]]()
    target = context(start=tuned, micro_batch=micro_batch, log=logged.append)
    reward(data, target, batch_size=5, learning_rate=1e-6, center=0.1)
    losses, margins = [], []
    for e in data:
        won, lost = score(tuned, e.prompt_ids + e.completion_ids), score(tuned, e.prompt_ids + (e.rejected_ids or []))
        margins.append(won - lost)
        losses.append(-F.logsigmoid(torch.tensor(won - lost)).item() + 0.1 * (won + lost) ** 2)
    assert max(map(abs, margins)) > 0.01
    assert logged[0]["loss"] == pytest.approx(sum(losses) / 5, rel=1e-4)
    if micro_batch == 5:
        assert logged[0]["margin"] == pytest.approx(sum(margins) / 5, abs=1e-5)
        assert logged[0]["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 5)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_the_loss_of_labels_by_hand(tuned: str, context: Make, micro_batch: int) -> None:
    data, logged = labelled(4), list[dict[str, float]]()
    result = classifier(
        data, context(start=tuned, micro_batch=micro_batch, log=logged.append), batch_size=4, learning_rate=1e-6
    )
    signs = [(2 * e.metadata["label"] - 1) * score(tuned, e.prompt_ids + e.completion_ids) for e in data]
    assert logged[0]["loss"] == pytest.approx(sum(math.log1p(math.exp(-s)) for s in signs) / 4, rel=1e-4)
    assert result["pair_accuracy"] == pytest.approx(sum(s > 0 for s in signs) / 4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_pairs_and_labels_are_learnt(context: Make, lora: dict[str, Any] | None) -> None:
    for name, train, data in (("pairs", reward, pairs(6)), ("labels", classifier, labelled(6))):
        how: Any = train
        first = how(data, context(name, lora=lora), batch_size=6, learning_rate=3e-3)
        last = how(data, context(name + "2", lora=lora), batch_size=6, learning_rate=3e-3, epochs=30)
        assert last["loss"] < first["loss"]


def test_micro_batch_changes_nothing_but_rounding(tuned: str, context: Make) -> None:
    for out, micro_batch in (("one", 1), ("all", 8)):
        reward(pairs(11), context(out, start=tuned, micro_batch=micro_batch), batch_size=8, learning_rate=1e-3)
    one, every = (weights(context(out).out) for out in ("one", "all"))
    assert max((one[k] - every[k]).abs().max().item() for k in one) < 2e-5


def test_deterministic_and_silent(context: Make, capfd: pytest.CaptureFixture[str]) -> None:
    for out in ("first", "second"):
        reward(pairs(8), context(out, lora=DROPOUT), batch_size=4, learning_rate=1e-3)
    assert capfd.readouterr() == ("", "")
    assert file_digest(context("first").out) == file_digest(context("second").out)


@pytest.mark.parametrize("lora", [None, DROPOUT])
@pytest.mark.parametrize("train", [reward, classifier])
def test_a_killed_phase_ends_with_the_same_bytes(context: Make, tmp_path: Path, train: Any, lora: Any) -> None:
    data = pairs(14) if train is reward else labelled(14)

    def phase(target: TrainContext) -> Any:
        return train(data, target, batch_size=4, learning_rate=1e-3, epochs=3)

    def kept(log: Any) -> TrainContext:
        parts = unfinished(tmp_path / "killed.parts", "key")
        return context("killed", lora=lora, training=Training(checkpoint_steps=3), parts=parts, log=log)

    expected = phase(context("alone", lora=lora))
    assert killed(lambda: phase(kept(die_at(5))))
    target = kept(lambda figures: None)
    assert checkpoint(target.parts) == target.parts / "checkpoint-3"  # type: ignore[operator]
    result = phase(target)
    assert file_digest(target.out) == file_digest(context("alone").out)
    assert timeless(result) == timeless(expected)


def test_what_is_no_pair_or_has_no_label_is_refused(context: Make) -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        reward([], context(), learning_rate=1e-3)
    with pytest.raises(ValueError, match="no preference pair"):
        reward(rows(1), context(), learning_rate=1e-3)
    with pytest.raises(ValueError, match="no label 0 or 1"):
        classifier(rows(1), context(), learning_rate=1e-3)
    weighted = pairs(1)
    weighted[0].weight = 2.0
    with pytest.raises(ConfigError, match="a weight or a mask"):
        reward(weighted, context(), learning_rate=1e-3)


def test_a_start_that_does_not_fit_is_one_line(tuned: str, context: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="do not fit"):
        reward(pairs(2), context(start=tuned, lora=LORA), batch_size=2, learning_rate=1e-3)
    with pytest.raises(ConfigError, match="nowhere"):
        reward(pairs(2), context(start=str(tmp_path / "nowhere"), base=str(tmp_path / "nowhere")), learning_rate=1e-3)


def scorer(path: str | Path) -> Scorer:
    model = SimpleNamespace(name="tiny", path="package", dtype="float32", trust_remote_code=False)
    opening = Opening(model, SimpleNamespace(device="cpu", max_batch=4), [], {"reward": str(path)})  # type: ignore[arg-type]
    return resource(opening, role="reward")


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_verifier_reads_ids_as_they_were_sampled(context: Make, lora: Any) -> None:
    target, data = context(lora=lora), pairs(6)
    reward(data, target, batch_size=6, learning_rate=3e-3, epochs=20)
    policy = Policy(ScriptedEngine({}), 0)
    told = Context(policy, None, scorer(target.out))  # type: ignore[arg-type]
    samples = [
        Sample(e.prompt_ids, ids or [], [], "?", "stop", 0) for e in data for ids in (e.completion_ids, e.rejected_ids)
    ]
    attempts = [Trajectory("p", [sample]) for sample in samples]
    found = asyncio.run(verify(Problem("p", "?"), attempts, told, role="reward", reward="raw"))
    won, lost = found[::2], found[1::2]
    assert all(a.reward > b.reward for a, b in zip(won, lost, strict=True))
    if lora is None:
        expected = [score(target.out, s.prompt_ids + s.completion_ids) for s in samples]
        assert [o.reward for o in found] == pytest.approx(expected, abs=1e-5)
    assert policy.meter.take()["scored@reward"] == sum(len(s.prompt_ids + s.completion_ids) for s in samples)


def test_passes_with_dropout_depend_on_the_ids_and_the_seed_alone(context: Make) -> None:
    target, data = context(lora=DROPOUT), labelled(6)
    classifier(data, target, batch_size=6, learning_rate=3e-3, epochs=5)
    model = scorer(target.out)
    ids, others = (data[i].prompt_ids + data[i].completion_ids for i in (0, 1))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = model.passes(ids, 8, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    model.passes(others, 8, seed=4)
    assert model.passes(ids, 8, seed=3) == first
    assert model.passes(ids, 8, seed=4) != first
    values = [row[0] for row in first]
    assert len(set(values)) == 8
    plain = asyncio.run(model.logits(ids))[0][0]  # without dropout, which the passes scatter around
    assert min(values) < plain < max(values)
    assert asyncio.run(model.logits(ids))[0][0] == plain


def test_passes_of_a_model_without_dropout_are_one(tuned: str) -> None:
    values = {row[0] for row in scorer(tuned).passes([1, 2, 3], 4, seed=0)}
    assert max(values) - min(values) < 1e-6


def test_an_adapter_without_a_trained_head_is_refused(context: Make) -> None:
    target = context(lora=LORA)
    dpo(pairs(2), target, batch_size=2, learning_rate=1e-3)
    with pytest.raises(RunError, match="no trained head"):
        scorer(target.out)


def test_a_role_that_no_pass_has_trained_is_one_line(base: str) -> None:
    with pytest.raises(RunError, match=r"role reward cannot be read .*no pass has trained it") as caught:
        scorer(base)
    assert "\n" not in str(caught.value)
