"""What all phases of one process share: the engine, the pools of checking processes, the event loop, and signals."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.binding import Target, bind, is_group, options_of
from selfimprove.errors import ConfigError, RunError, Stopped
from selfimprove.policy import Engine, Policy
from selfimprove.report.display import Display
from selfimprove.schema import Config
from selfimprove.types import Problem
from selfimprove.verify import Outcome
from selfimprove.verify.pool import Pool

log = logging.getLogger("selfimprove")


@dataclass(frozen=True)
class Weights:
    """A policy: where its weights are, its version (0: the base model), and the hash that identifies it."""

    path: str
    version: int
    digest: str


@dataclass
class Session:
    """What all phases of one process share. The engine is opened when the first phase needs it."""

    config: Config
    run: store.Run
    display: Display
    train_problems: list[Problem]
    heldout: list[Problem]
    base: Weights
    dev: list[Problem] = field(default_factory=list)
    also: list[Problem] = field(default_factory=list)  # held-out problems of eval.also
    log_step: Callable[[int, dict[str, float]], None] = lambda number, record: None  # a training step, for the tracker
    phase_done: Callable[[], object] = lambda: None  # called after each phase that was done now
    loop: asyncio.Runner = field(default_factory=asyncio.Runner)
    _pools: dict[str, Pool] = field(default_factory=dict)  # by verifier; workers and what they remember stay
    _engine: Engine | None = None
    _loaded: str = ""
    _task: asyncio.Task[Any] | None = None  # what the event loop is running
    _signal: str = ""

    def policy(self, weights: Weights, *scope: str | int) -> Policy:
        """The policy with these weights in the engine; `scope` names what its samples are for."""
        if self._engine is None:
            self._engine = open_engine(self.config, self.base.path, (*self.train_problems, *self.heldout))
            self._loaded = self.base.path
        if self._loaded != weights.path:
            self._engine.load(weights.path)
            self._loaded = weights.path
        config = self.config
        return Policy(self._engine, config.seed, weights.version, max_tokens=config.model.max_tokens, scope=scope)

    def rest(self) -> None:
        """Before training: the engine lets go of its memory until it is asked again, where `hardware.sleep` says so."""
        if self._engine is not None and self.config.hardware.sleep:
            self.wait(self._engine.sleep())

    @property
    def memory(self) -> int | None:
        """Bytes of the engine's weights, keys and values; None where it has none, or does not say."""
        return getattr(self._engine, "memory", None)

    def pool(self, node: Target) -> Pool:
        """The processes that run this check, started when it is first asked for."""
        name = store.digest(node)
        if name not in self._pools:
            self._pools[name] = open_pool(self.config, node).__enter__()
        return self._pools[name]

    async def check(self, text: str, problem: Problem) -> Outcome:
        """The outcome of one text, for a solver or group verifier that asks as it goes: by the training verifier, or
        by the data set's where that one is no check."""
        node = self.config.training_verifier
        node = self.config.dataset.verifier if is_group(node) else node
        if is_group(node):
            raise RunError(f"dataset={self.config.dataset.name} has no verifier that checks a single answer")
        return await self.pool(node).check_one(text, problem.gold, problem.metadata)

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end in the session's event loop. Raises Stopped when a signal came meanwhile."""
        loop = self.loop.get_loop()
        self._task = loop.create_task(work)
        try:
            return loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            raise Stopped(self._signal) from None
        finally:
            self._task = None

    def interrupt(self, name: str) -> None:
        """For a signal handler: cancels the coroutines, which they can take anywhere; other code gets Stopped."""
        self._signal = name
        if self._task is None:
            raise Stopped(name)
        self.loop.get_loop().call_soon_threadsafe(self._task.cancel)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.__exit__()
        if self._engine is not None:
            self._engine.close()
        self.loop.close()


def open_engine(config: Config, path: str, problems: tuple[Problem, ...]) -> Engine:
    make = bind(configuration.engine_options(config.engine), "engine")
    return make(path, config.model, config.hardware, problems)  # type: ignore[no-any-return]


def open_pool(config: Config, node: Target) -> Pool:
    options = options_of(node)
    limits = config.verify
    workers = limits.workers or os.cpu_count() or 1
    return Pool(node["_target_"], options, workers=workers, seconds=limits.seconds, memory_mb=limits.memory_mb)


@dataclass
class Ending:
    """How a session's work came to its end, as summary.json has it."""

    status: str = "failed"
    reason: str | None = None


@contextmanager
def ending(session: Session, end: Ending, what: str) -> Iterator[None]:
    """Notes in `end` how the work below ends: `complete`; `stopped` by a signal, or where the work set a reason; or
    `failed`, and then what it raised is raised on."""
    try:
        with _signals(session):
            yield
        end.status = "stopped" if end.reason else "complete"
    except Stopped as stop:
        end.status, end.reason = "stopped", str(stop)
    except (RunError, ConfigError) as problem:
        end.reason = str(problem)
        raise
    except Exception as problem:
        end.reason = f"{type(problem).__name__}: {problem}"
        log.exception("the %s failed", what)
        raise


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """SIGINT and SIGTERM interrupt the session, once; a second one ends the process as usual."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        session.interrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
