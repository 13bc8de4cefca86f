"""The Ray engine: requests are spread over actors on the machines of a Ray cluster. Each actor has its own engine.

Waiting requests are handed out in shards. Requests for one prompt stay together, so that an engine reads the prompt
once. Each actor has its share of all open requests. It has several shards at a time, so that its batches stay full when
one shard ends. The answer to a request depends on the weights and the request, not on the actor.

A shard names its weights. An actor with other weights finishes its shards and then reads the new weights. So an actor
that was started again needs no special care. If an actor or its machine is lost, its shards are handed out again. Ray
starts the actor on another machine, or as soon as a machine has room. Weights are read from a folder that all machines
share.

Prompts are rendered here, where the tokenizer is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove.binding import Target, bind
from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Engine, Request, chat, models, plain
from selfimprove.schema import Hardware, Model
from selfimprove.types import Problem, Sample

log = logging.getLogger("selfimprove")

AHEAD = 2  # an actor has at most AHEAD x max_batch requests, so that its engine always has work
LOSSES = 4  # if so many actors are lost with one request, the request is taken for the reason
CLOSING = 10.0  # seconds that engines have to close
BUSY = 60.0  # after so many seconds without an actor, the log says so
PATIENCE = 1.0  # seconds between two looks at an actor that is starting again
SETTINGS = {  # for Ray, unless the user has set them: no usage reports, no warnings of future changes, full priority
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


class Actor:
    """An engine in a process that Ray starts. The first shard opens the engine."""

    def __init__(self, opening: Callable[[], Engine], base: str) -> None:
        self._opening = opening
        self._engine: Engine | None = None
        self._weights = base
        self._running = 0  # shards
        self._change = asyncio.Condition()

    async def ready(self) -> None:
        """Returns once the process has started."""

    async def answer(self, weights: str, asked: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """The engine's answers with these weights to calls (method, arguments), in order.

        If a call raised an exception, the exception stands in its place.
        """
        try:
            engine = await self._enter(weights)
        except (ConfigError, RunError) as problem:
            return [problem] * len(asked)
        try:
            calls = (getattr(engine, method)(*arguments) for method, arguments in asked)
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            async with self._change:
                self._running -= 1
                self._change.notify_all()

    async def _enter(self, weights: str) -> Engine:
        async with self._change:
            await self._change.wait_for(lambda: self._weights == weights or not self._running)
            if Path(weights).is_absolute() and not Path(weights).exists():
                raise ConfigError(
                    f"engine=ray: {weights} is not there on {socket.gethostname()}: models and run folders have to be "
                    "on a disk that all machines of the cluster share, under the same path"
                )
            if self._engine is None:
                self._engine = self._opening()
            if self._weights != weights:
                self._engine.load(weights)
                self._weights = weights
            self._running += 1
            return self._engine

    async def sleep(self) -> None:
        if self._engine is not None:
            await self._engine.sleep()

    async def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


@dataclass(eq=False, slots=True)
class _Call:
    base: Hashable  # calls with the same base go to one actor, which has the keys and values
    method: str
    arguments: tuple[Any, ...]
    future: asyncio.Future[Any]
    losses: int = 0


@dataclass(eq=False, slots=True)
class _Member:
    """What this process knows of an actor."""

    handle: Any
    up: bool = False
    down: bool = False  # lost, and not back yet; a new actor is neither up nor down
    asked: int = 0  # requests that it has now
    lost: int = 0  # requests that were lost with it


class Handout:
    """Hands out requests to actors in shards. Requests that were lost with an actor go to others.

    `handles` are the actors' handles. `max_batch` is how many requests an actor's engine works on at once.
    """

    def __init__(self, handles: Iterable[Any], weights: str, max_batch: int) -> None:
        self.weights = weights
        self.asked_again = 0  # requests so far
        self.open = 0  # requests without an answer
        self.members = [_Member(handle) for handle in handles]
        self._most, self._shard = AHEAD * max_batch, max(1, max_batch // 2)
        self._waiting: dict[Hashable, list[_Call]] = {}  # by base, in order of arrival
        self._due = False
        self._started = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, base: Hashable, method: str, *arguments: Any) -> Any:
        """The answer of an engine's method. Calls with one `base` are handed out together.

        Raises what the method raises, and RunError if actors do not stay up.
        """
        loop = asyncio.get_running_loop()
        if not self._started:
            self._started = True
            for member in self.members:
                self._spawn(self._rise(member))
            loop.call_later(BUSY, self._say_if_none)
        call = _Call(base, method, arguments, loop.create_future())
        self._waiting.setdefault(call.base, []).append(call)
        self.open += 1
        if not self._due:  # after all requests of this turn of the event loop
            self._due = True
            loop.call_soon(self._hand_out)
        try:
            return await call.future
        finally:
            self.open -= 1

    def _hand_out(self) -> None:
        self._due = False
        expected = sum(not member.down for member in self.members)
        while self._waiting and (up := [member for member in self.members if member.up]):
            member = min(up, key=lambda member: member.asked)
            share = -(-self.open // expected)  # of all actors that are expected, since some may not be up yet
            free = min(share, self._most) - member.asked
            if free < 1:
                return
            if shard := self._take(min(free, self._shard)):
                member.asked += len(shard)
                self._spawn(self._hand(member, shard))

    def _take(self, most: int) -> list[_Call]:
        """Up to `most` of the waiting calls. Those of one prompt are split only if they alone are more than that."""
        shard: list[_Call] = []
        for prompt in list(itertools.islice(self._waiting, most)):
            calls = [call for call in self._waiting[prompt] if not call.future.done()]  # done: cancelled
            if shard and len(shard) + len(calls) > most:
                break
            del self._waiting[prompt]
            shard += calls[:most]
            if rest := calls[most:]:
                self._waiting = {prompt: rest, **self._waiting}
                break
        return shard

    async def _hand(self, member: _Member, shard: list[_Call]) -> None:
        """Send a shard to an actor and give out its answers. If the actor is lost, the shard waits for other actors."""
        from ray.exceptions import RayError, RayTaskError

        answers: list[Any] = []
        try:
            asked = [(call.method, call.arguments) for call in shard]
            answers = await member.handle.answer.remote(self.weights, asked)
        except Exception as problem:
            if isinstance(problem, RayError) and not isinstance(problem, RayTaskError):
                self._lose(member, shard, problem)
            else:  # the actor's code raised it, or the calls cannot be sent
                answers = [problem] * len(shard)
        member.asked -= len(shard)
        for call, answer in zip(shard, answers, strict=False):
            _settle(call, answer)
        if member.down and not member.asked:  # the last of its shards
            left = sum(other.up for other in self.members)
            log.warning(
                "a Ray actor or its machine was lost: %d of %d open requests are asked again, %s",
                member.lost,
                self.open,
                f"of the other {left}" if left else "as soon as there is an actor again",
            )
            self.asked_again += member.lost
            member.lost = 0
            self._spawn(self._rise(member))
        self._hand_out()

    def _lose(self, member: _Member, shard: list[_Call], problem: Exception) -> None:
        member.up, member.down = False, True
        again: dict[Hashable, list[_Call]] = {}
        for call in shard:
            call.losses += 1
            if call.losses == LOSSES:
                _settle(
                    call, RunError(f"engine=ray: {LOSSES} actors were lost with the same request: {_line(problem)}")
                )
            elif not call.future.done():
                again.setdefault(call.base, []).append(call)
                member.lost += 1
        for prompt, calls in self._waiting.items():
            again.setdefault(prompt, []).extend(calls)
        self._waiting = again

    async def _rise(self, member: _Member) -> None:
        """Wait until an actor has started, and give it work. It may have to wait until a machine joins."""
        from ray.exceptions import ActorUnavailableError, RayActorError

        while not member.up:
            try:
                await member.handle.ready.remote()
                member.up, member.down = True, False
            except ActorUnavailableError:
                await asyncio.sleep(PATIENCE)
            except RayActorError as problem:  # it will not come back
                self.members.remove(member)
                if not self.members:
                    raise RunError(f"engine=ray: no actor could be started: {_line(problem)}") from problem
                break
        self._hand_out()

    def _say_if_none(self) -> None:
        if not any(member.up for member in self.members):
            log.warning("no Ray actor has started after %.0f s: are the cluster's cores and GPUs in use?", BUSY)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """Pass on what a task of ours raised to all waiting calls, since nobody awaits the task."""
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()):
            for call in itertools.chain.from_iterable(self._waiting.values()):
                _settle(call, problem)
            self._waiting = {}


class RayEngine(chat.Speaker):
    """The engine (selfimprove.policy.Engine) that hands requests to Ray actors. Each opens the engine of node `inner`.

    `address` is a cluster's address. `auto` is the cluster of this machine or of RAY_ADDRESS, and None a Ray of this
    process alone. An actor takes `cpus` cores and, if the hardware is `cuda`, as many GPUs as the inner engine's
    `parallel`. `actors` None means as many as the cluster has room for now. Raises ConfigError if Ray is not installed,
    there is no such cluster, or it has no room.
    """

    def __init__(
        self,
        path: str,
        model: Model,
        hardware: Hardware,
        problems: Sequence[Problem],
        *,
        inner: Target,
        address: str | None,
        actors: int | None,
        cpus: int,
    ) -> None:
        make = bind(inner, "engine.inner")
        base = _anywhere(path)
        self.merges = inner.get("adapters") == "merge"
        self.tokenizer: Any = models.load_tokenizer(path, trust_remote_code=model.trust_remote_code)
        self.max_length = min(model.max_length, _window(path, model.trust_remote_code))
        needs = _needs(inner, hardware, cpus)
        hardware = hardware.model_copy(update={"gpus": needs.get("num_gpus", 0)})
        self._owns, self._ray = connect(address)
        actor = self._ray.remote(Actor).options(max_restarts=-1, scheduling_strategy="SPREAD", **needs)
        opening = partial(make, base, model, hardware, problems)
        handles = [actor.remote(opening, base) for _ in range(actors or room(needs))]
        self.handout = Handout(handles, base, hardware.max_batch)

    async def sample(self, request: Request) -> Sample:
        """One completion. Raises what the inner engine raises, and RunError if actors do not stay up."""
        sample: Sample = await self.handout.ask(request.base, "sample", request)
        return sample

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        scores: list[float] = await self.handout.ask(plain(prompt_ids), "logprobs", prompt_ids, completion_ids)
        return scores

    async def beam(self, prompt_ids: Sequence[int], width: int, max_tokens: int) -> Sample:
        sample: Sample = await self.handout.ask(plain(prompt_ids), "beam", prompt_ids, width, max_tokens)
        return sample

    async def lens(
        self, prompt_ids: Sequence[int], completion_ids: Sequence[int], heads: Sequence[tuple[int, int]] = ()
    ) -> list[Sample]:
        found: list[Sample] = await self.handout.ask(plain(prompt_ids), "lens", prompt_ids, completion_ids, heads)
        return found

    def load(self, path: str) -> None:
        """Use these weights for all later requests. Raises RuntimeError while requests are in flight."""
        if self.handout.open:
            raise RuntimeError("the weights cannot change while requests are in flight")
        self.handout.weights = _anywhere(path)

    async def sleep(self) -> None:
        """Let every engine sleep. An actor that is lost meanwhile holds no memory any more."""
        from ray.exceptions import RayActorError

        for asleep in [member.handle.sleep.remote() for member in self.handout.members if member.up]:
            with contextlib.suppress(RayActorError):
                await asleep

    def close(self) -> None:
        """End the actors and leave the cluster. A Ray that was started here ends too."""
        ends = [member.handle.close.remote() for member in self.handout.members if member.up]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=CLOSING)
        for member in self.handout.members:
            self._ray.kill(member.handle)
        if self._owns:
            self._ray.shutdown()


def _settle(call: _Call, answer: Any) -> None:
    if call.future.done():  # cancelled
        return
    if isinstance(answer, BaseException):
        call.future.set_exception(answer)
    else:
        call.future.set_result(answer)


def _anywhere(path: str) -> str:
    """A folder's absolute path, since actors have working folders of their own. A hub id stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def _window(path: str, trust_remote_code: bool) -> int:
    """A model's window, in tokens."""
    from transformers import AutoConfig

    folder = models.adapter_base(path) if models.is_adapter(path) else path
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
    return int(config.max_position_embeddings)


