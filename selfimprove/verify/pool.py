"""A pool of processes that run checks and can be killed.

Each worker process has a thread. The thread sends a few items at once and reads one line for each finished item. So it
knows which item is running when no more lines come. An item that overruns its time or kills its worker loses only its
own outcome: a new worker takes the rest of the batch. Only JSON crosses the pipes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.verify import Outcome
from selfimprove.verify.watch import PATIENCE
from selfimprove.verify.worker import KEEPS_TIME, OUT_OF_MEMORY, READY

Item = tuple[str, str | None, dict[str, Any]]  # text, gold, metadata (JSON)

CLOSING = 5.0  # seconds for a thread to end after its worker was killed
WINDOW = 4096  # most items of one `run` from the oldest not yet yielded to the newest read
AHEAD = 1 << 16  # most checks begun by `begin` that `run` has not been asked for yet
BATCH = 256  # most items sent at once
BATCH_SECONDS = 0.05  # of work sent at once: enough for cheap checks, and slow ones still spread over the workers
START_SECONDS = 120  # for a worker's imports, on a busy machine


@dataclass(slots=True)
class _Job:
    line: bytes  # the item as JSON
    future: Future[Outcome]


class _Worker:
    """One child process. Belongs to the thread that made it: the kernel kills the child when that thread ends."""

    def __init__(self, header: dict[str, Any]) -> None:
        """Raises ConfigError if the check cannot be loaded with its options."""
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        # With a fixed hash seed, the order of a set, and so a verdict, is the same in all workers.
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "selfimprove.verify.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # its process group can be killed as a whole, and Ctrl-C does not reach it
        )
        self.finished = 0
        self._ended = ""
        self._queued = 0.0
        self._buffer = b""
        self._poll = select.poll()
        assert self.process.stdout is not None
        self._poll.register(self.process.stdout, select.POLLIN)
        self._write(json.dumps(header).encode() + b"\n")
        line = self.receive(START_SECONDS)
        self.keeps_time = line == KEEPS_TIME.encode()
        if line not in (READY.encode(), KEEPS_TIME.encode()):
            end = self.end()
            reason = line.decode() if line else f"its process did not start ({end})"
            raise ConfigError(f"verifier {header['target']}: {reason}")

    def _write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # a dead worker shows when it is read
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def send(self, jobs: Iterable[_Job]) -> None:
        """Send a batch to an idle worker. It reads the whole batch first, so the write never waits for a check."""
        data = b"\n".join(job.line for job in jobs)
        self._write(b"%d\n%b" % (len(data), data))

    def receive(self, seconds: float) -> bytes | None:
        """The next line; None if none came in time, empty if the worker is gone.

        Time that the worker spent waiting for a core does not count.
        """
        deadline = time.monotonic() + seconds
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            if not self._poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                queued = _queued(self.process.pid)
                if queued - self._queued < 0.05 * seconds:
                    return None
                deadline = time.monotonic() + min(seconds, queued - self._queued)
                self._queued = queued
                continue
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            if not chunk:
                return b""
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def end(self) -> str:
        """Kill the worker and all processes it started. Returns how the worker ended."""
        if self._ended:
            return self._ended
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.1)  # the exit code comes a moment after the pipe is closed
        died = self.process.returncode
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        with suppress(BrokenPipeError):  # closing flushes
            self.process.stdin.close()
        if died is None:
            self._ended = "killed, for it hung"
        else:
            self._ended = f"killed by {signal.Signals(-died).name}" if died < 0 else f"exit code {died}"
        return self._ended


class Pool:
    """Runs the check named `target` with `options` on many items, in `workers` processes.

    seconds: limit of one check, after which its outcome is `timeout`. A check with `KEEPS_TIME` in its module limits
    its own processes, for which waiting on a busy machine does not count. The pool waits `PATIENCE` times as long for
    it. memory_mb: address space of a worker, in MiB. A check that needs more is an `error`, as is one that raises,
    dies, or does not return an Outcome. Outcomes do not depend on the number of workers or on other items.

    Use it as a context manager. No worker outlives the block, nor this process if it is killed.
    """

    def __init__(
        self, target: str, options: dict[str, Any], *, workers: int, seconds: float = 10, memory_mb: int = 2048
    ) -> None:
        self.target, self.options = target, options
        self.workers, self.seconds, self.memory_mb = workers, seconds, memory_mb
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._begun: dict[bytes, Future[Outcome]] = {}  # by the hash of the item
        self._live: list[_Worker | None] = [None] * workers
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._thread, args=(slot,), daemon=True) for slot in range(workers)]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        for worker in self._live:
            if worker is not None:
                worker.process.kill()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            # A signal in a thread that waits for an outcome can leave the outcome's lock taken for ever.
            thread.join(CLOSING)
        while (job := self._jobs.get()) is not None:
            job.future.cancel()

    def begin(self, items: Iterable[Item]) -> None:
        """Begin the checks of items that `run` will be asked for later.

        If `AHEAD` of them are begun, the others wait until `run` comes to them.
        """
        for item in items:
            line = _encode(*item)
            name = _hash(line)
            if name not in self._begun and len(self._begun) < AHEAD:
                self._begun[name] = self._submit(line)

    def run(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """The outcome of each item, in order. It holds at most `WINDOW` items and checks equal ones within them once.

        Raises ConfigError if the check cannot be loaded.
        """
        waiting: deque[Future[Outcome]] = deque()
        recent: dict[bytes, Future[Outcome]] = {}
        try:
            for item in items:
                line = _encode(*item)
                if line not in recent:
                    begun = self._begun.pop(_hash(line), None) if self._begun else None
                    recent[line] = begun or self._submit(line)
                    if len(recent) > WINDOW:
                        del recent[next(iter(recent))]
                waiting.append(recent[line])
                while waiting and (len(waiting) >= WINDOW or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    async def check_one(self, text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
        """The outcome of one item, for a solver that uses its verifier."""
        return await asyncio.wrap_future(self._submit(_encode(text, gold, metadata)))

    def _submit(self, line: bytes) -> Future[Outcome]:
        job = _Job(line, Future())
        self._jobs.put(job)
        return job.future

    def _thread(self, slot: int) -> None:
        jobs: deque[_Job] = deque()
        try:
            self._serve(slot, jobs)
        except BaseException as error:  # raised again where an outcome is awaited, or the thread would lose it
            while not self._closed.is_set() or jobs:
                while jobs:
                    jobs.popleft().future.set_exception(error)
                self._take(jobs, 1)

    def _serve(self, slot: int, jobs: deque[_Job]) -> None:
        """Take jobs from the queue into `jobs` and set their outcomes, until the pool closes."""
        worker = self._start(slot)
        size = 1
        try:
            while self._take(jobs, size):
                begun, count = time.monotonic(), len(jobs)
                while jobs:
                    worker.send(jobs)
                    if not self._read(worker, jobs):
                        worker = self._start(slot)
                size = max(1, min(BATCH, int(BATCH_SECONDS * count / (time.monotonic() - begun))))
        finally:
            worker.end()

    def _read(self, worker: _Worker, jobs: deque[_Job]) -> bool:
        """Remove finished jobs from `jobs`. False if the worker is gone; then the job that ended it is removed too."""
        seconds = self.seconds * PATIENCE if worker.keeps_time else self.seconds
        while jobs:
            line = worker.receive(seconds)
            if line:
                worker.finished += 1
                jobs.popleft().future.set_result(Outcome(*json.loads(line)))
                continue
            end = worker.end()
            if line is None:
                jobs.popleft().future.set_result(Outcome("timeout", 0.0, reason=f"took more than {seconds:g} s"))
            elif worker.finished == 0:
                reason = f"its process died: {end}"
                if end == f"exit code {OUT_OF_MEMORY}":
                    reason = f"needs more than {self.memory_mb} MiB"
                jobs.popleft().future.set_result(Outcome("error", 0.0, reason=reason))
            # else: an earlier check may have caused it, so the item is tried again first in a fresh worker
            return False
        return True

    def _start(self, slot: int) -> _Worker:
        if self._closed.is_set():
            raise RuntimeError("the verifier pool was closed")
        header = {"target": self.target, "options": self.options}
        worker = _Worker(header | {"memory": self.memory_mb << 20, "parent": os.getpid()})
        self._live[slot] = worker
        if self._closed.is_set():  # too late for `__exit__` to have seen it
            worker.process.kill()
        return worker

    def _take(self, jobs: deque[_Job], size: int) -> bool:
        """Wait for a job, and move up to `size` to `jobs`, leaving the other workers their share. False at the end."""
        size = min(size, 1 + self._jobs.qsize() // self.workers)
        while len(jobs) < size:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)
                break
            if job.future.set_running_or_notify_cancel():
                jobs.append(job)
        return bool(jobs)


def _queued(pid: int) -> float:
    """Seconds that a process has waited for a core so far; 0 if the kernel does not count them."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _hash(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _encode(text: str, gold: str | None, metadata: dict[str, Any]) -> bytes:
    return json.dumps([text, gold, metadata]).encode()
