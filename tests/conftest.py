"""The command line as a user has it: the installed `selfimprove` script, in an empty folder, with an empty home."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).parent / "selfimprove"

# A run of a few seconds: every phase, two shards, on the embedded model.
SMALL = [
    "dataset.train_size=24",
    "dataset.heldout_size=20",
    "hardware.shard=16",
    "method.train.epochs=1",
    "tracker=none",
    "verify.workers=1",
]


@pytest.fixture
def cli(tmp_path):
    """Runs `selfimprove ARGUMENTS` in tmp_path and returns the finished process."""

    def run(*arguments: str, check: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        if check is not None:
            assert done.returncode == check, done.stdout + done.stderr
        return done

    return run
