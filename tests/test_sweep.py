"""A sweep through the command line: members that fail, sweeps that are stopped or killed, the launchers, Optuna."""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess

import pytest
import yaml

from selfimprove import sweep
from selfimprove.config import CONF, compose, methods
from tests.conftest import SCRIPT, environment_of
from tests.forks import Command
from tests.waiting import PATIENCE, wait_for

# Draws from a table: all of a run, without a model to load.
TABLE = [
    "experiment=curated_categorical",
    "dataset.train_size=50",
    "dataset.heldout_size=50",
    "verify.workers=1",
    "tracker=none",
    "rounds=1",
    "hydra.sweep.dir=sweep",
]
CRASHES = """
import os, signal
from selfimprove.generate.best_of_n import best_of_n
async def killed(problem, policy, *, n: int, temperature: float = 1.0, max_tokens: int | None = None):
    os.kill(os.getpid(), signal.SIGKILL)
async def raises(problem, policy, *, n: int, temperature: float = 1.0, max_tokens: int | None = None):
    raise LookupError("boom")
"""
BROKEN = "method.generate._target_=crashes.killed,no.such,selfimprove.generate.best_of_n.best_of_n"
LAST = "2_curated_loop_categorical_categories_s0"


def statuses(folder):
    return [(member.status, member.code) for member in sweep.members(folder)]


def test_members_that_are_refused_or_killed_do_not_stop_the_others(cli, tmp_path):
    (tmp_path / "crashes.py").write_text(CRASHES)
    done = cli("run", "-m", *TABLE, BROKEN, check=2, PYTHONPATH=str(tmp_path))
    folder = tmp_path / "sweep"
    assert statuses(folder) == [("failed", 1), ("failed", 2), ("complete", 0)]
    assert "1 of 3 members are done" in done.stdout
    reasons = "its process was ended by SIGKILL; was memory short?", "method.generate._target_=no.such: no such"
    for number, reason in enumerate(reasons):
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"failed: {number}: ")]
        assert reason in line
        assert line.endswith(f"(sweep/{number}_curated_loop_categorical_categories_s0)")
    assert "selfimprove resume sweep" in done.stdout
    assert (folder / "report.html").stat().st_size > 10_000
    assert not (folder / "multirun.yaml").exists()
    command = json.loads((folder / LAST / "environment.json").read_text())["command"]
    assert command.startswith("selfimprove run experiment=curated_categorical ")
    assert "hydra.run.dir=" in command
    refused = cli("run", "-m", *TABLE, "seed=0,1", check=2)
    assert "holds another sweep" in refused.stderr


