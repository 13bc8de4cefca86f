"""No process of vLLM's outlives a runner that is killed, which would leave a GPU full: `make test-vllm`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment_of
from tests.waiting import wait_for

pytestmark = pytest.mark.vllm

RUNNER = """
import asyncio
from tests import served
from selfimprove.policy.vllm import VllmEngine
from selfimprove.policy.engines import ray

async def work(engine):
    await served.answers(engine, served.questions(2))
    print("ready", flush=True)
    await asyncio.sleep(3600)

def open_engine(kind):
    if kind != "ray":
        replicas = 2 if kind == "two" else 1
        return VllmEngine(served.TINY, served.model(), served.hardware(), eager=True, replicas=replicas)
    inner = {"name": "vllm", "_target_": "selfimprove.policy.engines.vllm", "eager": True}
    return ray(served.TINY, served.model(), served.hardware(), (), inner=inner, address=None, actors=1)

if __name__ == "__main__":
    import sys
    asyncio.run(work(open_engine(sys.argv[1])))
"""


def processes() -> dict[int, tuple[int, str]]:
    """The parent and the name of each process that has not ended."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(entry.name)] = int(parent), (entry / "comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def below(pid: int) -> dict[int, str]:
    """The processes that a process started, and theirs, by name."""
    there, found = processes(), [pid]
    for own in found:
        found += [child for child, (parent, _) in there.items() if parent == own]
    return {own: there[own][1] for own in found[1:] if own in there}


def ended(pids: dict[int, str]) -> bool:
    there = processes()
    return not [pid for pid, name in pids.items() if pid in there and there[pid][1] == name]


@pytest.mark.parametrize(
    ("kind", "when"), [("one", "answering"), ("one", "starting"), ("two", "answering"), ("ray", "answering")]
)
def test_vllm_ends_with_a_runner_that_is_killed(tmp_path: Path, kind: str, when: str) -> None:
    (tmp_path / "runner.py").write_text(RUNNER)
    where = environment_of(tmp_path, PYTHONPATH=str(tmp_path), VLLM_CPU_KVCACHE_SPACE="1")
    runner = subprocess.Popen([sys.executable, tmp_path / "runner.py", kind], stdout=subprocess.PIPE, env=where)
    assert runner.stdout

    def cores() -> dict[int, str]:
        return {pid: name for pid, name in below(runner.pid).items() if "EngineCor" in name}

    try:
        if when == "answering":
            assert runner.stdout.read(5) == b"ready"
            started = below(runner.pid)
        else:
            wait_for(lambda: bool(cores()))
            started = cores()
        assert cores()
    finally:
        runner.send_signal(signal.SIGKILL)
        runner.wait()
    wait_for(lambda: ended(started))
