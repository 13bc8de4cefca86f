"""Trackers: where a run's figures go besides its own folder. A tracker never stops a run, nor delays it for long.

The function that a choice of conf/tracker names as `_target_` takes the node, the run folder and the configuration.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from selfimprove.types import Attempt

if TYPE_CHECKING:
    from selfimprove.binding import Target
    from selfimprove.schema import Config

log = logging.getLogger(__name__)

TABLE_PROBLEMS, TABLE_ATTEMPTS = 16, 4  # problems in a round's table, and attempts at each


SERIES = {
    "evaluate/accuracy": "held-out accuracy of one greedy answer each; round -1 is the base policy",
    "evaluate/accuracy_low": "the lower end of its 95 % interval",
    "evaluate/accuracy_high": "the upper end",
    "evaluate/change": "the paired difference from the base policy",
    "generate/tokens/prompt": "prompt tokens of the round's sampling",
    "generate/tokens/sampled": "sampled tokens: the cost of a round",
    "generate/calls": "requests to the policy",
    "verify/verdicts/correct": "how many answers were right by the training verifier",
    "verify/verdicts/wrong": "wrong",
    "verify/verdicts/unparseable": "without a readable answer",
    "verify/verdicts/timeout": "checks that took too long",
    "verify/verdicts/error": "checks that failed",
    "filter/explore/pass@1": "share of right answers on training problems; also pass@2, pass@4, ... as far as n goes",
    "filter/explore/distinct_answers": "different answers a problem",
    "filter/explore/distinct_correct": "different right solutions a problem",
    "filter/exploit/available_reward": "mean reward of all attempts",
    "filter/exploit/kept_reward": "mean reward of kept attempts, if there are any",
    "filter/exploit/keep_rate": "share of attempts that were kept",
    "filter/examples": "training examples",
    "train/tokens": "tokens trained on",
    "seconds/generate": "wall-clock seconds of the phase",
    "seconds/verify": "the same of verification",
    "seconds/train": "of training",
    "seconds/evaluate": "and of the evaluation",
}
"""The figures that every training run on text logs each round, over `round`. docs/tracking.md says more of each."""


class Tracker(Protocol):
    """Calls may be repeated when a run resumes. A row is skipped if one of its kind, round, step and names was logged.

    `number` is the round. -1 is the evaluation of the base model.
    """

    def round(self, number: int, metrics: Mapping[str, Any]) -> None:
        """Figures of a round, drawn over `round`."""

    def step(self, number: int, record: Mapping[str, Any]) -> None:
        """Figures of one optimizer step, with the number of the step in the round, from 1, under `step`."""

    def table(self, number: int, attempts: Iterable[Sequence[Attempt]]) -> None:
        """The first attempts at the first problems of a round, with their verdicts."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Closes the tracker with the content of summary.json. It is called once, however the run ended."""


class Nothing:
    def round(self, number: int, metrics: Mapping[str, Any]) -> None: ...

    def step(self, number: int, record: Mapping[str, Any]) -> None: ...

    def table(self, number: int, attempts: Iterable[Sequence[Attempt]]) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None: ...


def none(node: Target, run_dir: Path, config: Config) -> Tracker:
    return Nothing()


class Backend(Protocol):
    """What `Background` runs. It is a Tracker whose table gets rows instead of attempts."""

    def round(self, number: int, metrics: dict[str, Any]) -> None: ...

    def step(self, number: int, record: dict[str, Any]) -> None: ...

    def table(self, number: int, rows: list[dict[str, Any]]) -> None: ...

    def finish(self, summary: dict[str, Any]) -> None: ...


class Background:
    """A Tracker that runs a backend in a thread of its own, so that the run neither fails nor waits with it.

    The run waits at most `start_seconds` for `connect`, and at most `finish_seconds` until everything is written. The
    first failure is logged as a warning. Later ones are not logged.
    """

    def __init__(self, connect: Callable[[], Backend], start_seconds: float = 40, finish_seconds: float = 90) -> None:
        self._calls: queue.SimpleQueue[Callable[[Backend], None] | None] = queue.SimpleQueue()
        self._started, self._ended = threading.Event(), threading.Event()
        self._warned = False
        self._finish_seconds = finish_seconds
        threading.Thread(target=self._serve, args=(connect,), name="tracker", daemon=True).start()
        # Waiting keeps the backend's imports apart from the run's: two threads in an import cycle can see half modules.
        if not self._started.wait(start_seconds):
            self._warn(f"did not start within {start_seconds:g} s")

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
            self._warn(f"did not finish within {self._finish_seconds:g} s; the run does not wait for it")

    def _put(self, call: Callable[[Backend], None]) -> None:
        if not self._ended.is_set():
            self._calls.put(call)

    def _serve(self, connect: Callable[[], Backend]) -> None:
        # A tracking library may raise anything (a missing package, an outage, a full disk, a bug of its own). Hours of
        # sampling and training are worth more than a chart, and the run folder holds every figure anyway. So any
        # Exception of a call becomes a warning here, and the next call is tried.
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
    """One row of the table of attempts."""
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


class Ledger:
    """The rows that a tracking service got. Each is a line in a file of the run folder.

    A row is noted before it is sent. If the run is killed in between, the service lacks that row. It never has one
    twice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: set[str] = set()
        self._steps: defaultdict[int, int] = defaultdict(int)  # optimizer steps of each round
        for line in path.read_text().splitlines() if path.exists() else ():
            self._note(line)

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, kind: str, number: int, step: int, names: Iterable[str]) -> bool:
        """Note a row. False if it was noted before. Two rows of a step differ in the `names` of their figures."""
        line = f"{kind} {number} {step} {zlib.crc32(chr(10).join(sorted(names)).encode()):08x}"
        if line in self._lines:
            return False
        with self._path.open("a") as file:
            file.write(line + "\n")
        self._note(line)
        return True

    def steps_before(self, number: int) -> int:
        """Optimizer steps of the rounds before this one."""
        return sum(steps for earlier, steps in self._steps.items() if earlier < number)

    def _note(self, line: str) -> None:
        self._lines.add(line)
        kind, number, step, _ = line.split()
        if kind == "step":
            self._steps[int(number)] = max(self._steps[int(number)], int(step))


def identity(path: Path, new: Callable[[], str]) -> str:
    """The name by which a service knows this run. It is kept in a file of the run folder."""
    if not path.exists():
        path.write_text(new() + "\n")
    return path.read_text().strip()
