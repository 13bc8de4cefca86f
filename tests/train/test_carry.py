"""Training that goes on: several phases with `carry` are one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from small_rows import LORA, rows, weights

from selfimprove import store
from selfimprove.train import Held, TrainContext
from selfimprove.train.carry import STEPS, WEIGHTS
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft

Make = Callable[..., TrainContext]
HOW = {"batch_size": 8, "learning_rate": 1e-3}


def far(first: Any, second: Any) -> float:
    before, after = weights(first), weights(second)
    return max((before[k].float() - after[k].float()).abs().max().item() for k in before)


def passes(context: Make, name: str, count: int, carry: bool, schedule: str = "constant", **fields: Any) -> Any:
    """The policy of `count` phases of one step each."""
    last: TrainContext | None = None
    for i in range(count):
        own = context(f"{name}{i}", round=i, rounds=count, **fields)
        if last:
            own = replace(own, start=str(last.out), last_state=last.state)
        if carry:
            own = replace(own, state=own.out.with_name(f"{name}{i}_state"))
        sft(rows(8), own, schedule=schedule, **HOW)  # type: ignore[arg-type]
        last = own
    assert last
    return last


@pytest.mark.parametrize("lora", [None, LORA])
def test_phases_that_carry_are_one_phase_of_as_many_steps(context: Make, lora: Any) -> None:
    whole = context("whole", lora=lora)
    sft(rows(8), whole, epochs=3, **HOW)  # type: ignore[arg-type]
    carried = passes(context, "carried", 3, carry=True, lora=lora)
    assert far(carried.out, whole.out) < 2e-6
    assert far(passes(context, "anew", 3, carry=False, lora=lora).out, whole.out) > 1e-4
    assert store.read_json(carried.state / STEPS) == {"steps": 3}
    assert not list(carried.state.glob("*.pt")) + list(carried.state.glob("*.bin"))


def test_a_schedule_goes_on_over_all_phases(context: Make) -> None:
    logged: list[float] = []
    passes(context, "carried", 4, carry=True, schedule="linear", log=lambda f: logged.append(f["learning_rate"]))
    assert logged == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_steps_too_small_for_bfloat16_add_up(context: Make) -> None:
    """Each would be rounded away: a bfloat16 weight of 0.2 is 0.001 from the next."""
    small = {**HOW, "learning_rate": 2e-5}
    ends = {}
    for carry in (True, False):
        last: TrainContext | None = None
        for i in range(3):
            own = context(f"{carry}{i}", dtype="bfloat16")
            if last:
                own = replace(own, start=str(last.out), last_state=last.state)
            if carry:
                own = replace(own, state=own.out.with_name(f"{carry}{i}_state"))
            sft(rows(8), own, **small)  # type: ignore[arg-type]
            last = own
        assert last
        ends[carry] = last
    assert ends[True].state
    kept = torch.cat([w.flatten() for w in _load(ends[True].state / WEIGHTS).values()])
    assert kept.dtype == torch.float32
    assert not torch.equal(kept, kept.bfloat16().float())
    moved = _distance(ends[True].out, context().base)
    assert moved > _distance(ends[False].out, context().base)


def _load(path: Any) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _distance(policy: Any, base: str) -> float:
    before, after = weights(base), weights(policy)
    return sum((before[k].bfloat16() != after[k].bfloat16()).sum().item() for k in before)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("how", [sft, policy_gradient])
def test_a_model_that_is_held_gives_the_bytes_of_one_that_is_loaded(context: Make, lora: Any, how: Any) -> None:
    data = rows(8)
    if how is policy_gradient:
        for i, e in enumerate(data):
            e.advantages = [(-1.0) ** i] * len(e.completion_ids)
    options: dict[str, Any] = {"beta": 0.1} if how is policy_gradient else {}
    ends = []
    for name, held in (("loaded", None), ("held", Held())):
        last: TrainContext | None = None
        for i in range(3):
            own = context(f"{name}{i}", lora=lora, held=held, seed=i, probe=[([1, 2], [3, 4])])
            own = replace(own, state=own.out.with_name(f"{name}{i}_state"))
            if last:
                own = replace(own, start=str(last.out), last_state=last.state)
            taken = held and held.model
            how(data, own, **HOW, **options)
            assert held is None or (taken is None) == (i == 0)
            assert held is None or held.model is not None
            last = own
        assert last
        ends.append([store.file_digest(last.out), store.file_digest(last.state)])  # type: ignore[arg-type]
    assert ends[0] == ends[1]


def test_what_is_held_of_another_policy_is_let_go_of() -> None:
    held = Held("here", ["a"], model=1, tokenizer=2)
    held.only("here", ["a"])
    assert held.model == 1
    held.only("here", ["b"])
    assert (held.model, held.tokenizer) == (None, None)
