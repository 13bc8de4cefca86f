"""The command line as a user has it: the installed `selfimprove` script, in an empty folder, with an empty home."""

import functools
import gc
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import selfimprove
from tests import forks
from tests.forks import SCRIPT, Command
from tests.waiting import PATIENCE

# Before anything loads torch: tests run side by side, and pools of threads that share the cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A run of a few seconds: every phase, two shards, on the embedded model.
TRAIN, HELDOUT = 12, 8
SMALL = [
    f"dataset.train_size={TRAIN}",
    f"dataset.heldout_size={HELDOUT}",
    "hardware.shard=8",
    "method.train.epochs=1",
    "tracker=none",
    "verify.workers=1",
]


def environment_of(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user with an empty home, whose `selfimprove` is the package that is tested here."""
    code = [*filter(None, [more.get("PYTHONPATH")]), str(Path(selfimprove.__file__).parents[1])]
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1"}
    return {**own, **more, "PYTHONPATH": os.pathsep.join(code)}


def run_cli(
    folder: Path, *arguments: str | Path, check: int | None = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `selfimprove ARGUMENTS` in `folder`; asserts the exit code unless `check` is None.

    The process is a fork that has made its imports. With variables that Python or an import reads it is a new one.
    """
    env = environment_of(folder / "home", **environment)
    if any(name.startswith(("HF_", "PYTHONPROFILE")) for name in environment):
        done = subprocess.run(
            [SCRIPT, *arguments],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    else:
        process = Command(folder, env, [str(argument) for argument in arguments])
        said = process.communicate()
        done = subprocess.CompletedProcess([SCRIPT, *arguments], process.returncode, *said)
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def run_here(folder: Path, *overrides: str) -> dict[str, Any]:
    """A small run in this process, which spares the seconds that a process takes to start. Returns its summary."""
    from selfimprove import run
    from selfimprove.config import compose

    return run.start(compose([*SMALL, *overrides]), folder)


@pytest.fixture
def cli(tmp_path):
    return functools.partial(run_cli, tmp_path)


@pytest.fixture(scope="module")
def cli_module(tmp_path_factory):
    """The same for fixtures of a whole module."""
    return functools.partial(run_cli, tmp_path_factory.mktemp("cli"))


def pytest_sessionstart(session):
    if hasattr(session.config, "workerinput"):  # one of several that share many tests
        forks.server()  # which imports while this process does


def pytest_collection_finish():
    """What is imported by now stays: do not look for garbage in it again and again."""
    gc.collect()
    gc.freeze()


# Tests with the marker `browser` click through pages in Chromium; where it is missing they are left out, which is said.

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config, items):
    clicking = [item for item in items if item.get_closest_marker("browser")]
    if clicking and not (CHROMIUM and CHROMEDRIVER):
        config.stash[LEFT_OUT] = len(clicking)
        config.hook.pytest_deselected(items=clicking)
        items[:] = [item for item in items if item not in clicking]


def pytest_terminal_summary(terminalreporter, config):
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{count} browser tests are left out: no Chromium with ChromeDriver (Debian: chromium, chromium-driver)"
        )
