"""Phases that are killed and go on from a checkpoint end as one that was left alone, byte for byte."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_rows import rows, timeless
from transformers import Trainer

from selfimprove.schema import Training
from selfimprove.store import file_digest
from selfimprove.train import TrainContext, checkpoint, unfinished
from selfimprove.train.dpo import dpo
from selfimprove.train.residual import residual
from selfimprove.train.sft import sft

Make = Callable[..., TrainContext]
Figures = list[dict[str, float]]

DROPOUT = {"r": 4, "alpha": 8, "dropout": 0.2, "target_modules": "all-linear"}  # draws from the generator at each step
PHASES = {
    "sft": (sft, False, None, {"schedule": "cosine", "warmup_ratio": 0.2}),
    "sft with lora": (sft, False, DROPOUT, {}),
    "dpo": (dpo, True, None, {"schedule": "linear"}),
    "dpo with lora": (dpo, True, DROPOUT, {"sft_weight": 1.0}),
    "residual": (residual, True, None, {}),
}


def phase(name: str, context: TrainContext) -> dict[str, float]:
    """Eleven optimizer steps, of which the last is not full, in three epochs."""
    train, pairs, lora, options = PHASES[name]
    data = rows(14, pairs=pairs)
    for i, example in enumerate(data):
        example.metadata["margin"] = i / 10
    how: Any = train
    return how(data, replace(context, lora=lora), batch_size=4, learning_rate=1e-3, epochs=3, **options)  # type: ignore[no-any-return]


def killed(work: Callable[[], Any]) -> bool:
    """Whether `work`, in a fork, was ended by SIGKILL."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(step: int) -> Callable[[dict[str, float]], None]:
    return lambda figures: die() if figures["step"] == step else None


@pytest.fixture
def kept(context: Make, tmp_path: Path) -> Callable[..., TrainContext]:
    """Makes a context with a checkpoint every three steps in the folder `name`."""

    def make(name: str, log: Any = lambda figures: None) -> TrainContext:
        parts = unfinished(tmp_path / f"{name}.parts", "key")
        return context(name, training=Training(checkpoint_steps=3), parts=parts, log=log)

    return make


@pytest.mark.parametrize("name", PHASES)
def test_a_killed_phase_goes_on_and_ends_with_the_same_bytes(name: str, context: Make, kept: Make) -> None:
    alone, log = Figures(), Figures()
    expected = phase(name, context("alone", log=alone.append))
    assert killed(lambda: phase(name, kept("killed", die_at(5))))
    assert killed(lambda: phase(name, kept("killed", die_at(9))))  # after the next checkpoint
    target = kept("killed", log.append)
    assert checkpoint(target.parts) == target.parts / "checkpoint-6"  # type: ignore[operator]
    result = phase(name, target)
    assert file_digest(target.out) == file_digest(context("alone").out)
    assert log == alone
    assert [record["step"] for record in log] == list(range(1, 12))
    assert timeless(result) == timeless(expected)


def test_a_checkpoint_that_was_cut_short_is_not_taken(
    context: Make, kept: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    phase("sft", context("alone"))
    save, calls = Trainer._save_rng_state, list[int]()

    def dying(self: Any, *arguments: Any) -> None:  # the weights and the optimizer's state are written by now
        calls.append(1)
        if len(calls) == 2:
            die()
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_rng_state", dying)
        assert killed(lambda: phase("sft", kept("killed")))
    parts = kept("killed").parts
    assert parts
    assert (parts / "saving" / "checkpoint-6" / "model.safetensors").exists()
    assert checkpoint(parts) == parts / "checkpoint-3"
    phase("sft", kept("killed"))
    assert file_digest(kept("killed").out) == file_digest(context("alone").out)


def test_one_checkpoint_is_kept_and_another_configurations_are_not(kept: Make, tmp_path: Path) -> None:
    phase("sft", kept("policy"))
    folder = tmp_path / "policy.parts"
    assert sorted(path.name for path in folder.glob("*")) == ["checkpoint-9", "key", "probe.json", "saving"]
    assert not list((folder / "saving").iterdir())
    assert unfinished(folder, "key") == folder
    assert checkpoint(folder) == folder / "checkpoint-9"
    assert checkpoint(unfinished(folder, "other")) is None


def test_a_checkpoint_by_minutes_is_made_when_so_many_are_over(
    context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfimprove.train import trainers

    now, saved = [0.0], list[int]()
    save = Trainer._save_checkpoint

    def saving(self: Any, *arguments: Any) -> None:
        saved.append(self.state.global_step)
        save(self, *arguments)

    def step(figures: dict[str, float]) -> None:
        now[0] += 25.0  # seconds

    monkeypatch.setattr(trainers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Trainer, "_save_checkpoint", saving)
    parts = unfinished(tmp_path / "policy.parts", "key")
    phase("sft", context(training=Training(checkpoint_minutes=1), parts=parts, log=step))
    assert saved == [4, 8]  # a step is logged after it is decided whether to save
