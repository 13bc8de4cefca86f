from __future__ import annotations

import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfimprove import tracking
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict
from tests.waiting import PATIENCE, wait_for

NODE = {"_target_": "selfimprove.tracking.wandb.start", "name": "wandb", "project": "testing"}


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No credentials and no settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()  # it reads the environment once a process


def configuration() -> Any:
    """What the tracker reads of a run's configuration."""
    values = {"seed": 3, "method": {"name": "rejection_sampling"}, "engine": {"api_key": "not to be seen"}}
    return SimpleNamespace(
        group="sweep-1", method=SimpleNamespace(name="rejection_sampling"), model_dump=lambda by_alias: values
    )


def attempts() -> Iterator[list[Attempt]]:
    for i, answer in enumerate(["4", None]):
        sample = Sample([1], [2, 3], [0.0, 0.0], f"so it is {answer}", "stop", seed=i)
        verdict = Verdict(f"t{i}", "correct" if answer else "unparseable", float(answer is not None), answer)
        yield [Attempt(Problem(f"p{i}", "2 + 2?", "4"), Trajectory(f"p{i}", [sample], id=f"t{i}"), verdict)]


def track(tracker: tracking.Tracker, rounds: int) -> None:
    """What a run tells its tracker, as far as it got."""
    tracker.round(-1, {"round": -1, "evaluate/accuracy": 0.2})
    for number in range(rounds):
        for step in (1, 2, 3):
            tracker.step(number, {"step": step, "progress": step / 3, "loss": 1 / step})
        tracker.table(number, attempts())
        metrics = {"evaluate/accuracy": 0.3 + number / 10, "verify/verdicts/correct": 7, "filter/explore/pass@4": 0.5}
        tracker.round(number, {"round": number, **metrics, "generate/tokens/sampled": 99, "seconds/train": 1.5})


def records(folder: Path) -> list[Any]:
    """The records of the .wandb files below a run folder, in order: LevelDB logs of protobuf messages.

    A file starts with 7 bytes of its own and is cut into blocks of 32 KiB. A chunk is checksum (4 bytes), length (2),
    type (1: whole; 2, 3, 4: first, middle, last part) and data; fewer than 7 bytes at a block's end are padding.
    """
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        data, at, parts = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            if not kind:
                break
            parts += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                found.append(wandb_internal_pb2.Record.FromString(parts))  # type: ignore[attr-defined]
                parts = b""
    return found


