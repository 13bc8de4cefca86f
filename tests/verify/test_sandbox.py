"""The sandbox holds what is thrown at it, loses nothing of what honest programs print, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from selfimprove.errors import ConfigError
from selfimprove.verify import sandbox
from tests.verify.hostile.programs import PROGRAMS, Hostile

HERE = Path(__file__).parent
# No other process has this limit, nor any of another worker of this suite, so that ours are known by it.
MEMORY_MB = 257 + 10 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
BOTH = pytest.mark.parametrize("name", ["bubblewrap", "unsafe_subprocess"])


def processes(memory_mb: int) -> list[str]:
    """Command lines of the processes that are alive under this memory limit."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f" {memory_mb << 20} " in (folder / "limits").read_text():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
    return found


def children() -> list[str]:
    """State and name of this process's own children, dead ones too."""
    pids = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [Path("/proc", pid, "stat").read_text() for pid in pids]


def missing() -> None:
    """Where bubblewrap is not installed, its absence is what is tested."""
    if not shutil.which("bwrap"):
        with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
            sandbox.require("bubblewrap")
        pytest.skip(f"needs bubblewrap: {sandbox.INSTALL}")


@pytest.fixture(scope="module")
def bubblewrap() -> str:
    missing()
    return "bubblewrap"


def run(program: str, name: str = "bubblewrap", seconds: float = 20, **options: object) -> sandbox.Result:
    if name == "bubblewrap":
        missing()
    limits = {"memory_mb": MEMORY_MB, "output_bytes": 100_000} | options
    return sandbox.run(program, seconds=seconds, sandbox=name, **limits)  # type: ignore[arg-type]


# Honest programs


@BOTH
def test_streams_code_and_files(name: str) -> None:
    program = "import sys, other; print(input(), open('ä.txt').read(), other.X); sys.stderr.write('e'); sys.exit(3)"
    result = run(program, name, stdin="ünï\n", files={"ä.txt": "text", "other.py": "X = 7"})
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("exit", 3, "ünï text 7\n", "e")
    assert 0 < result.seconds < 20


@BOTH
def test_large_input_and_both_outputs_at_once_do_not_block(name: str) -> None:
    program = "import sys; t = sys.stdin.read(); sys.stderr.write(t[::-1]); print(t)"
    text = "0123456789" * 100_000
    result = run(program, name, stdin=text, output_bytes=len(text) + 1)
    assert (result.status, result.stdout, result.stderr) == ("ok", text + "\n", text[::-1])
    assert run("import os; os.close(0); print(1)", name, stdin=text).stdout == "1\n"


@BOTH
def test_output_is_cut_at_its_limit(name: str) -> None:
    assert run("print('x' * 99, end='')", name, output_bytes=99).status == "ok"
    result = run("print('x' * 100, end='')", name, output_bytes=99)
    assert (result.status, result.exit_code, result.stdout) == ("output", None, "x" * 99)


@BOTH
def test_ends_are_told_apart(name: str) -> None:
    assert run("1 / 0", name).stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run("import os; os.abort()", name).status == "killed"
    assert run("x = bytearray(1 << 30)", name).status == "memory"
    late = run("while True: pass", name, seconds=0.5)
    assert (late.status, late.counted >= 0.5) == ("timeout", True)


def test_a_busy_machine_is_no_timeout(bubblewrap: str) -> None:
    """A program that needs a third of its time, beside others that leave it a tenth of a core."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(10 * (os.cpu_count() or 1))]
    try:
        result = run("import time\nwhile time.process_time() < 0.3: pass", seconds=1)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert result.status == "ok", result
    assert result.counted <= min(1.5, result.seconds)


SHARED = """
import os, time
block = b"x" * (150 << 20)
for _ in range(5):
    if os.fork() == 0:
        assert block.count(b"x") == 150 << 20
        time.sleep(0.4)
        os._exit(0)
for _ in range(5):
    os.wait()
