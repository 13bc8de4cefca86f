"""TensorBoard and MLflow without a server: what a run tells them, read back by their own readers."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from selfimprove.tracking import SERIES, Tracker
from selfimprove.tracking import mlflow as own_mlflow
from selfimprove.tracking import tensorboard as own_tensorboard
from tests.tracking.test_wandb import configuration, track

NAMES = ("tensorboard", "mlflow")
VALUES = {name: number / 7 for number, name in enumerate(SERIES, 1)}


def start(name: str, run: Path) -> Tracker:
    node = {"name": name, "project": "testing", "uri": (run.parent / "mlruns").as_uri()}
    module = {"tensorboard": own_tensorboard, "mlflow": own_mlflow}[name]
    return module.start(node, run, configuration())


def read(name: str, run: Path, series: str) -> list[tuple[int, float]]:
    """(step, value) of a series, by the tracker's own reader."""
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
        found.Reload()
        return [(event.step, event.value) for event in found.Scalars(series)]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(run.parent / "mlruns").as_uri())
    history = client.get_metric_history((run / "mlflow_id").read_text().strip(), series.replace("@", "_at_"))
    return sorted((metric.step, metric.value) for metric in history)


@pytest.fixture(params=NAMES)
def tracked(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A run that was tracked up to its first round, and then again to its second."""
    run = tmp_path / "run"
    run.mkdir()
    for rounds in (1, 2):
        tracker = start(request.param, run)
        track(tracker, rounds)
        tracker.round(7, {"round": 7, **VALUES, "note": "no number"})
        tracker.finish({"status": "complete"})
    return request.param, run


def test_every_series_is_read_back_and_a_resumed_run_has_nothing_twice(tracked: tuple[str, Path]) -> None:
    name, run = tracked
    accuracy = read(name, run, "evaluate/accuracy")
    assert sorted(accuracy)[:3] == [(-1, pytest.approx(0.2)), (0, pytest.approx(0.3)), (1, pytest.approx(0.4))]
    for series, value in VALUES.items():
        found = [(step, seen) for step, seen in read(name, run, series) if step == 7]
        assert found == [(7, pytest.approx(value))], series
    loss = [step for step, _ in read(name, run, "train/loss")]
    assert sorted(loss) == [1, 2, 3, 4, 5, 6]  # goes on from round to round


def test_nothing_secret_leaves(tracked: tuple[str, Path]) -> None:
    _, run = tracked
    files = [file for file in run.parent.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if b"not to be seen" in file.read_bytes()]


def test_mlflow_says_how_the_run_ended_and_what_it_was(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    start("mlflow", run).finish({"status": "stopped"})
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    known = client.get_run((run / "mlflow_id").read_text().strip())
    assert (known.info.status, known.info.run_name) == ("KILLED", "run")
    assert {"method": "rejection_sampling", "group": "sweep-1"}.items() <= known.data.tags.items()
    assert client.get_experiment(known.info.experiment_id).name == "testing"


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_the_run_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(
        sys.modules, {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow.tracking"}[name], None
    )
    tracker = start(name, tmp_path)
    track(tracker, 1)
    tracker.finish({"status": "complete"})
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert "The run goes on" in warning


def test_both_are_choices_of_a_run() -> None:
    from selfimprove.config import compose

    nodes: list[Any] = [compose([f"tracker={name}"]).tracker for name in NAMES]
    assert [node["_target_"] for node in nodes] == [f"selfimprove.tracking.{name}.start" for name in NAMES]