def history(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def series(rows: list[dict[str, Any]], axis: str, name: str) -> list[tuple[float, float]]:
    return [(row[axis], row[name]) for row in rows if name in row]


def test_offline_run_holds_every_series(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    caplog.set_level(logging.INFO)
    from selfimprove.tracking.wandb import start

    tracker = start(NODE, tmp_path, configuration())
    track(tracker, 2)
    tracker.finish({"status": "complete", "base": {"accuracy": 0.2}, "final": {"accuracy": 0.4}, "rounds": []})

    rows = history(tmp_path)
    assert series(rows, "round", "evaluate/accuracy") == [(-1, 0.2), (0, 0.3), (1, 0.4)]
    for name, value in [("verify/verdicts/correct", 7), ("filter/explore/pass@4", 0.5), ("seconds/train", 1.5)]:
        assert series(rows, "round", name) == [(0, value), (1, value)]
    assert series(rows, "round", "generate/tokens/sampled") == [(0, 99), (1, 99)]
    loss = series(rows, "train/step", "train/loss")  # goes on from round to round
    assert loss == [(1, 1), (2, 1 / 2), (3, 1 / 3), (4, 1), (5, 1 / 2), (6, 1 / 3)]
    tables = [(row["round"], row["attempts/path"]) for row in rows if "attempts/path" in row]
    assert [number for number, _ in tables] == [0, 1]
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    table = json.loads((folder / "files" / tables[0][1]).read_text())
    assert [dict(zip(table["columns"], line, strict=True))["status"] for line in table["data"]] == [
        "correct",
        "unparseable",
    ]

    found = records(tmp_path)
    axes = {r.metric.name: r.metric.step_metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert axes["evaluate/accuracy"] == axes["attempts"] == "round"
    assert axes["train/loss"] == "train/step"
    run = next(r.run for r in found if r.WhichOneof("record_type") == "run")
    assert (run.run_id, run.run_group) == ((tmp_path / "wandb_id").read_text().strip(), "sweep-1")
    assert (run.job_type, run.display_name) == ("rejection_sampling", tmp_path.name)
    values = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert values["seed"] == 3
    assert values["engine"] == {"api_key": "<removed>"}

    assert f"wandb sync {folder}" in caplog.text
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "")


def test_killed_run_goes_on_and_nothing_is_doubled(tmp_path: Path) -> None:
    """A process is killed after a round; the next one repeats what a resumed run repeats, and goes on."""
    program = (
        "import sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_wandb as t; from selfimprove.tracking.wandb import start\n"
        "t.track(start(t.NODE, Path(sys.argv[1]), t.configuration()), 1)\n"
        "print('logged', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"logged\n"
        wait_for(lambda: len(history(tmp_path)) == 6, process)
        os.killpg(process.pid, signal.SIGKILL)
    before = (tmp_path / "wandb_id").read_text()
    assert len(history(tmp_path)) == 6

    from selfimprove.tracking.wandb import start

    tracker = start(NODE, tmp_path, configuration())
    track(tracker, 2)
    tracker.finish({"status": "complete"})
    assert (tmp_path / "wandb_id").read_text() == before
    rows = history(tmp_path)
    assert series(rows, "round", "evaluate/accuracy") == [(-1, 0.2), (0, 0.3), (1, 0.4)]
    assert [step for step, _ in series(rows, "train/step", "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [row["_step"] for row in rows] == list(range(len(rows)))  # W&B drops rows whose own step falls
    identities = {r.run.run_id for r in records(tmp_path) if r.WhichOneof("record_type") == "run"}
    assert identities == {before.strip()}


def test_a_refused_key_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from selfimprove.tracking.wandb import start

    monkeypatch.setenv("WANDB_API_KEY", "too-short-to-be-one")
    tracker = start(NODE, tmp_path, configuration())
    tracker.round(0, {"evaluate/accuracy": 0.5})
    tracker.finish({"status": "stopped"})
    assert series(history(tmp_path), "round", "evaluate/accuracy") == [(0, 0.5)]
    assert "logs offline" in caplog.text
    assert "too-short" not in caplog.text


def test_missing_package_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from selfimprove.tracking.wandb import start

    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = start(NODE, tmp_path, configuration())
    track(tracker, 1)
    tracker.finish({"status": "complete"})
    (warning,) = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert "wandb" in warning
    assert "The run goes on" in warning


class Broken:
    """A backend that fails in `round` and counts what else reaches it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def round(self, number: int, metrics: dict[str, Any]) -> None:
        raise ConnectionError("no route to host")

    def step(self, number: int, record: dict[str, Any]) -> None:
        self.seen.append("step")

    def table(self, number: int, rows: list[dict[str, Any]]) -> None:
        self.seen.append("table")

    def finish(self, summary: dict[str, Any]) -> None:
        self.seen.append("finish")


def test_an_outage_warns_once_and_the_rest_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    backend = Broken()
    tracker = tracking.Background(lambda: backend)
    track(tracker, 2)
    tracker.finish({"status": "complete"})
    assert backend.seen == [*["step"] * 3, "table", *["step"] * 3, "table", "finish"]
    (warning,) = [r.message for r in caplog.records]
    assert "ConnectionError: no route to host" in warning


@pytest.mark.parametrize("where", ["connect", "finish"])
def test_a_hanging_tracker_is_left_behind(where: str, caplog: pytest.LogCaptureFixture) -> None:
    release, waited = threading.Event(), []

    def hang() -> None:
        waited.append(release.wait(PATIENCE))

    class Hanging(Broken):
        def __init__(self) -> None:
            super().__init__()
            if where == "connect":
                hang()

        def round(self, number: int, metrics: dict[str, Any]) -> None: ...

        def finish(self, summary: dict[str, Any]) -> None:
            hang()

    tracker = tracking.Background(Hanging, start_seconds=0.2, finish_seconds=0.2)
    track(tracker, 1)
    tracker.finish({"status": "complete"})
    assert not waited, "nobody waited for it"
    assert len(caplog.records) == 1
    release.set()


def test_no_tracker_and_no_import(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from selfimprove import tracking; import selfimprove.tracking.wandb\n"
        "tracker = tracking.none({}, Path('.'), None); tracker.round(0, {'a': 1})\n"
        "tracker.finish({'status': 'complete'})\n"
        "assert not {'wandb', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
