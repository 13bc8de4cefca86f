"""Kill -9 at any instant, resume, and the run ends as if nothing had happened."""

import json
import signal
import sys

import pytest

from selfimprove.cli import _main
from tests.conftest import SMALL, environment_of, run_here
from tests.forks import Command, drive
from tests.waiting import wait_for

# Right after every phase of a round, and inside each: between shards and in the middle of one (generate, evaluate),
# between verdicts, before a file is renamed, between optimiser steps, and before the policy's folder is renamed.
BOUNDARIES = ["manifest:-1/evaluate", "manifest:0/verify", "manifest:0/train", "manifest:1/evaluate"]
INSIDE = ["replace:1", "step:60", "verdict:30", "train:1", "replace:27"]
MORE = ["manifest:0/generate", "manifest:0/filter", "manifest:0/evaluate"]
MORE += ["step:20", "step:150", "train:2", "replace:24"]


def few(points):
    """The points a few at a time, so that no test is long."""
    return [points[i : i + 2] for i in range(0, len(points), 2)]


@pytest.mark.parametrize("points", few(BOUNDARIES), ids="+".join)
def test_a_run_killed_at_each_phase_boundary_ends_as_if_it_had_not_been(tmp_path, points):
    drive(tmp_path, "method=rejection_sampling", points)


@pytest.mark.parametrize("points", few(INSIDE), ids="+".join)
def test_a_run_killed_inside_each_phase_ends_as_if_it_had_not_been(tmp_path, points):
    drive(tmp_path, "method=rejection_sampling", points)


@pytest.mark.slow
@pytest.mark.parametrize("points", few(MORE), ids="+".join)
def test_a_run_killed_elsewhere_ends_as_if_it_had_not_been(tmp_path, points):
    drive(tmp_path, "method=rejection_sampling", points)


@pytest.mark.slow
def test_iterative_dpo_survives_a_kill_in_training(tmp_path):
    drive(tmp_path, "method=iterative_dpo", ["train:1", "manifest:0/train"])


@pytest.mark.slow
@pytest.mark.parametrize("points", few(["manifest:0/train", "manifest:1/generate", "train:3", "manifest:3/train"]))
def test_a_round_of_several_passes_survives_kills_in_each(tmp_path, points):
    drive(tmp_path, "method.parts=2 hardware.shard=4", points)


@pytest.mark.slow
@pytest.mark.parametrize("points", few(["manifest:0/adapt", "replace:16", "replace:9", "manifest:0/verify"]))
def test_a_round_that_tunes_itself_and_asks_a_judge_survives_kills(tmp_path, points):
    tuned = "method=bstar dataset.dev_size=6 method.probe.n=2 method.probe.temperatures.step=0.7 method.generate.n=4"
    asked = f"{tuned} method.train.steps=3 verifier=judge_arithmetic hardware.shard=4"
    drive(tmp_path, asked, points)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rejection_sampling", "iterative_dpo"])
def test_every_single_rename(tmp_path, method):
    assert len(drive(tmp_path, f"method={method}", ["replace:all"])) > 50


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_resume_finishes(tmp_path, capfd, number):
    run = tmp_path / "run"
    size = ["rounds=1", "dataset.train_size=80", "method.filter.per_problem=1"]  # much to sample, little to train on
    process = Command(tmp_path, environment_of(tmp_path), ["run", *SMALL, *size, f"hydra.run.dir={run}"])
    wait_for((run / "rounds/000/trajectories.parts").exists, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("stopped", signal.Signals(number).name)

    assert _main(["resume", str(run)]) == 0
    said = capfd.readouterr().err
    assert "found base/evaluate" in said, said
    assert json.loads((run / "summary.json").read_text())["status"] == "complete"


def test_a_finished_run_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", sys.argv)
    run = tmp_path / "run"
    run_here(run, "rounds=1")
    before = (run / "summary.json").read_text()
    assert _main(["resume", str(run)]) == 0
    assert "complete: nothing to do" in capfd.readouterr().err
    assert (run / "summary.json").read_text() == before
    assert _main(["run", *SMALL, f"hydra.run.dir={run}"]) == 2
    assert "already holds a run" in capfd.readouterr().err
