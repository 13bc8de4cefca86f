"""One round: generate → verify → filter → train → evaluate. Each phase reads the run folder and writes it.

A phase has a key, the hash of all it depends on: its part of the configuration, and the outputs of the phases before
it. Batch sizes, devices and worker counts are not in it. A phase whose manifest has the same key is not done again.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfimprove import config as configuration
from selfimprove import seeds, store
from selfimprove.config import Config, Node, bind
from selfimprove.errors import RunError, Stopped
from selfimprove.policy import Engine, Policy
from selfimprove.report import metrics as measure
from selfimprove.report.display import Display
from selfimprove.types import STATUSES, Attempt, Example, Problem, Trajectory, Verdict
from selfimprove.verify.pool import Pool

Solver = Callable[[Problem, Policy], Any]


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
    log_step: Callable[[int, dict[str, float]], None] = lambda number, record: None  # a training step, for the tracker
    phase_done: Callable[[], object] = lambda: None  # called after each phase that was done now
    loop: asyncio.Runner = field(default_factory=asyncio.Runner)
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
        if self._engine is not None:
            self._engine.close()
        self.loop.close()


def open_engine(config: Config, path: str, problems: tuple[Problem, ...]) -> Engine:
    make = bind(configuration.engine_options(config.engine), "engine")
    return make(path, config.model, config.hardware, problems)  # type: ignore[no-any-return]


def run_round(session: Session, number: int, weights: Weights) -> Weights:
    """All phases of one round. Returns the policy that the next round starts from."""
    generate(session, number, weights)
    verify(session, number)
    if not choose(session, number):
        return weights  # nothing to learn from: the policy stays
    return train(session, number, weights)


def generate(session: Session, number: int, weights: Weights) -> None:
    """Every training problem's trajectories, by the generate slot's solver: trajectories.parquet."""
    config = session.config
    node = config.slot("generate")

    def work(key: str) -> dict[str, Any]:
        path = session.run.round(number) / "trajectories.parquet"
        solver = bind(node, "generate")
        return _collect(session, number, "generate", path, key, session.train_problems, solver, weights)

    depends = [node, _policy_key(config), weights.digest, number, _problems_key(session.train_problems)]
    _once(session, number, "generate", depends, ["trajectories.parquet"], work)


def verify(session: Session, number: int) -> None:
    """A verdict for every trajectory, by the training verifier: verdicts.parquet."""
    config, folder = session.config, session.run.round(number)
    node, limits = config.training_verifier, config.verify

    def work(key: str) -> dict[str, Any]:
        deal = seeds.derive(config.seed, "control", number) if config.control == "shuffled_verdicts" else None
        return _judge(session, number, "verify", folder, key, session.train_problems, node, deal)

    depends = [node, limits.seconds, limits.memory_mb, config.control, session.run.made(number, "generate")]
    _once(session, number, "verify", depends, ["verdicts.parquet"], work)


def choose(session: Session, number: int) -> int:
    """The filter slot's examples: examples.parquet. Returns how many there are."""
    config = session.config
    node = config.slot("filter")

    def work(key: str) -> dict[str, Any]:
        path = session.run.round(number) / "examples.parquet"
        examples = bind(node, "filter")(attempts(session, number), seed=seeds.derive(config.seed, "filter", number))
        count = store.write_records(path, examples, Example)
        kept = {name for example in store.read_records(path, Example) for name in example.trajectory_ids[:1]}
        return {"examples": count, **measure.round_metrics(attempts(session, number), kept)}

    depends = [node, config.seed, number, session.run.made(number, "verify")]
    return int(_once(session, number, "filter", depends, ["examples.parquet"], work)["examples"])