"""


@BOTH
def test_pages_that_processes_share_are_counted_once(name: str) -> None:
    assert run(SHARED, name).status == "ok"
    one = "import mmap\nblock = mmap.mmap(-1, 150 << 20)\nfor _ in range(150): block.write(b'x' * (1 << 20))"
    again = SHARED.replace('block = b"x" * (150 << 20)', one).replace('block.count(b"x")', "len(block)")
    assert run(again, name).status == "ok"


def test_files_in_memory_count(bubblewrap: str) -> None:
    fill = "import time\nwith open('/tmp/x', 'wb') as file:\n    for _ in range(60): file.write(b'x' * (1 << 20))\n"
    block = f"block = b'x' * ({MEMORY_MB - 50} << 20)\n"
    assert run("import time\n" + block + "time.sleep(0.5)").status == "ok"
    assert run(fill + block + "time.sleep(1000)", seconds=60).status == "memory"  # it waits until it is seen


@BOTH
def test_sets_have_the_same_order_each_time(name: str) -> None:
    assert len({run("print(set('abcdefgh'))", name).stdout for _ in range(3)}) == 1


@BOTH
def test_threads_do_not_mix_and_nothing_is_left(name: str) -> None:
    run("pass", name)
    before, others = sorted(os.listdir("/proc/self/fd")), {state.split()[0] for state in children()}
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda i: run(f"import sys; print({i}, input())", name, stdin=f"{i}"), range(12)))
    assert [result.stdout for result in results] == [f"{i} {i}\n" for i in range(12)]
    assert sorted(os.listdir("/proc/self/fd")) == before
    left = [state for state in children() if state.split()[0] not in others]
    assert not [state for state in left if "bwrap" in state or "python" in state]


# What is refused before anything runs


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder with all tools of the sandbox but bwrap, which is the only one that they are looked for in."""
    for tool in ("prlimit", "setpriv"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/none")
    monkeypatch.setenv("PATH", str(tmp_path))
    remembered = (sandbox._tool, sandbox._fixed_options)
    for found in remembered:
        found.cache_clear()
    yield tmp_path
    for found in remembered:
        found.cache_clear()


def test_no_bubblewrap_is_refused_with_its_install_command(tools: Path) -> None:
    with pytest.raises(ConfigError, match=r"verifier.sandbox=bubblewrap.*apt-get install bubblewrap") as caught:
        sandbox.require("bubblewrap")
    assert "unsafe_subprocess" in str(caught.value)
    assert "\n" not in str(caught.value)
    sandbox.require("unsafe_subprocess")


def test_a_bubblewrap_that_cannot_work_is_refused_with_what_it_said(tools: Path) -> None:
    (tools / "bwrap").write_text("#!/bin/sh\necho 'bwrap: Creating new namespace failed' >&2\nexit 1\n")
    (tools / "bwrap").chmod(0o755)
    temporary = Path(tempfile.gettempdir())
    for folder in (tools, *tools.parents):  # root runs it as another user
        if folder != temporary and folder.is_relative_to(temporary):
            folder.chmod(0o755)
    with pytest.raises(ConfigError, match="Creating new namespace failed"):
        sandbox.require("bubblewrap")


def test_unknown_sandbox_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"verifier\.sandbox=gvisor: no such sandbox"):
        sandbox.require("gvisor")


def test_what_guarded_a_run_is_said(bubblewrap: str) -> None:
    sandbox.require(bubblewrap)
    said = sandbox.describe(bubblewrap)
    assert said["isolation"].startswith("bubblewrap ")
    assert said["seccomp"].startswith(("on", "off: pip install"))
    assert sandbox.describe("unsafe_subprocess")["isolation"].startswith("none")


# Hostile programs


class Host:
    """The machine outside: what a program must not read, change or reach."""

    def __init__(self, folder: Path, stack: list[socket.socket]) -> None:
        self.folder = folder
        self.secret = os.urandom(16).hex()
        self.mark = f"hostile{os.getpid()}"
        self.canary = folder / "canary"
        self.canary.write_text(self.secret)
        os.environ[self.mark] = self.secret
        self.servers = stack
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("0.0.0.0", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "socket")),
            (socket.AF_UNIX, socket.SOCK_STREAM, "\0" + self.mark + "server"),
        ):
            server = socket.socket(family, kind)
            server.bind(address)
            server.setblocking(False)
            if kind == socket.SOCK_STREAM:
                server.listen()
            self.servers.append(server)
        for path in (folder, self.canary, folder / "socket"):  # what protects them is the sandbox alone
            path.chmod(0o777)
        self.listing = sorted(os.listdir(folder))

    def facts(self) -> dict[str, object]:
        addresses: list[object] = []
        with suppress(OSError):
            addresses += [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)]
        return {
            "abstract": self.mark + "server",
            "addresses": addresses,
            "canary": str(self.canary),
            "checkout": str(HERE.parents[1]),
            "folder": str(self.folder),
            "home": str(Path.home()),
            "hostname": socket.gethostname(),
            "mark": self.mark,
            "pid": os.getpid(),
            "tcp": self.servers[0].getsockname()[1],
            "udp": self.servers[1].getsockname()[1],
            "unix": str(self.folder / "socket"),
            "variable": self.mark,
        }

    def harm(self) -> list[str]:
        """What has happened to the machine."""
        found = []
        if self.canary.read_text() != self.secret:
            found.append("the canary was changed")
        if sorted(os.listdir(self.folder)) != self.listing:
            found.append("a file was made or removed")
        found += [path for path in (f"/tmp/{self.mark}", f"/usr/{self.mark}", f"/{self.mark}") if os.path.exists(path)]
        for server in self.servers:
            with suppress(BlockingIOError):
                server.recv(1) if server.type == socket.SOCK_DGRAM else server.accept()
                found.append(f"{server.getsockname()!r} was reached")
        return found


