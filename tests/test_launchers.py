"""Sweeps by launchers that start members elsewhere. Slurm's commands are those of tests/slurm.py, which run the real
sbatch script on this machine; joblib and the launchers' installation are in test_sweep.py."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfimprove import sweep
from tests.conftest import SCRIPT, SMALL, environment_of
from tests.test_sweep import TABLE, statuses
from tests.waiting import PATIENCE, wait_for

FAKE = Path(__file__).parent / "slurm.py"

# hardware=slurm is for GPUs: its launcher's keys with the rest of a run on this machine.
HERE = ["hydra/launcher=submitit_slurm", "hydra.launcher.signal_delay_s=5", "hydra.launcher.max_num_timeout=3"]


@pytest.fixture
def slurm(tmp_path):
    """The environment in which Slurm's commands are found."""
    commands, state = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name in ("sbatch", "srun", "sacct", "scontrol"):
        path = commands / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} {name} "$@"\n')
        path.chmod(0o755)
    return {"PATH": f"{commands}:{os.environ['PATH']}", "SLURM_FAKE": str(state)}


@pytest.mark.slow
def test_the_slurm_hardware_asks_for_whole_nodes_and_queues_again_what_ran_out_of_time(cli, tmp_path, slurm):
    sized = [
        "hardware=slurm",
        "hardware.device=cpu",
        "hardware.gpus=0",
        "hardware.training.processes=1",
        "hardware.training.strategy=ddp",
    ]
    sized += ["hydra.launcher.partition=long", "model.dtype=float32"]
    cli("run", "-m", *TABLE, *sized, "engine=categorical", "model=categorical", "seed=0,1", **slurm)
    assert statuses(tmp_path / "sweep") == [("complete", 0)] * 2
    script = (tmp_path / "slurm" / "script.sh").read_text()
    for line in (
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--mem=960GB",
        "--time=1440",
        "--nodes=1",
        "--partition=long",
        "--signal=USR2@300",
        "--array=0-1%2",
        "--open-mode=append",
    ):
        assert f"#SBATCH {line}" in script


@pytest.mark.slow
def test_a_slurm_job_that_is_preempted_goes_on_where_it_was_and_stops_no_other(tmp_path, slurm):
    folder, state = tmp_path / "sweep", tmp_path / "slurm"
    first = folder / "0_curated_loop_categorical_categories_s0"
    arguments = [SCRIPT, "run", "-m", *TABLE, *HERE, "rounds=30", "seed=0,1"]
    environment = environment_of(tmp_path / "home", **slurm)
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for((first / "base/evaluate.manifest.json").exists, process)
    job = int((state / "71_0.pid").read_text())
    for number in (signal.SIGTERM, signal.SIGUSR2):  # what Slurm sends
        os.kill(job, number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert statuses(folder) == [("complete", 0)] * 2
    assert "resuming" in (first / "console.log").read_text()
    assert not (sweep.members(folder)[1].folder / "console.log").read_text().count("resuming")
    job_log = "".join(path.read_text() for path in (folder / ".submitit").rglob("*_log.err"))
    assert "this job is preempted" in job_log


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_two_members_with_a_model_by_each_launcher_end_as_one_after_the_other_do(cli, tmp_path, launcher):
    cli("run", "-m", *SMALL, "rounds=1", "seed=0,1", "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}")
    cli("run", "-m", *SMALL, "rounds=1", "seed=0,1", "hydra.sweep.dir=alone")
    (mine, theirs) = (sweep.members(tmp_path / name) for name in ("sweep", "alone"))
    assert [member.status for member in mine] == ["complete"] * 2
    for a, b in zip(mine, theirs, strict=True):
        assert a.summary["final"] == b.summary["final"]
        assert a.summary["rounds"][0]["tokens"] == b.summary["rounds"][0]["tokens"]