def train(session: Session, number: int, weights: Weights) -> Weights:
    """The train slot's update of the policy on the round's examples: policy/."""
    from selfimprove.train import TrainContext

    config, folder = session.config, session.run.round(number)
    node = config.slot("train")
    lora = config.model.lora.model_dump() if config.model.lora else None
    start = weights if config.method.start == "last" else session.base

    def work(key: str) -> dict[str, Any]:
        rows = list(store.read_records(folder / "examples.parquet", Example))
        with (
            store.new_folder(folder / "policy") as out,
            session.display.phase(number, config.rounds, "train", len(rows), "examples") as progress,
        ):

            def log(record: dict[str, float]) -> None:
                session.run.log({"round": number, "phase": "train", **record})
                session.log_step(number, record)
                progress.set(record["progress"])

            context = TrainContext(
                start=start.path,
                base=session.base.path,
                out=out,
                seed=seeds.derive(config.seed, "train", number) % 2**31,
                device=config.hardware.device,
                dtype=config.model.dtype,
                micro_batch=config.hardware.micro_batch,
                gradient_checkpointing=config.hardware.gradient_checkpointing,
                lora=lora,
                log=log,
            )
            return bind(node, "train")(rows, context)  # type: ignore[no-any-return]

    made = session.run.made(number, "filter")
    depends = [node, lora, config.model.dtype, config.seed, start.digest, session.base.digest, made]
    _once(session, number, "train", depends, ["policy"], work)
    return Weights(str(folder / "policy"), number + 1, session.run.made(number, "train")["policy"])


def evaluate(session: Session, number: int, weights: Weights) -> dict[str, Any]:
    """The policy on the held-out problems, graded by the data set's own verifier: evaluation/. Returns the metrics."""
    config = session.config
    node, options = config.dataset.verifier, config.eval

    async def solver(problem: Problem, policy: Policy) -> list[Trajectory]:
        asked = [await policy.sample(problem.prompt, temperature=0, max_tokens=options.max_tokens)]
        if options.samples:
            heat, limit = options.temperature, options.max_tokens
            asked.append(await policy.sample(problem.prompt, options.samples, temperature=heat, max_tokens=limit))
        return [
            Trajectory(problem.id, [sample], {"decoding": decoding})
            for decoding, samples in zip(("greedy", "sampled"), asked, strict=False)
            for sample in samples
        ]

    def work(key: str) -> dict[str, Any]:
        folder = session.run.round(number) / "evaluation"
        path = folder / "trajectories.parquet"
        cost = _collect(session, number, "evaluate", path, key, session.heldout, solver, weights)
        verdicts = _judge(session, number, "grade", folder, key, session.heldout, node, None)
        figures = measure.evaluation(_pair(folder, session.heldout))
        if number >= 0:
            base = session.run.round(-1) / "evaluation"
            change = measure.change(_pair(base, session.heldout), _pair(folder, session.heldout))
            figures |= change.named("change")
        return {**figures, **verdicts, **cost}

    depends = [node, options.model_dump(), _policy_key(config), weights.digest, _problems_key(session.heldout)]
    if number >= 0:
        depends.append(session.run.made(-1, "evaluate"))
    outputs = ["evaluation/trajectories.parquet", "evaluation/verdicts.parquet"]
    return _once(session, number, "evaluate", depends, outputs, work)


def attempts(session: Session, number: int) -> Iterator[list[Attempt]]:
    """The round's attempts, problem by problem, streamed from the run folder."""
    return _pair(session.run.round(number), session.train_problems)


# What the phases share


def _once(
    session: Session, number: int, name: str, depends: list[Any], outputs: list[str], work: Callable[[str], Any]
) -> dict[str, Any]:
    """The metrics of a phase: of the finished one where its manifest still fits, else of `work`, done now."""
    run, key = session.run, store.digest(depends)
    if (manifest := run.done(number, name, key)) is not None:
        return manifest["metrics"]  # type: ignore[no-any-return]
    run.discard(number, name)
    begin = time.monotonic()
    metrics = work(key)
    seconds = time.monotonic() - begin
    run.log({"round": number, "phase": name, **metrics, "seconds": round(seconds, 3)})
    run.finish(number, name, key, outputs, metrics, seconds)
    session.phase_done()
    return metrics  # type: ignore[no-any-return]


def _policy_key(config: Config) -> list[Any]:
    """What decides a policy's samples beside its weights: never batch size or device."""
    return [config.seed, configuration.engine_options(config.engine), config.model.max_length, config.model.max_tokens]


def _problems_key(problems: list[Problem]) -> str:
    return store.digest([[p.id, p.prompt, p.gold, p.metadata] for p in problems])


