"""Runs one program, or two that talk to each other, until the first has ended or a limit is reached.

`selfimprove.verify.sandbox` uses this out here. In a container this very file, sent as text, is the first process: it
reads one request and writes one result, both as JSON, and with its end the kernel ends everything else in there. So it
imports the standard library alone; it needs Python 3.10.
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
PATIENCE = 60  # times its limit: the wall clock after which a run is given up that had no core all the while
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

    status: `ok` (exit code 0), `exit` (another one), `killed` (by a signal; the code is 128 + its number), `timeout`,
    `memory`, `output` (wrote more than it may), or `error` (the sandbox did not start it, or the machine was too busy
    to run it; `stderr` says why).
    exit_code is None where the program was stopped from outside. stdout and stderr are cut at the output limit.
    """

    status: Status
    exit_code: int | None
    stdout: str
    stderr: str
    seconds: float  # wall clock
    counted: float  # seconds of it that count against the limit
    outgrown: bool = False  # the second of two programs was ended, for it needed too much memory


@dataclass(frozen=True, slots=True)
class Limits:
    seconds: float  # in which its processes ran or slept; not those in which they were ready to run and had no core
    memory_mb: int  # MiB: address space of each process, and memory of all of them together
    output_bytes: int  # of standard output and of standard error, each
    processes: int  # threads count as processes


class Child:
    """A process, from its start until `end`, which the given stack calls at the latest."""

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
        """`options` are Popen's. Its errors are read where its output is."""
        self.process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE if stdout == subprocess.PIPE else subprocess.DEVNULL,
            env=env,
            start_new_session=start_new_session,
            **options,
        )
        self.code: int | None = None  # the program's own exit code, once it has ended by itself
        self.pid = self.process.pid  # the top of the tree that is watched
        self.ended = self.outgrown = False  # outgrown: for its memory
        self.fds: list[int] = []
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                stack.enter_context(pipe)
        stack.callback(self.end)
        self.exited = self.follow(self.process.pid)

    def follow(self, pid: int) -> int:
        """A descriptor that stays with this very process, and is readable once it has ended."""
        self.fds.append(os.pidfd_open(pid))
        return self.fds[-1]

    def end(self) -> None:
        """Kills the process and waits until it is gone. Once is enough."""
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
        """Kills what the process has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def started(self) -> bool:
        """Whether the program itself runs, after what is made ready for it."""
        return True

    def too_large(self, pids: Sequence[int], limit: int) -> bool:
        """Whether its processes hold more bytes than they may."""
        return memory(pids, limit) > limit

    def read_code(self) -> int | None:
        code: int = self.process.returncode
        return 128 - code if code < 0 else code


def run(start: Callable[..., Child], programs: Sequence[Any], feed: bytes, limits: Limits) -> Result:
    """Runs one program, or two joined by two pipes alone; the result is the first one's.

    start: called with a stack, a program, and options of Popen. With two programs the second one's standard input and
    output are the pipes; `start` is given `inherit`, the two descriptors from which the first one reads and to which it
    writes.
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
        stopped, stdout, stderr, counted = watch(children, feed, limits)
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
    """The seconds of a run that count: in which its processes ran, slept, or waited for one another.

    Time in which they were ready to run and had no core belongs to the machine: on a crowded one a program is slow to
    come, not slow. So does time in which this process, which feeds them, had none. What runs at once, on several cores,
    counts once, and so does what one of them runs while others wait.
    """

    def __init__(self) -> None:
        self.restart()
        self._last: dict[int, tuple[int, int]] = {}  # by thread: ns that it ran, and that it waited for a core

    def restart(self) -> None:
        self.begun = self.looked = time.monotonic()
        self.excused = 0.0

    def look(self, threads: Sequence[int]) -> None:
        """Counts anew what has passed since the last look."""
        now, ran, waited = time.monotonic(), 0, 0
        for thread in (*threads, threading.get_native_id()):
            with suppress(OSError, ValueError):  # it ended meanwhile, or the kernel does not count
                this = tuple(map(int, Path(f"/proc/{thread}/schedstat").read_text().split()[:2]))
                before = self._last.get(thread, (0, 0))
                ran, waited = ran + this[0] - before[0], waited + this[1] - before[1]
                self._last[thread] = this[0], this[1]
        self.excused += max(0.0, min(waited / 1e9, now - self.looked - ran / 1e9))
        self.looked = now

    def counted(self) -> float:
        return time.monotonic() - self.begun - self.excused


