"""A pool of processes that run checks and can be killed.

One thread a worker: it sends its worker a few items at once, reads one line for each that is done, and so knows which
item was begun when nothing more comes. An item that overruns its time, or takes its worker down with it, costs its own
outcome and no other: the rest of what was sent is done again by a new worker. Nothing but JSON crosses the pipes.
"""

from __future__ import annotations

import asyncio
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

CLOSING = 5.0  # seconds for a thread to end, whose worker has been killed
WINDOW = 4096  # items of one `run` between the oldest one not yet yielded and the newest one read
BATCH = 256  # most items sent at once
BATCH_SECONDS = 0.05  # work sent at once, so that cheap checks are not all pipe and slow ones spread over the workers
START_SECONDS = 120  # a worker's imports, on a busy machine


@dataclass(slots=True)
class _Job:
    line: bytes  # the item as JSON
    future: Future[Outcome]


class _Worker:
    """One child process. Belongs to the thread that made it: the kernel kills the child when that thread ends."""

    def __init__(self, header: dict[str, Any]) -> None:
        """Raises ConfigError when the check cannot be loaded with its options."""
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        # A fixed hash seed, so that no order of a set, and with it no verdict, differs from one worker to another.
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "selfimprove.verify.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a process group to kill as a whole, which Ctrl-C does not reach
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
        """Only to an idle worker, which reads all of it before it begins: the write cannot wait for a check."""
        data = b"\n".join(job.line for job in jobs)
        self._write(b"%d\n%b" % (len(data), data))

    def receive(self, seconds: float) -> bytes | None:
        """The next line, None when none came in time, empty when the worker is gone.

        Time in which the worker was ready to run and had no core does not count: on a crowded machine a check is slow
        to come, not slow.
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
        """Kills the worker and all it started, and says how it had ended."""
        if self._ended:
            return self._ended
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.1)  # a closed pipe comes a moment before the exit code
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

    seconds: limit of one check, after which it is `timeout`. A check whose module says `KEEPS_TIME` ends by itself in
    time, as the processes that it starts have a limit of their own, which a busy machine stretches: it is waited for
    `PATIENCE` times as long. memory_mb: address space of a worker, in MiB; a check that
    wants more is an `error`, as is one that raises, dies, or returns something else than an Outcome. An outcome does
    not depend on the number of workers or on what else is checked.

    Use it as a context manager: no process outlives the block, nor this process should it be killed.
    """

    def __init__(
        self, target: str, options: dict[str, Any], *, workers: int, seconds: float = 10, memory_mb: int = 2048
    ) -> None:
        self.target, self.options = target, options
        self.workers, self.seconds, self.memory_mb = workers, seconds, memory_mb
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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
            # A signal that interrupts whoever waits for an outcome can leave the outcome's lock taken, for ever.
            thread.join(CLOSING)
        while (job := self._jobs.get()) is not None:
            job.future.cancel()

    def run(self, items: Iterable[Item]) -> Iterator[Outcome]:
        """The outcome of each item, in order. Holds no more than `WINDOW` items, and checks equal ones near once.

        Raises ConfigError when the check cannot be loaded.
        """
        waiting: deque[Future[Outcome]] = deque()
        recent: dict[bytes, Future[Outcome]] = {}
        try:
            for item in items:
                line = _encode(*item)
                if line not in recent:
                    recent[line] = self._submit(line)
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
        """One outcome, for a solver that asks its verifier as it goes."""
        return await asyncio.wrap_future(self._submit(_encode(text, gold, metadata)))

    def _submit(self, line: bytes) -> Future[Outcome]:
        job = _Job(line, Future())
        self._jobs.put(job)
        return job.future

    def _thread(self, slot: int) -> None:
        jobs: deque[_Job] = deque()
        try:
            self._serve(slot, jobs)
        except BaseException as error:  # belongs to whoever waits for an outcome, and would be lost with this thread
            while not self._closed.is_set() or jobs:
                while jobs:
                    jobs.popleft().future.set_exception(error)
                self._take(jobs, 1)

    def _serve(self, slot: int, jobs: deque[_Job]) -> None:
        """Outcomes for what it takes from the queue into `jobs`, until the pool closes."""
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
        """Takes from `jobs` what the worker has done. False when the worker is no more, after the guilty one."""
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
            # else: what earlier checks left behind may have helped, so the item has a fresh worker to itself first
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
        """Waits for a job, and adds up to `size` to `jobs`, leaving the other workers their share. False at the end."""
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
    """Seconds that a process has waited for a core so far; 0 where the kernel does not count them."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def _encode(text: str, gold: str | None, metadata: dict[str, Any]) -> bytes:
    return json.dumps([text, gold, metadata]).encode()
