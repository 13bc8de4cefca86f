"""Where a run's figures go besides its own folder. A tracker never stops a run, nor holds it up for long.

The function that `_target_` of conf/tracker names takes the node, the run folder and the configuration.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfimprove.types import Attempt

if TYPE_CHECKING:
    from selfimprove.config import Config, Node

log = logging.getLogger(__name__)

TABLE_PROBLEMS, TABLE_ATTEMPTS = 16, 4  # of a round's table: so many problems, so many attempts at each


class Tracker(Protocol):
    """Calls may be repeated when a run resumes: a row is skipped if one of its kind, round, step and names was logged.

    `number` is the round; -1 is the evaluation of the base model.
    """

    def round(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a round, drawn over `round`."""

    def step(self, number: int, record: Mapping[str, Any]) -> None:
        """Figures of one optimizer step, with the number of the step in the round, from 1, under `step`."""

    def table(self, number: int, attempts: Iterable[Sequence[Attempt]]) -> None:
        """The first attempts at the first problems of a round, with their verdicts."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the tracker with what summary.json holds; to be called once, however the run ended."""


class Nothing:
    def round(self, number: int, metrics: Mapping[str, Any]) -> None: ...

    def step(self, number: int, record: Mapping[str, Any]) -> None: ...

    def table(self, number: int, attempts: Iterable[Sequence[Attempt]]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


def none(node: Node, run_dir: Path, config: Config) -> Tracker:
    return Nothing()


class Backend(Protocol):
    """What `Background` runs: a Tracker whose table is rows already."""

    def round(self, number: int, metrics: dict[str, Any]) -> None: ...

    def step(self, number: int, record: dict[str, Any]) -> None: ...

    def table(self, number: int, rows: list[dict[str, Any]]) -> None: ...

    def finish(self, summary: dict[str, Any]) -> None: ...


class Background:
    """A Tracker that runs a backend in a thread of its own, so that its failures and its waiting are not the run's.

    `start_seconds` bounds the wait for `connect`, `finish_seconds` the wait for everything logged to be written. The
    first failure is logged as a warning, later ones are not.
    """

    def __init__(self, connect: Callable[[], Backend], start_seconds: float = 40, finish_seconds: float = 90) -> None:
        self._calls: queue.SimpleQueue[Callable[[Backend], None] | None] = queue.SimpleQueue()
        self._started, self._ended = threading.Event(), threading.Event()
        self._warned = False
        self._finish_seconds = finish_seconds
        threading.Thread(target=self._serve, args=(connect,), name="tracker", daemon=True).start()
        # Waiting keeps the backend's imports apart from the run's own: two threads in one import cycle can see halves.
        if not self._started.wait(start_seconds):
            self._warn(f"no start within {start_seconds:g} s")

    def round(self, number: int, metrics: Mapping[str, Any]) -> None:
        copy = dict(metrics)
        self._put(lambda backend: backend.round(number, copy))

    def step(self, number: int, record: Mapping[str, Any]) -> None:
        copy = dict(record)
        self._put(lambda backend: backend.step(number, copy))

    def table(self, number: int, attempts: Iterable[Sequence[Attempt]]) -> None:
        rows = [
            row(attempt) for group in itertools.islice(attempts, TABLE_PROBLEMS) for attempt in group[:TABLE_ATTEMPTS]
        ]
        self._put(lambda backend: backend.table(number, rows))

    def finish(self, summary: Mapping[str, Any]) -> None:
        copy = dict(summary)
        self._put(lambda backend: backend.finish(copy))
        self._calls.put(None)
        if not self._ended.wait(self._finish_seconds):
            self._warn(f"not finished after {self._finish_seconds:g} s, and left behind")

    def _put(self, call: Callable[[Backend], None]) -> None:
        if not self._ended.is_set():
            self._calls.put(call)

    def _serve(self, connect: Callable[[], Backend]) -> None:
        # Whatever a tracking library raises (a missing package, an outage, a full disk, a defect of its own): hours of
        # sampling and training are worth more than a chart, and the run folder holds every figure anyway. So any
        # Exception of a call ends here, in a warning, and the next call is tried.
        try:
            backend = connect()
            self._started.set()
            while call := self._calls.get():
                try:
                    call(backend)
                except Exception as error:
                    self._warn(f"{type(error).__name__}: {error}")
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")
        finally:
            self._ended.set()
            self._started.set()

    def _warn(self, what: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("tracker: %s. The run goes on; metrics.jsonl in its folder has every figure.", what)


def row(attempt: Attempt) -> dict[str, Any]:
    """One line of the table of attempts."""
    problem, trajectory, verdict = attempt.problem, attempt.trajectory, attempt.verdict
    prompt = problem.prompt
    return {
        "problem": problem.id,
        "prompt": prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt),
        "completion": "\n".join(sample.text for sample in trajectory.samples),
        "gold": problem.gold,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "reward": verdict.reward,
        "tokens": trajectory.sampled_tokens,
    }
