"""What vLLM's workers do when the runner is killed, with processes that stand in for vLLM's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from selfimprove.policy.vllm import RUNNER
from selfimprove.processes import parent_of
from tests.waiting import wait_for

WORKER = "import os, selfimprove.policy.vllm_worker, time; print(os.getpid(), flush=True); time.sleep(3600)"
# Workers of its own: they are told of the runner, and this core is not.
CORE = f"import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {WORKER!r}])"
COORDINATOR = (
    "import os, time; open('/proc/self/comm', 'w').write('VLLM::DPCoordin'); print(os.getpid(), flush=True); "
    "time.sleep(3600)"
)
START = """
import os, subprocess, sys
os.environ["SELFIMPROVE_RUNNER"] = str(os.getpid())
for code in sys.argv[1:]:
    child = subprocess.Popen([sys.executable, "-c", code])
    if "comm" in code:
        while not open(f"/proc/{child.pid}/comm").read().startswith("VLLM"): pass
child.wait()
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("started", [[WORKER], [CORE], [COORDINATOR, WORKER]], ids=["one", "spread", "replicas"])
def test_who_was_started_ends_with_a_runner_that_is_killed(started: list[str]) -> None:
    runner = subprocess.Popen([sys.executable, "-c", START, *started], stdout=subprocess.PIPE, text=True)
    assert runner.stdout
    pids = [int(runner.stdout.readline()) for _ in range(1 if started == [WORKER] else 2)]
    assert not [pid for pid in pids if gone(pid)]
    assert parent_of(pids[0]) == runner.pid
    runner.kill()
    runner.wait()
    wait_for(lambda: all(map(gone, pids)))


def test_a_worker_whose_runner_is_gone_before_it_begins_does_not_begin() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    done = subprocess.run([sys.executable, "-c", WORKER], env=os.environ | {RUNNER: str(dead.pid)})
    assert done.returncode == -signal.SIGKILL
