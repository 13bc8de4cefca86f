"""What all phases of one process share: engines, the pools of checking processes, the event loop, and signals."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.binding import Target, bind, is_group, module_of, options_of
from selfimprove.errors import ConfigError, RunError, Stopped, of_the_disk
from selfimprove.made import Made, Memories
from selfimprove.plan import Pass, plan, sources
from selfimprove.policy import Engine, Policy, chat, models
from selfimprove.report.display import Display
from selfimprove.schema import Config, Model, Stage
from selfimprove.train import Held
from selfimprove.train.launch import Workers
from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Check, Context, Judge, Opening, Outcome
from selfimprove.verify.pool import Pool

log = logging.getLogger("selfimprove")

MERGED = "merged"  # in the run folder: adapters merged into their bases, for engines that read full weights


@dataclass(frozen=True)
class Weights:
    """A policy: where its weights are, its version (0: the base model), and the hash that identifies it."""

    path: str
    version: int
    digest: str


Policies = dict[str, Weights]  # by role, at one moment of a run; `policy` is the one that is evaluated


@dataclass
class Session:
    """What all phases of one process share. An engine is opened when a phase first needs it."""

    config: Config
    run: store.Run
    display: Display
    train_problems: list[Problem]
    heldout: list[Problem]
    base: Policies
    dev: list[Problem] = field(default_factory=list)
    also: list[Problem] = field(default_factory=list)  # held-out problems of eval.also
    apart: list[Problem] = field(default_factory=list)  # made problems must not be like these: dev, held-out, sealed
    log_step: Callable[[int, dict[str, float]], None] = lambda number, record: None  # a training step, for the tracker
    phase_done: Callable[[], object] = lambda: None  # called after each phase that was done now
    restore: Callable[[Weights], object] = lambda weights: None  # makes a policy's folder again that was not kept
    loop: asyncio.Runner = field(default_factory=asyncio.Runner)
    memories: Memories = field(default_factory=Memories)
    made: Made = field(default_factory=Made)
    held: Held = field(default_factory=Held)  # what training leaves in memory for the next pass
    _pools: dict[str, Pool] = field(default_factory=dict)  # by verifier; workers and what they remember stay
    _engines: dict[str, Engine] = field(default_factory=dict)  # by role
    _loaded: dict[str, str] = field(default_factory=dict)  # the path of the weights in each
    _resources: dict[str, tuple[str, Any]] = field(default_factory=dict)  # by group verifier: state, what it opened
    _tools: dict[str, Any] = field(default_factory=dict)
    _task: asyncio.Task[Any] | None = None  # what the event loop is running
    _signal: str = ""

    @cached_property
    def workers(self) -> Workers:
        """The processes that train, if they stay from pass to pass."""
        return Workers()

    @cached_property
    def passes(self) -> list[Pass]:
        return plan(self.config)

    def stage(self, step: Pass) -> Stage:
        return self.config.stages[step.stage]

    def sources(self, step: Pass) -> list[Pass]:
        """The passes whose attempts a pass learns from."""
        return sources(self.config, self.passes, step)

    def policy(self, policies: Policies, role: str, *scope: str | int, others: Collection[str] = ()) -> Policy:
        """The policy of a role. Its samples depend on `scope`. It can ask the roles `others`."""
        asked = {role, *others}
        if self.config.hardware.sleep:
            for name in self._engines.keys() - asked:
                self.wait(self._engines[name].sleep())
        found = {name: self._policy(name, policies[name], scope) for name in asked}

        def other(name: str) -> Policy:
            if name not in found:
                raise ValueError(f"the role {name!r} was not asked for: a function that uses it has a keyword `roles`")
            return found[name]

        for policy in found.values():
            policy.others = other
        return found[role]

    def _policy(self, role: str, weights: Weights, scope: tuple[str | int, ...]) -> Policy:
        config, model = self.config, self.config.model_of(role)
        if role not in self._engines:
            path = self.base[role].path
            problems = (*self.train_problems, *self.heldout)
            self._engines[role], self._loaded[role] = open_engine(config, path, problems, model), path
        if self._loaded[role] != weights.path:
            self.restore(weights)
            self._engines[role].load(self._whole(role, weights))
            self._loaded[role] = weights.path
        return Policy(self._engines[role], config.seed, weights.version, role, model.max_tokens, scope)

    def _whole(self, role: str, weights: Weights) -> str:
        """The folder that an engine reads.

        If the engine takes no adapters, the adapter is merged into its base here, once for all replicas and actors. The
        result is in the run folder, and the newest one stays there until the session ends.
        """
        if not getattr(self._engines[role], "merges", False) or not models.is_adapter(weights.path):
            return weights.path
        model, base = self.config.model_of(role), self.base[role].path
        folder = self.run.path / MERGED / role / str(weights.version)
        shutil.rmtree(folder.parent, ignore_errors=True)
        with store.new_folder(folder) as out:
            base = models.adapter_base(base) if models.is_adapter(base) else base
            how: Any = {"dtype": model.dtype, "trust_remote_code": model.trust_remote_code}
            models.merge(weights.path, base, str(out), **how)
        return str(folder)

    def rest(self) -> None:
        """With `hardware.sleep`, let engines free their memory before training, until their next request."""
        if self.config.hardware.sleep:
            self.close_resources()
            self._room()

    def _room(self) -> None:
        """With `hardware.sleep`, let engines free their memory before another model is opened.

        Engines that are at work do not sleep. That is so if a solver asks for the model as it goes. Then both hold
        memory, as `memory.estimate` says.
        """
        if self.config.hardware.sleep and self._task is None:
            for engine in self._engines.values():
                self.wait(engine.sleep())

    @property
    def memory(self) -> int | None:
        """Bytes of the engines' weights, keys and values. None: an engine does not say, or none is open."""
        sizes = [getattr(engine, "memory", None) for engine in self._engines.values()]
        known = [size for size in sizes if size is not None]
        return sum(known) if sizes and len(known) == len(sizes) else None

    @property
    def cores_are_free(self) -> bool:
        """Whether sampling leaves this machine's cores to others, as it runs on a GPU or at a server."""
        return self.config.hardware.device == "cuda" or "url" in self.config.engine

    @cached_property
    def text(self) -> chat.Text:
        """render, turn, encode and end of the policy. If it has a tokenizer, no engine is opened for them."""
        path = self.base["policy"].path
        if Path(path).is_dir() and not (Path(path) / "tokenizer_config.json").exists():
            return self._policy("policy", self.base["policy"], ()).engine
        return chat.Tokenizer(models.load_tokenizer(path, trust_remote_code=self.config.model.trust_remote_code))

    def pool(self, node: Target) -> Pool:
        """The processes that run this check. They are started when the check is first asked for."""
        name = store.digest(node)
        if name not in self._pools:
            self._pools[name] = open_pool(self.config, node).__enter__()
        return self._pools[name]

    def check_by(self, verifier: Target) -> Check:
        """A function that gives the outcome of one text, for solvers and group verifiers that ask as they go.

        It is this verifier's, or the data set's if this one judges groups.
        """
        node = self.config.dataset.verifier if is_group(verifier) else verifier

        async def check(text: str, problem: Problem) -> Outcome:
            if is_group(node):
                raise RunError(f"dataset={self.config.dataset.name} has no verifier that checks a single answer")
            return await self.pool(node).check_one(text, problem.gold, problem.metadata)

        return check

    def judge_by(self, verifier: Target, policy: Policy, problems: list[Problem], policies: Policies) -> Judge:
        """A function that gives the outcomes of a problem's trajectories, for solvers that ask as they go.

        It takes a verifier of either kind. `policy` is the problem's own.
        """
        check = self.check_by(verifier)

        async def judge(problem: Problem, trajectories: list[Trajectory]) -> list[Outcome]:
            if not is_group(verifier):
                return list(await asyncio.gather(*(check(t.text, problem) for t in trajectories)))
            context = Context(policy, check, self.resource(verifier, problems, policies))
            return await bind(verifier, "verifier")(problem, trajectories, context)  # type: ignore[no-any-return]

        return judge

    def resource(self, verifier: Target, problems: list[Problem], policies: Policies) -> Any:
        """What a group verifier's module opens. None if it opens nothing.

        It stays open for later passes, until a policy that it may read has a new version.
        """
        open_resource = getattr(module_of(verifier), "resource", None)
        if open_resource is None:
            return None
        name = store.digest(verifier)
        read = [role for role, own in self.config.roles.items() if own.kind in ("sequence", "token")]
        state = store.digest([policies[role].digest for role in read])
        if name in self._resources and self._resources[name][0] != state:
            self._close(self._resources.pop(name)[1])
        if name not in self._resources:
            for role in read:
                self.restore(policies[role])
            paths = {role: policies[role].path for role in read}
            opening = Opening(self.config.model, self.config.hardware, problems, paths, self._room)
            self._resources[name] = state, open_resource(opening, **options_of(verifier))
        return self._resources[name][1]

    def scorers(self, policies: Policies) -> dict[str, Any]:
        """Role -> open reward model of the method, without those that no pass has trained yet."""
        from selfimprove.verify.reward_model import open_model

        found = {}
        for role, own in self.config.roles.items():
            weights, name = policies[role], f"role {role}"
            if own.kind != "sequence" or not weights.version:
                continue
            if name in self._resources and self._resources[name][0] != weights.digest:
                self._close(self._resources.pop(name)[1])
            if name not in self._resources:
                self.restore(weights)
                opening = Opening(self.config.model_of(role), self.config.hardware, [], room=self._room)
                self._resources[name] = weights.digest, open_model(opening, weights.path)
            found[role] = self._resources[name][1]
        return found

    def close_resources(self) -> None:
        """Close what group verifiers opened. A phase that needs it opens it again."""
        while self._resources:
            self._close(self._resources.popitem()[1][1])

    @property
    def tools(self) -> dict[str, Any]:
        """The method's tools by name. They are opened when they are first asked for."""
        for name, node in self.config.method.tools.items():
            if name not in self._tools:
                self._tools[name] = bind(node, f"method.tools.{name}")()
        return self._tools

    def take_calls(self) -> dict[str, int]:
        """The calls of tools since the last time, by how they ended: `tools/NAME/ok` and so on."""
        found = {name: tool.take() for name, tool in self._tools.items() if hasattr(tool, "take")}
        return {f"tools/{name}/{end}": count for name, ends in found.items() for end, count in ends.items()}

    @staticmethod
    def _close(resource: Any) -> None:
        if hasattr(resource, "close"):
            resource.close()

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end in the session's event loop. Raises Stopped if a signal came meanwhile."""
        loop = self.loop.get_loop()
        self._task = loop.create_task(work)
        try:
            return loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            raise Stopped(self._signal) from None
        finally:
            self._task = None

    def interrupt(self, name: str) -> None:
        """For a signal handler: cancel the coroutines, which can be cancelled anywhere. Other code gets Stopped."""
        self._signal = name
        if self._task is None:
            raise Stopped(name)
        self.loop.get_loop().call_soon_threadsafe(self._task.cancel)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.__exit__()
        self.close_resources()
        for opened in (*self._tools.values(), *self._engines.values()):
            self._close(opened)
        if "workers" in self.__dict__:
            self.workers.close()
        shutil.rmtree(self.run.path / MERGED, ignore_errors=True)
        self.loop.close()