@pytest.mark.slow
def test_a_member_that_was_killed_is_continued_and_one_that_is_done_is_left_alone(cli, tmp_path):
    (tmp_path / "crashes.py").write_text(CRASHES)
    path = {"PYTHONPATH": str(tmp_path)}
    cli("run", "-m", *TABLE, BROKEN, check=2, **path)
    folder = tmp_path / "sweep"
    before = (folder / LAST / "summary.json").stat().st_mtime_ns
    (tmp_path / "crashes.py").write_text("from selfimprove.generate.best_of_n import best_of_n as killed\n")
    cli("resume", "sweep", "--allow", "crashes", check=2, **path)
    assert [status for status, _ in statuses(folder)] == ["complete", "failed", "complete"]
    assert (folder / LAST / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_member_that_raises_is_one_line_with_what_it_said(cli, tmp_path):
    (tmp_path / "crashes.py").write_text(CRASHES)
    target = "method.generate._target_=crashes.raises"
    done = cli("run", "-m", *TABLE, target, "seed=0,1", check=1, PYTHONPATH=str(tmp_path))
    assert statuses(tmp_path / "sweep") == [("failed", 1)] * 2
    assert len([line for line in done.stdout.splitlines() if "LookupError: boom (sweep/" in line]) == 2


def launch(folder, *arguments):
    return Command(folder, environment_of(folder / "home"), list(arguments))


@pytest.mark.slow
def test_a_sweep_that_was_killed_and_then_stopped_is_finished_by_resume(cli, tmp_path):
    folder = tmp_path / "sweep"
    first, second = (folder / f"{n}_curated_loop_categorical_categories_s{n}" for n in (0, 1))
    process = launch(tmp_path, "run", "-m", *TABLE, "seed=0,1", "rounds=20")
    wait_for((first / "base/evaluate.manifest.json").exists, process)
    member = int((first / ".lock").read_text())
    process.kill()
    process.communicate()
    wait_for(lambda: not os.path.exists(f"/proc/{member}"))  # it does not go on alone
    assert json.loads((folder / "sweep.json").read_text())["members"][1][-1] == "seed=1"
    assert not second.exists()

    process = launch(tmp_path, "resume", "sweep")
    wait_for((second / "base/evaluate.manifest.json").exists, process)
    (line,) = cli("resume", "sweep", check=2).stderr.splitlines()
    assert f"sweep is in use by process {process.pid}: wait for it or stop it" in line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGINT, err
    assert "Traceback" not in err
    assert statuses(folder) == [("complete", 0), ("stopped", 128 + signal.SIGINT)]
    assert "1 of 2 members are done" in out

    done = cli("resume", "sweep")
    assert "2 of 2 members are done" in done.stdout
    assert "selfimprove compare sweep" in done.stdout
    assert [member.summary["seed"] for member in sweep.members(folder)] == [0, 1]


@pytest.mark.slow
def test_a_sweep_goes_on_when_the_shell_that_started_it_ends(tmp_path):
    folder = tmp_path / "sweep"
    first = folder / "0_curated_loop_categorical_categories_s0" / "base" / "evaluate.manifest.json"
    command = shlex.join([str(SCRIPT), "run", "-m", *TABLE, "seed=0,1", "rounds=5"])
    script = f"{command} >out 2>&1 & while [ ! -e {shlex.quote(str(first))} ]; do sleep 0.02; done"
    env = environment_of(tmp_path / "home")
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env=env, check=True, timeout=PATIENCE)
    wait_for((folder / "report.html").exists)
    assert statuses(folder) == [("complete", 0)] * 2, (tmp_path / "out").read_text()


def test_a_member_ended_by_a_signal_ends_the_sweep(tmp_path):
    folder = tmp_path / "sweep"
    first = folder / "0_curated_loop_categorical_categories_s0"
    process = launch(tmp_path, "run", "-m", *TABLE, "seed=0,1", "rounds=20")
    wait_for((first / "base/evaluate.manifest.json").exists, process)
    os.kill(int((first / ".lock").read_text()), signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert statuses(folder) == [("stopped", 128 + signal.SIGTERM), ("not started", 1)]
    assert re.search(r"^1 +seed=1 +not started", out, re.MULTILINE)


@pytest.mark.slow
def test_joblib_runs_members_in_its_workers_and_their_results_come_back(cli, tmp_path):
    grid = ["seed=0,1", "method.generate.n=0,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = cli("run", "-m", *TABLE, *grid, check=2)
    folder = tmp_path / "sweep"
    assert statuses(folder) == [("failed", 2), ("complete", 0)] * 2
    assert "2 of 4 members are done" in done.stdout
    for number in (1, 3):  # members at once would mix their lines
        (path,) = folder.glob(f"{number}_*")
        assert "round 0 (1 of 1) train" in (path / "console.log").read_text()
    assert "round 0" not in done.stderr


@pytest.mark.slow
def test_optuna_is_given_the_accuracy_and_asks_for_the_same_members_again(cli, tmp_path):
    space = ["hydra/sweeper=tune", "hydra.sweeper.n_trials=3", "method.generate.temperature=interval(0.7,1.3)"]
    space += ["eval.side=dev", "dataset.dev_size=50"]
    cli("run", "-m", *TABLE, *space, "method.generate.n=2")
    folder = tmp_path / "sweep"
    best = (folder / "optimization_results.yaml").read_text()
    found = sweep.members(folder)
    assert [member.status for member in found] == ["complete"] * 3
    assert f"best_value: {max(member.summary['final']['accuracy'] for member in found)}" in best
    shutil.rmtree(found[1].folder)
    cli("resume", "sweep")
    again = sweep.members(folder)
    assert [member.overrides for member in again] == [member.overrides for member in found]
    assert again[1].summary["final"] == found[1].summary["final"]
    assert (folder / "optimization_results.yaml").read_text() == best


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ray", "submitit_local"])
def test_other_launchers(cli, tmp_path, launcher):
    done = cli("run", "-m", *TABLE, "seed=0,1", f"hydra/launcher={launcher}", RAY_worker_niceness="0")
    assert statuses(tmp_path / "sweep") == [("complete", 0)] * 2
    assert "2 of 2 members are done" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["seed=0,1", "method=nope"], "method=nope: no such choice"),
        (["seed=interval(0,9)"], "hydra/sweeper=tune takes intervals"),
        (["hydra/sweeper=optuna", "seed=0,1"], "hydra.sweeper.direction: the objective is the score"),
        (["hydra/sweeper=tune", "hydra.sweeper.sampler.seed=null", "seed=0,1"], "hydra.sweeper.sampler.seed: needs a"),
        (["hydra/sweeper=tune", "method.generate.n=choice(2,3)"], "eval.side: what chooses must not see the held-out"),
    ],
)
def test_a_sweep_that_is_refused_leaves_nothing(cli, tmp_path, arguments, said):
    done = cli("run", "-m", *TABLE, *arguments, check=2)
    (line,) = done.stderr.splitlines()
    assert said in line
    assert not (tmp_path / "sweep").exists()


