"""Trained weights reach the sampler, or the run stops."""

import json
from pathlib import Path

import pytest

from selfimprove import run
from selfimprove.config import compose
from selfimprove.errors import RunError
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import is_adapter

SIZES = ["dataset.train_size=24", "dataset.heldout_size=10", "tracker=none", "verify.workers=1", "eval.samples=0"]
TAKE = TransformersEngine.load


def start(path, *overrides):
    return run.start(compose([*SIZES, *overrides]), path)


def keeps_everything(engine, path):
    """A sampler that says it has taken new weights, and has not."""


def keeps_one_layer(engine, path):
    """A sampler that has taken all new weights but those of its first layer's attention."""
    old = {k: v.clone() for k, v in engine.model.state_dict().items() if "layers.0.self_attn" in k}
    assert old
    TAKE(engine, path)
    engine.model.load_state_dict({**engine.model.state_dict(), **old})


@pytest.mark.parametrize("train", ["sft", "dpo"])
def test_what_is_trained_is_what_samples_next(tmp_path, train):
    method = {"sft": "rejection_sampling", "dpo": "iterative_dpo"}[train]
    summary = start(tmp_path, "rounds=2", f"method={method}")
    for number in (0, 1):
        found = summary["rounds"][number]["handover"]
        assert found["gap"] <= found["gap_max"] < 1e-4 < found["moved"], found
        assert summary["rounds"][number]["seconds"]["handover"] > 0
    first, second = (
        json.loads((tmp_path / "rounds" / n / "policy" / "handover.json").read_text()) for n in ("000", "001")
    )
    assert len(first["answers"]) == 4
    assert first["answers"] == second["answers"]
    assert second["before"] == [pytest.approx(said, abs=1e-5) for said in first["after"]]


# Training moves log-probabilities by far less than 0.1: that old weights are nearer must be enough.
@pytest.mark.parametrize(("fault", "tolerance"), [(keeps_everything, 0.1), (keeps_one_layer, 1e-5)])
def test_a_sampler_with_old_weights_stops_the_run(tmp_path, monkeypatch, fault, tolerance):
    monkeypatch.setattr(TransformersEngine, "load", fault)
    with pytest.raises(RunError, match="engine=transformers does not have the weights that were trained"):
        start(tmp_path, "rounds=1", f"handover.tolerance={tolerance}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "handover.tolerance" in summary["reason"]
    assert not (tmp_path / "rounds" / "000" / "handover.manifest.json").exists()


@pytest.mark.parametrize("merges", [False, True])
def test_an_adapter_is_handed_over_whole(tmp_path, monkeypatch, merges):
    """By an engine that reads adapters, and by one whose adapters are merged into the run folder before."""
    read = []

    def reads(engine, path):
        folder = Path(path)
        read.append((folder.relative_to(tmp_path).parts, is_adapter(folder), [f.name for f in folder.parent.iterdir()]))
        TAKE(engine, path)

    monkeypatch.setattr(TransformersEngine, "load", reads)
    monkeypatch.setattr(TransformersEngine, "merges", merges, raising=False)
    summary = start(tmp_path, "rounds=2", "model.lora={r: 4, alpha: 8}", "method.train.learning_rate=1e-3")
    for row in summary["rounds"]:
        assert row["handover"]["gap_max"] < 1e-4 < row["handover"]["moved"]
    if merges:  # the newest alone, for as long as the run lasts
        assert read == [(("merged", "policy", str(n)), False, [str(n)]) for n in (1, 2)]
        assert not (tmp_path / "merged").exists()
    else:
        assert [adapter for _, adapter, _ in read] == [True, True]


def test_a_policy_without_tokens_is_not_asked(tmp_path):
    config = compose(["experiment=curated_categorical", "rounds=1", "tracker=none"])
    assert "handover" not in run.start(config, tmp_path)["rounds"][0]
    assert not (tmp_path / "rounds" / "000" / "policy" / "handover.json").exists()