def base_policies(config: Config) -> Policies:
    """The policies that a run begins with, by role."""
    found = {}
    for role in config.roles:
        model = config.model_of(role)
        found[role] = Weights(models.resolve(model.name, model.path), 0, store.digest([model.name, model.path]))
    return found


def open_engine(config: Config, path: str, problems: tuple[Problem, ...], model: Model | None = None) -> Engine:
    """The configured engine with the weights in `path`.

    `model` is the weights' section of the configuration, if it is not the run's own.
    """
    make = bind(configuration.engine_options(config.engine), "engine")
    return make(path, model or config.model, config.hardware, problems)  # type: ignore[no-any-return]


def open_pool(config: Config, node: Target) -> Pool:
    options = options_of(node)
    limits = config.verify
    workers = limits.workers or os.cpu_count() or 1
    return Pool(node["_target_"], options, workers=workers, seconds=limits.seconds, memory_mb=limits.memory_mb)


@dataclass
class Ending:
    """How a session's work ended, for summary.json."""

    status: str = "failed"
    reason: str | None = None


@contextmanager
def ending(session: Session, end: Ending, what: str) -> Iterator[None]:
    """Note in `end` how the work in the block ends: `complete`, `stopped` or `failed`.

    `stopped` means by a signal, or for a reason that the work gave. An exception of a failed block is raised again.
    """
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
        if said := of_the_disk(problem):
            end.reason = str(said)
            raise said from None
        end.reason = f"{type(problem).__name__}: {problem}"
        log.exception("the %s failed", what)
        raise


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """SIGINT and SIGTERM interrupt the session once. A second one ends the process as usual."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        session.interrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