def _collect(
    session: Session,
    number: int,
    phase: str,
    path: Path,
    key: str,
    problems: list[Problem],
    solver: Solver,
    weights: Weights,
) -> dict[str, Any]:
    """Run a solver on every problem and write the trajectories, a shard of problems at a time. Returns what it cost.

    A shard is generated from start to end by itself, so that one that is done again after a kill sees the same batches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = store.Parts(path, key, Trajectory)
    policy = session.policy(weights, phase, number)
    with session.display.phase(number, session.config.rounds, phase, len(problems), "problems") as progress:
        progress.skip(parts.done)

        async def solve(problem: Problem) -> list[Trajectory]:
            try:
                found = await solver(problem, policy.for_problem(problem))
            except ValueError as cause:
                raise RunError(f"{phase}: problem {problem.id}: {cause}") from cause
            for i, trajectory in enumerate(found):
                trajectory.id = f"{'base' if number < 0 else f'r{number}'}/{problem.id}/{i}"
            progress.advance(1, tokens=sum(t.sampled_tokens for t in found))
            return found  # type: ignore[no-any-return]

        async def solve_all(shard: list[Problem]) -> list[list[Trajectory]]:
            return await asyncio.gather(*map(solve, shard))

        while (start := parts.done) < len(problems):
            shard = problems[start : start + session.config.hardware.shard]
            found = session.wait(solve_all(shard))
            parts.add(start, start + len(shard), list(itertools.chain.from_iterable(found)))
    parts.finish()
    return measure.cost(store.read_records(path, Trajectory))


def _judge(
    session: Session,
    number: int,
    phase: str,
    folder: Path,
    key: str,
    problems: list[Problem],
    node: Node,
    deal: int | None,
) -> dict[str, int]:
    """Check every trajectory of `folder`; `deal` is a seed by which the verdicts are dealt out at random (a control).

    Returns the number of verdicts of each status. Raises RunError with three examples when more checks than the
    configured share ended as `timeout` or `error`.
    """
    limits = session.config.verify
    source, path = folder / "trajectories.parquet", folder / "verdicts.parquet"
    by_id = {problem.id: problem for problem in problems}
    parts = store.Parts(path, key, Verdict)
    total = store.count_records(source)
    with (
        open_pool(session.config, node) as pool,
        session.display.phase(number, session.config.rounds, phase, total, "answers") as progress,
    ):
        progress.skip(parts.done)
        for batch in store.batches(store.read_records(source, Trajectory, start=parts.done), _VERDICTS_A_PART):
            asked = ((t.text, by_id[t.problem_id].gold, by_id[t.problem_id].metadata) for t in batch)
            verdicts = []
            for trajectory, outcome in zip(batch, pool.run(asked), strict=True):
                verdicts.append(Verdict(trajectory.id, **asdict(outcome)))
                progress.advance(1)
            parts.add(parts.done, parts.done + len(batch), verdicts)
    parts.finish(None if deal is None else lambda table: _dealt(table, deal))
    counts = dict.fromkeys(STATUSES, 0)
    examples: list[str] = []
    for verdict in store.read_records(path, Verdict):
        counts[verdict.status] += 1
        if verdict.status in ("timeout", "error") and len(examples) < 3:
            examples.append(f"{verdict.trajectory_id}: {verdict.status} ({verdict.reason})")
    failed = counts["timeout"] + counts["error"]
    if failed > limits.stop_above * total:
        raise RunError(
            f"{phase}: {failed} of {total} checks ended as timeout or error, more than "
            f"verify.stop_above={limits.stop_above}; e.g. {'; '.join(examples)}"
        )
    return {f"verdicts/{status}": count for status, count in counts.items()}


_VERDICTS_A_PART = 4096


def open_pool(config: Config, node: Node) -> Pool:
    options = {key: value for key, value in node.items() if key != "_target_"}
    limits = config.verify
    workers = limits.workers or os.cpu_count() or 1
    return Pool(node["_target_"], options, workers=workers, seconds=limits.seconds, memory_mb=limits.memory_mb)


def _dealt(table: pa.Table, seed: int) -> pa.Table:
    """The same verdicts, each given to another trajectory at random."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    dealt = table.take(order)
    return dealt.set_column(0, "trajectory_id", table.column("trajectory_id"))


def _pair(folder: Path, problems: list[Problem]) -> Iterator[list[Attempt]]:
    """Trajectories and their verdicts side by side, grouped by problem."""
    by_id = {problem.id: problem for problem in problems}
    both = zip(
        store.read_records(folder / "trajectories.parquet", Trajectory),
        store.read_records(folder / "verdicts.parquet", Verdict),
        strict=True,
    )
    for problem_id, group in itertools.groupby(both, key=lambda pair: pair[0].problem_id):
        yield [Attempt(by_id[problem_id], trajectory, verdict) for trajectory, verdict in group]
