"""Runs one program, or two that talk to each other, until the first ends or a limit is reached.

`selfimprove.verify.sandbox` uses it on the host. In a container, this same file, sent as text, is the first process. It
reads one request and writes one result, both as JSON. When it ends, the kernel ends everything else in the container.
So it imports only the standard library; it needs Python 3.10.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

Status = Literal["ok", "exit", "killed", "timeout", "memory", "output", "error"]

DISK_MB = 64  # of /tmp, and the size of the largest file
OPEN_FILES = 128
TICK = 0.1  # s between two looks at all processes
PATIENCE = 60  # a run that got no core is given up after this many times its limit, by the wall clock
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program prints the same set in the same order
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended.

    status: `ok` (exit code 0), `exit` (another code), `killed` (by a signal; the code is 128 + its number), `timeout`,
    `memory`, `output` (it wrote too much), or `error` (the sandbox did not start it, or the machine was too busy to run
    it; `stderr` says why). exit_code is None if the program was stopped from outside. stdout and stderr are cut at the
    output limit.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float  # wall clock
    counted: float  # of these, seconds that count against the limit
    outgrown: bool = False  # the second of two programs was ended because it needed too much memory


@dataclass(frozen=True, slots=True)
class Limits:
    seconds: float  # in which its processes ran or slept; waiting for a core does not count
    memory_mb: int  # MiB: address space of each process, and memory of all processes together
    output_bytes: int  # of standard output and of standard error, each
    processes: int  # threads count as processes


class Child:
    """A process from its start until `end`. The given stack calls `end` at the latest."""

    def __init__(
        self,
        stack: ExitStack,
        command: Sequence[str],
        *,
        stdin: int = subprocess.PIPE,
        stdout: int = subprocess.PIPE,
        env: Mapping[str, str] | None = ENVIRONMENT,
        start_new_session: bool = True,
        **options: Any,
    ) -> None:
        """`options` are Popen's. Standard error is read if and only if standard output is."""
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE if stdout == subprocess.PIPE else subprocess.DEVNULL,
            env=env,
            start_new_session=start_new_session,
            **options,
        )
        self.code: int | None = None  # the program's exit code, once it has ended by itself
        self.pid = self.process.pid  # the root of the watched process tree
        self.ended = self.outgrown = False  # outgrown: it used too much memory
        self.fds: list[int] = []
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                stack.enter_context(pipe)
        stack.callback(self.end)
        self.exited = self.follow(self.process.pid)

    def follow(self, pid: int) -> int:
        """A descriptor of exactly this process. It becomes readable when the process ends."""
        self.fds.append(os.pidfd_open(pid))
        return self.fds[-1]

    def end(self) -> None:
        """Kill the process and wait until it is gone. Later calls do nothing."""
        if self.ended:
            return
        self.ended = True
        self.kill()
        self.process.kill()
        self.process.wait()
        for fd in self.fds:
            os.close(fd)
        self.code = self.read_code()

    def kill(self) -> None:
        """Kill the processes that this one has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def started(self) -> bool:
        """Whether the program itself runs, after its preparation."""
        return True

    def too_large(self, pids: Sequence[int], limit: int) -> bool:
        """Whether its processes use more than `limit` bytes."""
        return memory(pids, limit) > limit

    def read_code(self) -> int | None:
        code: int = self.process.returncode
        return 128 - code if code < 0 else code


Answer = Callable[[bytes], bytes]  # a line of a program's standard output -> what it is then given to read


def run(
    start: Callable[..., Child],
    programs: Sequence[Any],
    feed: bytes,
    limits: Limits,
    answer: Answer | None = None,
) -> Result:
    """Run one program, or two joined only by two pipes. The result is the first one's.

    start: called with a stack, a program, and options of Popen. With two programs, the pipes are standard input and
    output of the second. For the first, `start` gets `inherit`: the descriptors that it reads from and writes to.
    """
    begun = time.monotonic()
    with ExitStack() as stack:
        if len(programs) == 1:
            children = [start(stack, programs[0])]
        else:
            (from_first, to_second), (from_second, to_first) = os.pipe(), os.pipe()
            with ExitStack() as ends:
                for fd in (from_first, to_second, from_second, to_first):
                    ends.callback(os.close, fd)
                children = [start(stack, programs[0], inherit=(from_second, to_second))]
                children += [start(stack, programs[1], stdin=from_first, stdout=to_first)]
        stopped, stdout, stderr, counted = watch(children, feed, limits, answer)
    seconds = time.monotonic() - begun
    out, err = stdout.decode(errors="replace"), stderr.decode(errors="replace")
    if stopped == "error":
        err = f"the machine was too busy: of {seconds:.0f} s it ran for {counted:.1f} s"
    code = None if stopped else children[0].code
    outgrown = any(child.outgrown for child in children[1:])
    return Result(stopped or _status(code, err), code, out, err, seconds, counted, outgrown)


def _status(code: int | None, stderr: str) -> Status:
    if code is None:
        return "error"
    if code == 0:
        return "ok"
    if stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    return "killed" if code > 128 else "exit"


class Clock:
    """Counts the seconds of a run in which its processes ran, slept, or waited for one another.

    Time in which they waited for a core does not count: then the machine is busy, and the program not slow. Nor does
    time in which this process, which feeds them, waited for one. Time in which several run at once, or one runs while
    others wait, counts once.
    """

    def __init__(self) -> None:
        self.restart()
        self._last: dict[int, tuple[int, int]] = {}  # thread -> ns that it ran, and ns that it waited for a core

    def restart(self) -> None:
        self.begun = self.looked = time.monotonic()
        self.excused = 0.0

    def look(self, threads: Sequence[int]) -> None:
        """Update the count with the time since the last look."""
        now, ran, waited = time.monotonic(), 0, 0
        for thread in (*threads, threading.get_native_id()):
            with suppress(OSError, ValueError):  # it has ended, or the kernel does not count
                this = tuple(map(int, Path(f"/proc/{thread}/schedstat").read_text().split()[:2]))
                before = self._last.get(thread, (0, 0))
                ran, waited = ran + this[0] - before[0], waited + this[1] - before[1]
                self._last[thread] = this[0], this[1]
        self.excused += max(0.0, min(waited / 1e9, now - self.looked - ran / 1e9))
        self.looked = now

    def counted(self) -> float:
        return time.monotonic() - self.begun - self.excused


def watch(
    children: Sequence[Child], feed: bytes, limits: Limits, answer: Answer | None = None
) -> tuple[Status | None, bytes, bytes, float]:
    """Feed and read the first child until it ends or a limit is reached. Then end all children.

    With `answer`, each line that the child writes to its standard output is answered at once.

    Returns why the first was stopped (None if it was not), its standard output and standard error, and the seconds that
    count against its limit.
    """
    main = children[0]
    stdin, stdout, stderr = main.process.stdin, main.process.stdout, main.process.stderr
    assert stdin
    assert stdout
    assert stderr
    written = {stdout: bytearray(), stderr: bytearray()}
    stopped: Status | None = None
    answered = 0  # bytes of standard output
    clock = Clock()
    begun = clock.begun
    look = begun + TICK
    with selectors.DefaultSelector() as selector:
        for pipe in written:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
        os.set_blocking(stdin.fileno(), False)
        selector.register(stdin, selectors.EVENT_WRITE)
        selector.register(main.exited, selectors.EVENT_READ)
        running = True
        while running and not stopped:
            now, left = time.monotonic(), limits.seconds - clock.counted()
            if now >= look or left <= 0:
                if not all(child.started() for child in children):
                    clock.restart()
                trees = {child: processes(child.process.pid) for child in children}
                clock.look([thread for tree in trees.values() for threads in tree.values() for thread in threads])
                left = limits.seconds - clock.counted()
                for child, tree in trees.items():
                    if not child.ended and child.too_large(list(tree), limits.memory_mb << 20):
                        child.outgrown = True
                        if child is not main:  # main goes on without it
                            child.end()
                stopped = "memory" if main.outgrown else None
                look = time.monotonic() + max(TICK, 10 * (time.monotonic() - now))
            events = [key for key, _ in selector.select(max(0.0, min(look - time.monotonic(), left)))]
            if all(key.fileobj != main.exited for key in events):
                if left <= 0:
                    stopped = stopped or "timeout"
                elif now - begun > PATIENCE * limits.seconds:
                    stopped = stopped or "error"
            for key in events:
                if key.fileobj == main.exited:
                    running = False
                elif key.fileobj is stdin:
                    feed = _write(stdin, feed)
                    if not feed:
                        selector.unregister(stdin)
                        if answer is None:
                            stdin.close()
                elif _read(key.fileobj, written[key.fileobj], limits.output_bytes) == b"":  # type: ignore[index,arg-type]
                    selector.unregister(key.fileobj)
            while answer and (end := written[stdout].find(b"\n", answered)) >= 0:
                feed += answer(bytes(written[stdout][answered:end]))
                answered = end + 1
                if feed and stdin not in selector.get_map():
                    selector.register(stdin, selectors.EVENT_WRITE)
            if any(len(data) > limits.output_bytes for data in written.values()):
                stopped = "output"
    for child in children:
        child.outgrown = child.outgrown or (not child.ended and child.too_large((), limits.memory_mb << 20))
        child.end()
    if not stopped and main.code != 0 and main.outgrown:  # the kernel killed it
        stopped = "memory"
    for pipe, data in written.items():  # read the rest; without a sandbox, a process may have escaped and still write
        while len(data) <= limits.output_bytes and _read(pipe, data, limits.output_bytes):
            pass
        if len(data) > limits.output_bytes:
            stopped = stopped or "output"
            del data[limits.output_bytes :]
    return stopped, bytes(written[stdout]), bytes(written[stderr]), clock.counted()


def _read(pipe: IO[bytes], data: bytearray, most: int) -> bytes | None:
    """Append available bytes to `data`, up to one byte more than `most`.

    Returns the bytes read: empty at the pipe's end, None if there are none yet.
    """
    try:
        chunk = os.read(pipe.fileno(), min(1 << 16, most + 1 - len(data)))
    except BlockingIOError:
        return None
    data += chunk
    return chunk


def _write(pipe: IO[bytes], data: bytes) -> bytes:
    """Write some of `data` and return the rest; nothing if the reader is gone."""
    try:
        return data[os.write(pipe.fileno(), data[: 1 << 16]) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def processes(pid: int) -> dict[int, list[int]]:
    """The threads of a process and of all its descendants, by process id."""
    found: dict[int, list[int]] = {}
    pids = [pid]
    while pids:
        pid = pids.pop()
        with suppress(OSError):  # it has ended
            found[pid] = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
            for thread in found[pid]:
                pids += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def memory(pids: Sequence[int], limit: int) -> int:
    """Bytes of memory that processes use. A page that several share counts once.

    A first sum counts shared pages for each process. Only if it is above `limit`, a second one divides a shared page
    among its processes, for which the kernel walks through all pages. If the kernel refuses that (in a container),
    shared pages count for each process, but pages of files do not.
    """
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    if total <= limit:
        return total
    total = 0
    for pid in pids:
        with suppress(ProcessLookupError, FileNotFoundError):
            try:
                total += _kib(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss:")
            except PermissionError:
                total += _kib(Path(f"/proc/{pid}/status").read_text(), "RssAnon:", "RssShmem:")
    return total


def _kib(text: str, *names: str) -> int:
    """The sum of the lines `names` of a kernel file, in bytes."""
    lines = (line.split() for line in text.splitlines())
    return sum(int(line[1]) << 10 for line in lines if line[0] in names)


def bounds(limits: Limits) -> dict[str, int]:
    """The values for `setrlimit`, by the names of its limits."""
    values = {
        "AS": limits.memory_mb << 20,
        "FSIZE": DISK_MB << 20,
        "NOFILE": OPEN_FILES,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "NPROC": limits.processes,
    }
    for name, value in values.items():  # a process can only lower its limits
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        values[name] = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return values


# In a container


def main() -> None:
    """Read a request, run its programs, and write a Result.

    The request has `programs`, each with Python's `arguments` and its `files`; `stdin`; `limits`; and `users`, a user
    id for each program, so that neither can signal, trace or inspect the other.
    """
    if os.getpid() != 1:
        raise RuntimeError("not the first process of a container: what it starts might outlive it")
    request = json.load(sys.stdin)
    limits = Limits(**request["limits"])
    start = functools.partial(_unprivileged, bounds(limits), iter(request["users"]))
    feed = request["stdin"].encode(errors="surrogatepass")
    json.dump(asdict(run(start, request["programs"], feed, limits)), sys.stdout)


def _unprivileged(
    values: dict[str, int],
    users: Iterator[int],
    stack: ExitStack,
    program: dict[str, Any],
    inherit: Sequence[int] = (),
    **pipes: Any,
) -> Child:
    """Start a program as the next user, in a folder that no other user can enter."""
    user = next(users)
    folder = Path(f"/tmp/{user}")

    def settle() -> None:  # runs as that user
        folder.mkdir(0o700)
        os.chdir(folder)
        for name, text in program["files"].items():
            Path(name).write_text(text, encoding="utf-8", errors="surrogatepass")
        for name, value in values.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    command = [sys.executable, *program["arguments"], *map(str, inherit)]
    environment = ENVIRONMENT | {"HOME": str(folder), "TMPDIR": str(folder)}
    options: dict[str, Any] = {"user": user, "group": user, "extra_groups": [], "preexec_fn": settle}
    score = Path("/proc/self/oom_score_adj")
    usual = score.read_text()
    if not inherit:  # if the container's memory runs out, this program is killed, not the tests or this process
        score.write_text("1000")
    child = Child(stack, command, env=environment, pass_fds=inherit, **options, **pipes)
    score.write_text(usual)
    return child


if __name__ == "__main__":
    main()