def watch(children: Sequence[Child], feed: bytes, limits: Limits) -> tuple[Status | None, bytes, bytes, float]:
    """Feeds and reads the first child until it ends or a limit is reached, then ends all. Why it was stopped, if it
    was, what it wrote, and the seconds that count against its limit."""
    main = children[0]
    stdin, stdout, stderr = main.process.stdin, main.process.stdout, main.process.stderr
    assert stdin
    assert stdout
    assert stderr
    written = {stdout: bytearray(), stderr: bytearray()}
    stopped: Status | None = None
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
                        if child is not main:  # which goes on without it
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
                        stdin.close()
                elif _read(key.fileobj, written[key.fileobj], limits.output_bytes) == b"":  # type: ignore[index,arg-type]
                    selector.unregister(key.fileobj)
            if any(len(data) > limits.output_bytes for data in written.values()):
                stopped = "output"
    for child in children:
        child.outgrown = child.outgrown or (not child.ended and child.too_large((), limits.memory_mb << 20))
        child.end()
    if not stopped and main.code != 0 and main.outgrown:  # ended by the kernel
        stopped = "memory"
    for pipe, data in written.items():  # what is left; without walls, a writer may have got away, and go on
        while len(data) <= limits.output_bytes and _read(pipe, data, limits.output_bytes):
            pass
        if len(data) > limits.output_bytes:
            stopped = stopped or "output"
            del data[limits.output_bytes :]
    return stopped, bytes(written[stdout]), bytes(written[stderr]), clock.counted()


def _read(pipe: IO[bytes], data: bytearray, most: int) -> bytes | None:
    """Adds what there is to `data`, up to one byte more than `most`: nothing at the pipe's end, None where there is
    nothing yet."""
    try:
        chunk = os.read(pipe.fileno(), min(1 << 16, most + 1 - len(data)))
    except BlockingIOError:
        return None
    data += chunk
    return chunk


def _write(pipe: IO[bytes], data: bytes) -> bytes:
    """What of `data` is still to be written; nothing when the reader is gone."""
    try:
        return data[os.write(pipe.fileno(), data[: 1 << 16]) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""


def processes(pid: int) -> dict[int, list[int]]:
    """A process and all below it, and the threads of each."""
    found: dict[int, list[int]] = {}
    pids = [pid]
    while pids:
        pid = pids.pop()
        with suppress(OSError):  # it ended meanwhile
            found[pid] = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
            for thread in found[pid]:
                pids += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def memory(pids: Sequence[int], limit: int) -> int:
    """Bytes that processes hold, a page that several share counted once.

    A first look adds up what each has in memory, shared or not. Only where that is more than the limit is a page
    divided among those who share it, which takes the kernel a walk through all of them. Where it may not be asked for
    that (in a container), shared pages are counted for each but those of files.
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
    """The sum of some lines of a file of the kernel's, in bytes."""
    lines = (line.split() for line in text.splitlines())
    return sum(int(line[1]) << 10 for line in lines if line[0] in names)


def bounds(limits: Limits) -> dict[str, int]:
    """What `setrlimit` is to be given, by the names it has for it."""
    values = {
        "AS": limits.memory_mb << 20,
        "FSIZE": DISK_MB << 20,
        "NOFILE": OPEN_FILES,
        "CORE": 0,
        "MEMLOCK": 0,
        "MSGQUEUE": 0,
        "NPROC": limits.processes,
    }
    for name, value in values.items():  # a limit of our own process can be lowered only
        hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[1]
        values[name] = value if hard == resource.RLIM_INFINITY else min(value, hard)
    return values


# In a container


def main() -> None:
    """Reads a request: `programs`, each with the `arguments` of Python and its `files`; `stdin`; `limits`; and `users`,
    a user id for each program, so that neither can signal, trace or look into the other. Writes a Result."""
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
    """Starts a program as the next user, in a folder that no other can enter."""
    user = next(users)
    folder = Path(f"/tmp/{user}")

    def settle() -> None:  # already as that user
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
    if not inherit:  # should the container's memory run out, neither the tests nor this process is what is killed
        score.write_text("1000")
    child = Child(stack, command, env=environment, pass_fds=inherit, **options, **pipes)
    score.write_text(usual)
    return child


if __name__ == "__main__":
    main()