def _line(problem: Exception) -> str:
    return next((line.strip() for line in reversed(str(problem).splitlines()) if line.strip()), type(problem).__name__)


def require(node: Target, hardware: Hardware) -> None:
    """Raises ConfigError if Ray is not installed, a key of the inner engine is wrong, or no cluster has room."""
    bind(node["inner"], "engine.inner")
    _require_ray()
    if node["address"] is not None:
        owns, ray = connect(node["address"])
        room(_needs(node["inner"], hardware, node["cpus"]))
        if owns:
            ray.shutdown()


def _require_ray() -> None:
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ConfigError(
            "engine=ray: Ray is not installed: pip install 'selfimprove[ray]', or engine=vllm", "engine"
        ) from None


def connect(address: str | None) -> tuple[bool, Any]:
    """Whether this call joined the cluster, and the module `ray`. A process can be in one cluster only.

    Raises ConfigError if Ray is not installed or there is no such cluster.
    """
    _require_ray()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False, ray
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address not in (None, "auto"):  # Ray itself would try for minutes, so a socket tries first
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as problem:
        raise ConfigError(
            f"engine.address={address}: no Ray cluster that can be joined ({_line(problem)}); start one with "
            "`ray start --head`, or take engine.address=null for a Ray of this machine only",
            "engine.address",
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray's handler would end the run at once
    return True, ray


def _needs(inner: Target, hardware: Hardware, cpus: int) -> dict[str, int]:
    """What an actor takes of its machine, by Ray's names. It takes GPUs only if the model is on them."""
    return {"num_cpus": cpus} | ({"num_gpus": inner.get("parallel", 1)} if hardware.device == "cuda" else {})


def room(needs: dict[str, int]) -> int:
    """How many actors with these needs have room in the cluster, each on one machine.

    Raises ConfigError if there is room for none.
    """
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call,unused-ignore]
    what, each = ("GPU", needs["num_gpus"]) if "num_gpus" in needs else ("CPU", needs["num_cpus"])
    have = [int(node["Resources"].get(what, 0)) for node in found if node["Alive"]]
    if not (count := sum(has // each for has in have)):
        raise ConfigError(
            f"engine=ray: an actor needs {each} {what}, and the cluster's machines have {', '.join(map(str, have))}"
        )
    return count
