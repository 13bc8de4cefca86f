"""Processes of tests that pay for no imports: forks of one that has made them, the server.

A worker of pytest has one server. It reads lines of JSON and answers each by one: what to start by a process id, a
process id by its exit code, null while it runs, and runs to be killed by what became of them (kill_driver.py).
"""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

from selfimprove.processes import die_with
from tests.waiting import PATIENCE

SCRIPT = Path(sys.executable).parent / "selfimprove"


@functools.cache
def server():
    """The process, which needs some seconds before it answers, and the file of its errors."""
    home = tempfile.mkdtemp(prefix="forks")
    errors, code = Path(home, "errors"), "from tests.forks import serve; serve()"
    environment = {"HOME": home, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    environment |= {"PATH": os.environ["PATH"], "TMPDIR": tempfile.gettempdir()}
    with errors.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            cwd=home,
            env=environment,
        )
    atexit.register(lambda: (process.kill(), process.wait(), shutil.rmtree(home, ignore_errors=True)))
    return process, errors


def _ask(request):
    process, errors = server()
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    if not (line := process.stdout.readline()):
        server.cache_clear()
        raise AssertionError(errors.read_text()[-5000:])
    return json.loads(line)


def drive(folder: Path, overrides: str, points: list[str]) -> list[str]:
    """Kill a run at each point and resume it; raises AssertionError unless it ends as one that was left alone."""
    said = _ask({"drive": [str(folder), overrides, *points]})
    assert all(line.endswith("equal") for line in said), "\n".join(said)
    return said


class Command:
    """A process that runs `selfimprove ARGUMENTS` in `folder`, with what tests use of subprocess.Popen."""

    def __init__(
        self, folder: Path, environment: dict[str, str], arguments: list[str], output: Path | None = None
    ) -> None:
        """`output` takes what it writes to stdout and stderr; without one, `communicate` returns it."""
        self._said = [output or Path(tempfile.mkstemp(prefix=name)[1]) for name in ("stdout", "stderr")]
        self.returncode: int | None = None
        self.pid: int = _ask([arguments, str(folder), environment, *map(str, self._said)])

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        deadline = time.monotonic() + PATIENCE
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.01)
        return code

    def communicate(self) -> tuple[str, str]:
        """Wait for its end; returns what it wrote to stdout and stderr."""
        self.wait()
        out, err = (path.read_text() for path in self._said)
        for path in self._said:
            path.unlink()
        return out, err


def serve() -> None:
    """Answer requests until there are no more. In a fork: become what was asked for, and end as it ends."""
    import selfimprove.report.html  # noqa: F401
    from tests import kill_driver

    kill_driver.warm()
    made: dict[str, tuple[Path, int]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, int):
            known, status = os.waitpid(request, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if known else None
        elif isinstance(request, dict):
            answer = kill_driver.answer(*request["drive"], made=made)
        elif (answer := os.fork()) == 0:
            return _become(*request)
        print(json.dumps(answer), flush=True)


def _become(arguments: list[str], folder: str, environment: dict[str, str], output: str, errors: str) -> None:
    die_with(os.getppid())  # what a failed test leaves behind ends with the tests
    for number, path in enumerate((os.devnull, output, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [place for place in environment["PYTHONPATH"].split(os.pathsep) if place not in sys.path]
    main = types.ModuleType("__main__")  # as processes that this one starts by multiprocessing want to know it
    main.__file__ = str(SCRIPT)
    sys.modules["__main__"] = main
    sys.argv = [str(SCRIPT), *arguments]
    from selfimprove.cli import main as command

    command()
