"""Where a round's time goes."""

from __future__ import annotations

import pytest

from selfimprove.account import SAMPLING, STEPS, estimated, measured, serial_share
from selfimprove.config import compose

METRICS = {
    "round": 0,
    "generate/tokens/sampled": 4096,
    "seconds/generate": 30.0,
    "seconds/rl.verify": 5.0,  # of a stage that has a name
    "seconds/evaluate": 5.0,
    "seconds/filter": 1.0,
    "seconds/rl.train": 40.0,
    "rl.train/seconds_load": 8.0,
    "rl.train/seconds_prepare": 3.0,
    "rl.train/seconds_steps": 20.0,
    "rl.train/seconds_save": 4.0,
    "rl.train/loss": 0.5,
    "seconds/handover": 9.0,
    "generate/hashing_seconds": 0.5,
    "rl.train/hashing_seconds": 1.5,
}


def test_all_seconds_of_a_round_are_in_its_account_once() -> None:
    spent = measured(METRICS)
    whole = sum(
        value for key, value in METRICS.items() if key.startswith("seconds/") or key.endswith("hashing_seconds")
    )
    assert sum(spent.values()) == pytest.approx(whole)
    assert spent[SAMPLING] == 40
    assert spent[STEPS] == 20
    assert spent["starting processes, putting engines to sleep"] == 5  # what no other figure of training explains
    assert spent["hashing what was written"] == 2
    assert serial_share(spent) == pytest.approx((whole - 60) / whole)
    assert serial_share(measured({})) == 0


def test_the_guess_follows_what_is_read_written_and_merged() -> None:
    def guess(*more: str) -> dict[str, float]:
        return estimated(compose(["model=mistral7b", *more]))

    one, eight = guess("hardware=gpu_80gb"), guess("hardware=gpu_8x80gb", "model.lora=null")
    assert "merging the adapter" in one
    assert "merging the adapter" not in eight.keys() | guess("hardware=gpu_80gb", "engine.adapters=request").keys()
    assert one["hashing what was written"] < 1 < eight["hashing what was written"]
    assert guess() == {}  # without a GPU
