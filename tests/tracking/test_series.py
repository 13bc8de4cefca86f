"""What real runs log, read back from what the trackers wrote, and the dashboards that show it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from selfimprove.tracking import SERIES
from tests.conftest import SMALL
from tests.tracking.test_wandb import history, records, series
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(cli_module: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run with each tracker."""
    folder, store = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("trackio")
    secret = {"WANDB_MODE": "offline", "SERVICE_API_KEY": "a-key-nobody-sees", "TRACKIO_DIR": str(store)}
    overrides = [word for word in SMALL if word != "tracker=none"]
    made = {name: folder / name for name in ("wandb", "trackio")}
    for name, run in made.items():
        cli_module("run", *overrides, "rounds=2", f"tracker={name}", f"hydra.run.dir={run}", **secret)
    return made | {"store": store}


def logged(run: Path, name: str) -> list[tuple[int, float]]:
    """What the run's own files have of a series."""
    rounds = [json.loads(file.read_text()) for file in sorted(run.glob("rounds/*/metrics.json"))]
    return [(row["round"], row[name]) for row in rounds if name in row]


def points(store: Path, run: str, name: str) -> list[tuple[int, float]]:
    """The same of trackio's data."""
    (file,) = store.glob("selfimprove*.db")
    with sqlite3.connect(file) as connection:
        rows = connection.execute("select step, metrics from metrics where run_name = ? order by id", [run]).fetchall()
    found = [(step, json.loads(text)) for step, text in rows]
    return [(step, row[name]) for step, row in found if name in row]


@pytest.mark.parametrize("name", SERIES)
def test_every_promised_series_is_logged_over_the_round(runs: dict[str, Path], name: str) -> None:
    own = logged(runs["wandb"], name)
    assert [number for number, _ in own] == [0, 1]
    rows = history(runs["wandb"])
    assert [point for point in series(rows, "round", name) if point[0] >= 0] == own
    axes = {
        r.metric.name: r.metric.step_metric for r in records(runs["wandb"]) if r.WhichOneof("record_type") == "metric"
    }
    assert axes[name] == "round"
    assert f"`{name}`" in (ROOT / "docs" / "tracking.md").read_text()

    title = (runs["trackio"] / "trackio_name").read_text().strip()
    found = [point for point in points(runs["store"], title, name) if point[0] >= 0]
    assert found == logged(runs["trackio"], name)


def test_both_start_at_the_base_policy_and_hold_no_secret(runs: dict[str, Path]) -> None:
    title = (runs["trackio"] / "trackio_name").read_text().strip()
    assert series(history(runs["wandb"]), "round", "evaluate/accuracy")[0][0] == -1
    assert points(runs["store"], title, "evaluate/accuracy")[0][0] == -1
    for folder in runs.values():
        for file in folder.rglob("*"):
            assert not file.is_file() or b"a-key-nobody-sees" not in file.read_bytes(), file


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wandb_workspace", ROOT / "scripts" / "wandb_workspace.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_workspace_shows_what_runs_log_by_method_over_the_round(
    script: ModuleType, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["wandb_workspace.py", "--dry-run"])
    script.main()
    spec = json.loads(capsys.readouterr().out)["spec"]["section"]
    assert spec["settings"]["xAxis"] == "round"
    assert spec["runSets"][0]["grouping"] == [{"section": "config", "name": "method.value.name"}]
    keys = {key for row in history(runs["wandb"]) for key in row}
    seen = set()
    for section in spec["panelBankConfig"]["sections"]:
        assert section["panels"], section["name"]
        for panel in section["panels"]:
            chart = panel["config"]
            assert chart["xAxis"] == "round"
            assert (chart["groupBy"], chart["groupAgg"], chart["groupArea"]) == ("method.value.name", "mean", "minmax")
            for name in chart.get("metrics", []):
                assert name in SERIES
                assert name in keys
                seen.add(name)
    assert {"evaluate/accuracy", "filter/exploit/kept_reward", "generate/tokens/sampled"} <= seen
    (pattern,) = script.PATTERNS["Exploration and exploitation"].values()
    assert [key for key in keys if re.fullmatch(pattern, key)] != []
    config = next(r.run for r in records(runs["wandb"]) if r.WhichOneof("record_type") == "run").config.update
    assert json.loads(next(i.value_json for i in config if i.key == "method"))["name"] == "rejection_sampling"


def test_a_resumed_run_stays_one_run_in_trackio(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.tracking.test_wandb import track, configuration\n"
        "from selfimprove.tracking.trackio import start\n"
        "for rounds in (1, 2):\n"
        "    tracker = start({'project': 'selfimprove'}, Path(sys.argv[1]), configuration())\n"
        "    track(tracker, rounds); tracker.finish({'status': 'complete'})"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store"), "HF_HOME": str(tmp_path / "home")}
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    title = (tmp_path / "run" / "trackio_name").read_text().strip()
    assert points(tmp_path / "store", title, "evaluate/accuracy") == [(-1, 0.2), (0, 0.3), (1, 0.4)]
    assert [step for step, _ in points(tmp_path / "store", title, "train/loss")] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def dashboard(runs: dict[str, Path]) -> Iterator[str]:
    """The address of trackio's dashboard for the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = (
        f"import trackio, time; trackio.show(project='selfimprove', server_port={port}, open_browser=False, "
        "block_thread=False); print('up', flush=True); time.sleep(600)"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(runs["store"]), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line != "up\n":
            pass
        yield f"http://127.0.0.1:{port}/?project=selfimprove"
        process.kill()


@pytest.mark.browser
def test_the_trackio_dashboard_draws_the_run(runs: dict[str, Path], dashboard: str, tmp_path: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    driver = shutil.which("chromedriver")
    assert driver, "needs Debian's chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile"):
        options.add_argument(word)
    title = (runs["trackio"] / "trackio_name").read_text().strip()
    with webdriver.Chrome(options=options, service=Service(driver)) as browser:
        browser.get(dashboard)

        def drawn() -> bool:
            text = browser.execute_script("return document.body.innerText")
            return title in text and "accuracy" in text

        wait_for(drawn)
        addresses = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert not [a for a in addresses if not a.startswith(("http://127.0.0.1", "data:", "blob:"))]