def test_a_launcher_that_is_not_installed_is_one_line_with_its_extra(cli, tmp_path):
    (tmp_path / "hydra_plugins").mkdir()  # in the place of the installed plugins
    (tmp_path / "hydra_plugins" / "__init__.py").touch()
    for choice, extra in (("launcher=joblib", "sweeps"), ("launcher=ray", "ray"), ("sweeper=tune", "sweeps")):
        done = cli(
            "run", "-m", *TABLE, "seed=0,1", f"hydra/{choice}", check=2, PYTHONPATH=str(tmp_path), HF_HUB_OFFLINE="1"
        )
        (line,) = done.stderr.splitlines()
        name = "optuna" if choice == "sweeper=tune" else choice.partition("=")[2]
        assert f"{name}: not installed; pip install 'selfimprove[{extra}]'" in line


def swept():
    """Each member of the experiments that are sweeps, as far as they differ in more than the seed."""
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        experiment = yaml.safe_load(path.read_text())
        params = experiment.get("hydra", {}).get("sweeper", {}).get("params", {})
        values = {key: text.split(",") for key, text in params.items() if key != "seed" and "(" not in text}
        for chosen in itertools.product(*values.values()) if params else ():
            yield path.stem, [f"{key}={value}" for key, value in zip(values, chosen, strict=True)]


@pytest.mark.parametrize(("experiment", "overrides"), list(swept()))
def test_every_member_of_an_experiment_is_a_run_that_is_not_refused(experiment, overrides):
    config = compose([f"experiment={experiment}", *overrides])
    assert config.name == experiment
    if config.method.probe:
        assert config.dataset.model_dump()["dev_size"] > 0
    if config.budget.sampled_tokens:
        assert config.rounds > 3  # room to spend it


def test_the_showdown_tunes_what_it_compares_and_the_docs_name_what_it_leaves_out():
    showdown, rates = (
        yaml.safe_load((CONF / "experiment" / f"tiny_{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
        for name in ("showdown", "rates")
    )
    assert showdown["method"] == rates["method"]
    assert rates["seed"] not in showdown["seed"].split(",")
    trained = {m["name"] for m in methods() if m["kind"] in ("training loop", "online RL")}
    chosen = set(showdown["method"].split(","))
    assert chosen <= trained
    said = (CONF.parent / "docs" / "sweeps.md").read_text().partition("Not in it:")[2]
    assert not [name for name in sorted(trained - chosen) if f"`{name}`" not in said]