@pytest.fixture(scope="module")
def attacks(bubblewrap: str) -> Iterator[dict[str, tuple]]:
    """Each program's result and the harm seen after it; all are run once, two at a time."""
    servers: list[socket.socket] = []
    folder = tempfile.TemporaryDirectory(dir="/var/tmp")  # not in /tmp, of which a sandbox has one of its own
    host = Host(Path(folder.name), servers)
    files = {"attack.py": (HERE / "hostile" / "attack.py").read_text(), "facts.json": json.dumps(host.facts())}

    def attack(hostile: Hostile) -> tuple:
        result = run(hostile.program, seconds=hostile.seconds, files=files)
        return result, host.harm() + ["the secret got out"] * (host.secret in result.stdout + result.stderr)

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(attack, PROGRAMS))
    left = processes(MEMORY_MB)
    yield dict(zip([hostile.name for hostile in PROGRAMS], results, strict=True)) | {"": (left,)}
    os.environ.pop(host.mark)
    for server in servers:
        server.close()
    folder.cleanup()


@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda hostile: f"{hostile.category}-{hostile.name}")
def test_contained(hostile: Hostile, attacks: dict[str, tuple]) -> None:
    result, harm = attacks[hostile.name]
    assert not harm
    assert "refused" in result.stdout, result  # it did get as far as its attack
    if not hostile.seccomp or sandbox.describe("bubblewrap")["seccomp"] == "on":
        assert "BREACH" not in result.stdout, result
        assert result.status in hostile.ends, result


def test_no_process_is_left_by_any(attacks: dict[str, tuple]) -> None:
    (left,) = attacks[""]
    assert left == []
    assert not [state for state in children() if "bwrap" in state]


def test_there_are_programs_of_every_kind() -> None:
    assert len({hostile.name for hostile in PROGRAMS}) == len(PROGRAMS) >= 50
    assert {hostile.category for hostile in PROGRAMS} == {"information", "files", "network", "processes", "kernel"}


STUBBORN = """
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(1, 0)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.CDLL(None).prctl(1, 0)
print("up", flush=True)
time.sleep(1000)
"""


def test_processes_are_gone_when_run_returns(bubblewrap: str) -> None:
    """The search sees them while they run, so that finding none afterwards says something."""
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(run, STUBBORN, seconds=4, memory_mb=MEMORY_MB + 1)
        seen = 0
        while seen < 8 and not waiting.done():
            seen = max(seen, len(processes(MEMORY_MB + 1)))
            time.sleep(0.02)
        assert waiting.result().status == "timeout"
        assert seen >= 8
    assert processes(MEMORY_MB + 1) == []


def test_processes_are_gone_when_the_run_itself_is_killed(bubblewrap: str) -> None:
    call = f"run({STUBBORN!r}, seconds=60, memory_mb={MEMORY_MB + 2}, output_bytes=1000)"
    code = f"from selfimprove.verify.sandbox import run; {call}"
    outer = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parents[1])
    while len(processes(MEMORY_MB + 2)) < 8 and outer.poll() is None:
        time.sleep(0.05)
    assert outer.poll() is None
    outer.send_signal(signal.SIGKILL)
    outer.wait()
    for _ in range(1200):  # each takes the kernel a moment
        if not processes(MEMORY_MB + 2):
            return
        time.sleep(0.05)
    raise AssertionError(processes(MEMORY_MB + 2))
