"""Policy gradients: the loss by hand, clipping, the KL term, and what is the same however rows are dealt out."""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_rows import LORA, advantaged, logprob, rows, weights
from transformers import LlamaForCausalLM

from selfimprove.errors import ConfigError
from selfimprove.schema import Training
from selfimprove.store import file_digest
from selfimprove.train import TrainContext, checkpoint, unfinished
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft
from selfimprove.types import Example

Make = Callable[..., TrainContext]
STILL = {"batch_size": 8, "learning_rate": 1e-12}  # one step that moves nothing
LONGEST = 20


@pytest.fixture(scope="module")
def tuned(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A policy that differs from the base."""
    out = tmp_path_factory.mktemp("tuned") / "policy"
    target = TrainContext(base, base, out, 0, "cpu", "float32", 4, False, None, lambda figures: None)
    sft(rows(8, seed=9), target, batch_size=4, learning_rate=3e-3, epochs=2)
    return str(out)


def over(data: list[Example], values: list[torch.Tensor], loss: str) -> float:
    """The mean over a step of its tokens' losses, as each loss type takes it."""
    kept = [v[torch.tensor(e.mask or [1] * len(v)).bool()] for e, v in zip(data, values, strict=True)]
    if loss == "grpo":
        return sum(v.mean().item() for v in kept) / len(data)
    total = sum(v.sum().item() for v in kept)
    return total / (sum(map(len, kept)) if loss == "dapo" else len(data) * LONGEST)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("micro_batch", [3, 8])
def test_a_step_s_loss_by_hand(base: str, tuned: str, context: Make, loss: Any, micro_batch: int) -> None:
    data, beta = advantaged(8), 0.3
    logged: list[dict[str, float]] = []
    target = context(start=tuned, micro_batch=micro_batch, log=logged.append)
    longest = LONGEST if loss == "dr_grpo" else None
    result = policy_gradient(data, target, loss=loss, beta=beta, max_tokens=longest, **STILL)
    here = [logprob(tuned, e.prompt_ids, e.completion_ids) for e in data]
    away = [logprob(base, e.prompt_ids, e.completion_ids) - own for e, own in zip(data, here, strict=True)]
    kl = [d.exp() - d - 1 for d in away]
    # The ratio is 1 in the first step.
    expected = over(data, [beta * k - torch.tensor(e.advantages) for e, k in zip(data, kl, strict=True)], loss)
    assert logged[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert over(data, kl, "dapo") > 1e-3
    if micro_batch == 8:  # else figures are means over device steps
        assert result["kl"] == pytest.approx(over(data, kl, "dapo"), rel=1e-4)
        ratios = [(own + 5.0).exp().clamp(max=2.0) for own in here]
        assert result["sampler_ratio"] == pytest.approx(over(data, ratios, "dapo"), rel=1e-4)
    assert result["clipped"] == 0
    assert result["steps"] == 1


def test_a_step_does_not_depend_on_how_its_rows_are_dealt_out(context: Make) -> None:
    data = advantaged(8)
    after = []
    for micro_batch in (1, 3, 8):
        target = context(f"of_{micro_batch}", micro_batch=micro_batch)
        policy_gradient(data, target, loss="dapo", beta=0.1, batch_size=8, learning_rate=1e-3)
        after.append(weights(target.out))
    for other in after[1:]:
        assert max((after[0][k] - other[k]).abs().max().item() for k in other) < 5e-6


def test_a_positive_advantage_raises_a_token_and_a_negative_one_lowers_it(base: str, context: Make) -> None:
    data = rows(2)
    for e, sign in zip(data, (1.0, -1.0), strict=True):
        e.advantages = [sign] * len(e.completion_ids)
    target = context()
    policy_gradient(data, target, batch_size=2, learning_rate=1e-4)
    moved = [
        (logprob(target.out, e.prompt_ids, e.completion_ids) - logprob(base, e.prompt_ids, e.completion_ids)).sum()
        for e in data
    ]
    assert moved[0] > 0.01
    assert moved[1] < -0.01


def test_with_several_steps_the_ratio_is_to_the_policy_before_the_first_and_is_clipped(context: Make) -> None:
    data = advantaged(8)
    logged: list[dict[str, float]] = []
    result = policy_gradient(data, context(log=logged.append), batch_size=4, learning_rate=3e-3, epochs=4, clip=0.1)
    assert logged[0]["clip_ratio/region_mean"] == 0
    assert result["steps"] == 8
    assert max(step["clip_ratio/region_mean"] for step in logged) > 0.1
    wide: list[dict[str, float]] = []
    policy_gradient(data, context("wide", log=wide.append), batch_size=4, learning_rate=3e-3, epochs=4, clip=1.0,
                    clip_high=1e9)  # fmt: skip
    assert wide[0]["loss"] == logged[0]["loss"]
    assert wide[-1]["loss"] < logged[-1]["loss"], "what is clipped is gained no more"


def test_a_row_can_have_an_upper_clip_of_its_own(context: Make) -> None:
    """As all rows' bound the same policy as the option gives; on some rows alone another one."""
    found = {}
    for name, bounded, clip_high in (("all", 8, None), ("option", 0, 5.0), ("half", 4, None), ("none", 0, None)):
        data = advantaged(8)
        for example in data[:bounded]:
            example.metadata["clip_high"] = 5.0
        target = context(name)
        options: dict[str, Any] = {"batch_size": 4, "learning_rate": 3e-3, "epochs": 2, "clip": 0.1}
        policy_gradient(data, target, clip_high=clip_high, **options)
        found[name] = weights(target.out)

    def apart(one: str, other: str) -> float:
        return max((found[one][k] - found[other][k]).abs().max().item() for k in found[one])

    assert apart("all", "option") < 1e-6
    assert apart("half", "option") > 1e-5
    assert apart("half", "none") > 1e-5


def test_zero_advantages_leave_the_policy_as_it_is(base: str, context: Make) -> None:
    data = rows(4)
    for e in data:
        e.advantages = [0.0] * len(e.completion_ids)
    target = context()
    policy_gradient(data, target, batch_size=4, learning_rate=1e-3)
    before, after = weights(base), weights(target.out)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_each_turn_has_its_own_coefficient(base: str, tuned: str, context: Make) -> None:
    data = advantaged(4)
    for i, e in enumerate(data):
        e.advantages, e.mask, e.metadata = [0.0] * len(e.completion_ids), None, {"turn": i % 2}
    logged: list[dict[str, float]] = []
    policy_gradient(data, context(start=tuned, log=logged.append), beta=[0.0, 2.0], **STILL)
    away = [
        logprob(base, e.prompt_ids, e.completion_ids) - logprob(tuned, e.prompt_ids, e.completion_ids) for e in data
    ]
    kl = [d.exp() - d - 1 for d in away]
    expected = over(data, [k * (i % 2) * 2.0 for i, k in enumerate(kl)], "dapo")
    assert logged[0]["loss"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ConfigError, match=r"train\.beta has 1 values, and there is a turn 2"):
        policy_gradient(data, context("few"), beta=[0.1], **STILL)


def test_the_model_sees_each_row_s_ids_once_where_nothing_is_looked_back_at(
    context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    forward = LlamaForCausalLM.forward

    def spy(self: Any, input_ids: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.extend(tuple(row[mask.bool()].tolist()) for row, mask in zip(input_ids, attention_mask, strict=True))
        return forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    data = advantaged(6)
    policy_gradient(data, context(), **STILL)
    assert sorted(seen) == sorted(tuple(e.prompt_ids + e.completion_ids) for e in data)


@pytest.mark.parametrize("reference", ["start", "base"])
def test_an_adapter_is_trained_and_its_reference_is_as_for_full_weights(
    base: str, context: Make, reference: Any
) -> None:
    data = advantaged(8)
    first = context("first", lora=LORA)
    policy_gradient(data, first, batch_size=8, learning_rate=3e-2)
    logged: list[dict[str, float]] = []
    second = context("second", lora=LORA, start=str(first.out), log=logged.append)
    result = policy_gradient(data, second, beta=0.5, reference=reference, batch_size=8, learning_rate=1e-3)
    from_base = sum(
        (logprob(first.out, e.prompt_ids, e.completion_ids, lora=True) - logprob(base, e.prompt_ids, e.completion_ids))
        .abs()
        .sum()
        .item()
        for e in data
    )
    assert from_base > 0.1
    assert (result["kl"] > 1e-5) == (reference == "base")
    moved = logprob(second.out, data[0].prompt_ids, data[0].completion_ids, lora=True)
    assert not torch.equal(moved, logprob(first.out, data[0].prompt_ids, data[0].completion_ids, lora=True))


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_phase_that_is_killed_goes_on_with_the_ratios_it_had(
    context: Make, tmp_path: Path, lora: dict[str, Any] | None
) -> None:
    data, how = advantaged(8), {"batch_size": 4, "learning_rate": 1e-3, "epochs": 3.0, "beta": 0.1}
    plain = context("plain", lora=lora)
    policy_gradient(data, plain, **how)  # type: ignore[arg-type]
    parts = unfinished(tmp_path / "parts", "key")
    killed = context("killed", lora=lora, parts=parts, training=Training(checkpoint_steps=2))

    def die(figures: dict[str, float]) -> None:
        if figures["step"] == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        try:
            policy_gradient(data, replace(killed, log=die), **how)  # type: ignore[arg-type]
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert checkpoint(parts)
    policy_gradient(data, killed, **how)  # type: ignore[arg-type]
    assert file_digest(killed.out) == file_digest(plain.out)


def test_what_does_not_fit_is_refused(context: Make) -> None:
    data = advantaged(2)
    with pytest.raises(ConfigError, match=r"dr_grpo needs it"):
        policy_gradient(data, context(), loss="dr_grpo", **STILL)
    with pytest.raises(ConfigError, match="has a weight"):
        policy_gradient([replace(data[0], weight=2.0)], context(), **STILL)
    with pytest.raises(ValueError, match="no advantage for each"):
        policy_gradient(rows(2), context(), **STILL)
    with pytest.raises(ValueError, match="no rows"):
        policy_gradient([], context(), **STILL)


def test_the_names_that_trl_calls_private_are_there() -> None:
    """docs/rl.md lists them; a TRL without one of them is refused by this test."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head

    asked = ["model", "input_ids", "attention_mask", "logits_to_keep"]
    assert list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)[1:5] == asked
    assert list(inspect.signature(GRPOTrainer._compute_loss).parameters) == ["self", "model", "inputs"]
    assert len(inspect.signature(GRPOTrainer._prepare_inputs).parameters) == 2
    assert 'self._metrics = {"train"' in inspect.getsource(GRPOTrainer.__init__)
    assert {"log_probs", "entropy", "label_mask"} <= set(FusedCausalLMOutput.__dataclass_fields__)
    assert "outputs" in inspect.signature(add_fused_lm_head).parameters
