"""Adapters: a new one, a continued one, a merged one, and the reference of DPO."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from small_rows import LORA, logprob, rows, weights

from selfimprove.errors import ConfigError
from selfimprove.train import TrainContext
from selfimprove.train.dpo import dpo
from selfimprove.train.sft import sft

Make = Callable[..., TrainContext]


@pytest.fixture(scope="module")
def adapter(base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a policy that is an adapter on the base, trained for a few steps."""
    out = tmp_path_factory.mktemp("adapter") / "policy"
    target = TrainContext(base, base, out, 0, "cpu", "float32", 4, False, LORA, lambda figures: None)
    sft(rows(8, seed=9), target, batch_size=4, learning_rate=1e-2, epochs=3)
    return str(out)


def test_the_folder_holds_an_adapter_on_the_base_and_the_tokenizer(base: str, adapter: str) -> None:
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["q_proj", "v_proj"])
    assert (Path(adapter) / "tokenizer.json").read_text() == (Path(base) / "tokenizer.json").read_text()
    assert all("lora_" in name for name in weights(adapter))
    e = rows(1, seed=9)[0]
    assert (
        logprob(adapter, e.prompt_ids, e.completion_ids, lora=True).sum()
        > logprob(base, e.prompt_ids, e.completion_ids).sum()
    )


def test_merged_weights_say_the_same(adapter: str, tmp_path: Path) -> None:
    AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload().save_pretrained(tmp_path / "merged")
    e = rows(1, seed=3)[0]
    merged = logprob(tmp_path / "merged", e.prompt_ids, e.completion_ids)
    torch.testing.assert_close(merged, logprob(adapter, e.prompt_ids, e.completion_ids, lora=True))


def test_continuing_starts_from_the_adapter_and_moves_it(base: str, adapter: str, context: Make) -> None:
    data, logged = rows(4), list[dict[str, float]]()
    target = context(start=adapter, lora=LORA, log=logged.append)
    sft(data, target, batch_size=4, learning_rate=1e-3)
    nll = -torch.cat([logprob(adapter, e.prompt_ids, e.completion_ids, lora=True) for e in data]).mean().item()
    assert logged[0]["loss"] == pytest.approx(nll, rel=1e-5)
    before, after = weights(adapter), weights(target.out)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("continued", [False, True])
def test_dpo_takes_the_start_or_the_base_as_reference(
    base: str, adapter: str, context: Make, continued: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    data, beta = rows(4, pairs=True), 0.5
    start = adapter if continued else base
    first: dict[str, dict[str, float]] = {}
    for reference in ("start", "base"):
        logged: list[dict[str, float]] = []
        target = context(reference, start=start, lora=LORA, log=logged.append)
        dpo(data, target, beta=beta, reference=reference, batch_size=4, learning_rate=1e-3)
        first[reference] = logged[0]
        assert weights(target.out).keys() == weights(adapter).keys()
        assert not [f for f in target.out.iterdir() if f.is_dir()]  # TRL's copy of the adapter is not saved
    assert capfd.readouterr() == ("", "")
    assert first["start"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["start"]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    margins = []
    for e in data:
        chosen, rejected = (
            (logprob(start, e.prompt_ids, ids, lora=continued) - logprob(base, e.prompt_ids, ids)).sum().item()
            for ids in (e.completion_ids, e.rejected_ids or [])
        )
        margins.append(beta * (chosen - rejected))
    assert first["base"]["rewards/margins"] == pytest.approx(sum(margins) / 4, rel=1e-4, abs=1e-6)
    assert (abs(first["base"]["rewards/margins"]) > 1e-3) == continued


def test_same_seed_same_adapter_bit_for_bit(context: Make) -> None:
    dropout: dict[str, Any] = LORA | {"dropout": 0.2}
    for out in ("first", "second"):
        sft(rows(8), context(out, lora=dropout), batch_size=4, learning_rate=1e-3)
    first, second = (weights(context(out).out) for out in ("first", "second"))
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_starts_that_do_not_fit_are_refused(base: str, adapter: str, context: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.lora is null"):
        sft(rows(2), context(start=adapter), learning_rate=1e-5)
    with pytest.raises(ConfigError, match="has rank 4"):
        sft(rows(2), context(start=adapter, lora=LORA | {"r": 8}), learning_rate=1e-5)
    full = context("full")
    sft(rows(2), full, learning_rate=1e-5)
    with pytest.raises(ConfigError, match="holds full weights"):
        sft(rows(2), context(start=str(full.out), lora=LORA), learning_rate=1e-5)
