"""One round: generate → verify → filter → train → evaluate. Each phase reads the run folder and writes it.

A phase has a key, the hash of all it depends on: its part of the configuration, and the outputs of the phases before
it. Batch sizes, devices and worker counts are not in it. A phase whose manifest has the same key is not done again.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import config as configuration
from selfimprove import seeds, store
from selfimprove import verify as verifying
from selfimprove.config import SLOTS, Config, Node, bind, is_group, module_of, options_of, takes_check, takes_prepared
from selfimprove.errors import RunError, Stopped
from selfimprove.generate.decodings import decodings
from selfimprove.policy import Engine, Policy
from selfimprove.report import metrics as measure
from selfimprove.report.consistency import consistency
from selfimprove.report.display import Display, Phase
from selfimprove.types import STATUSES, Adaptation, Attempt, Example, Problem, Trajectory, Verdict
from selfimprove.verify import Context, Opening, Outcome
from selfimprove.verify.pool import Pool

log = logging.getLogger("selfimprove")

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

    def pool(self, node: Node) -> Pool:
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


def run_round(session: Session, number: int, weights: Weights) -> Weights:
    """All phases of one pass but the evaluation. Returns the policy that the next pass starts from."""
    slots = adapt(session, number, weights)
    sampler = weights if session.config.method.sampler == "last" else session.base
    generate(session, number, sampler, slots["generate"])
    verify(session, number, sampler)
    if not choose(session, number, slots["filter"]):
        return weights  # nothing to learn from: the policy stays
    return train(session, number, weights, slots["train"])


def adapt(session: Session, number: int, weights: Weights) -> dict[str, Node]:
    """The nodes of this pass's slots: the configured ones, with what the method's `adapt` makes of its dev problems."""
    config = session.config
    slots: dict[str, Node] = {name: config.slot(name) for name in SLOTS}
    probe, rule = config.method.probe, config.method.adapt
    if probe is None or rule is None:
        return slots
    folder = session.run.round(number) / "adapt"

    def work(key: str) -> dict[str, Any]:
        path = folder / "trajectories.parquet"
        cost = collect(session, number, "adapt", path, key, session.dev, probe, weights)
        verdicts = judge(session, number, "adapt", folder, key, session.dev, config.training_verifier, weights)
        adaptation: Adaptation = bind(rule, "method.adapt")(pair(folder, session.dev))
        with store.new_file(folder / "surface.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(adaptation.surface), temporary)
        chosen = ", ".join(f"{s}.{k}={v}" for s, options in adaptation.overrides.items() for k, v in options.items())
        log.info("round %s: %s chose %s", session.run.prefix(number)[1:], config.method.name, chosen)
        return {"overrides": adaptation.overrides, **adaptation.metrics, **verdicts, **cost}

    verifier = config.training_verifier
    depends = [probe, rule, verifier, version(verifier), policy_key(config), weights.digest, number]
    outputs = [f"adapt/{name}.parquet" for name in ("trajectories", "verdicts", "surface")]
    outputs += [f"adapt/{PREPARED}"] if takes_prepared(probe) else []
    depends.append(problems_key(session.dev))
    overrides = once(session, number, "adapt", depends, outputs, work)["overrides"]
    return {name: node | overrides.get(name, {}) for name, node in slots.items()}


def generate(session: Session, number: int, weights: Weights, node: Node) -> None:
    """Trajectories of this pass's training problems, by the generate slot's solver: trajectories.parquet."""
    config = session.config
    problems = _share(session, number)

    def work(key: str) -> dict[str, Any]:
        path = session.run.round(number) / "trajectories.parquet"
        return collect(session, number, "generate", path, key, problems, node, weights)

    depends = [node, policy_key(config), weights.digest, number, problems_key(problems)]
    if takes_check(node) or takes_prepared(node):
        depends += [config.training_verifier, version(config.training_verifier)]
    outputs = ["trajectories.parquet"]
    if takes_prepared(node):
        depends.append(problems_key(session.dev))
        outputs.append(PREPARED)
    once(session, number, "generate", depends, outputs, work)


def verify(session: Session, number: int, weights: Weights) -> None:
    """A verdict for every trajectory, by the training verifier: verdicts.parquet."""
    config, folder = session.config, session.run.round(number)
    node, limits = config.training_verifier, config.verify

    def work(key: str) -> dict[str, Any]:
        deal = seeds.derive(config.seed, "control", number) if config.control == "shuffled_verdicts" else None
        return judge(session, number, "verify", folder, key, session.train_problems, node, weights, deal)

    depends = [node, version(node), limits.seconds, limits.memory_mb, config.control]
    if is_group(node):
        depends += [policy_key(config), weights.digest]
    depends.append(session.run.made(number, "generate"))
    once(session, number, "verify", depends, ["verdicts.parquet"], work)


def choose(session: Session, number: int, node: Node) -> int:
    """The filter slot's examples: examples.parquet. Returns how many there are."""
    config = session.config
    outcomes = config.verify.outcomes

    def work(key: str) -> dict[str, Any]:
        path = session.run.round(number) / "examples.parquet"
        dropped: Counter[str] = Counter()
        seen = _effects(attempts(session, number), outcomes, dropped)
        examples = bind(node, "filter")(seen, seed=seeds.derive(config.seed, "filter", number))
        count = store.write_records(path, examples, Example)
        kept = {name for example in store.read_records(path, Example) for name in example.trajectory_ids[:1]}
        if dropped:
            said = ", ".join(f"{n} {status}" for status, n in sorted(dropped.items()))
            log.info("round %s: left out of training by verify.outcomes: %s", session.run.prefix(number)[1:], said)
        figures = {f"dropped/{status}": n for status, n in dropped.items()}
        return {"examples": count, **figures, **measure.round_metrics(attempts(session, number), kept)}

    depends = [node, config.seed, number, outcomes, session.run.made(number, "verify")]
    return int(once(session, number, "filter", depends, ["examples.parquet"], work)["examples"])


def train(session: Session, number: int, weights: Weights, node: Node) -> Weights:
    """The train slot's update of the policy on the round's examples: policy/."""
    from selfimprove.train import TrainContext, launch, unfinished

    config, folder = session.config, session.run.round(number)
    how = config.hardware.training
    own = how.own_process or how.processes > 1
    lora = config.model.lora.model_dump() if config.model.lora else None
    start = weights if config.method.start == "last" else session.base

    def work(key: str) -> dict[str, Any]:
        session.rest()
        examples, parts = folder / "examples.parquet", None
        if own or how.checkpoint_steps:  # removed when the phase is done, as other parts are
            same = [key, how.model_dump(), config.hardware.micro_batch]
            parts = unfinished(folder / "policy.parts", store.digest(same))
        with (
            store.new_folder(folder / "policy") as out,
            _phase(session, number, "train", store.count_records(examples), "examples") as progress,
        ):
            first = number - number % config.method.refresh
            before = sum(_steps(session, earlier) for earlier in range(first, number))  # in this round

            def log_step(record: dict[str, float]) -> None:
                session.run.log({**session.run.where(number), "phase": "train", **record})
                session.log_step(number // config.method.refresh, record | {"step": record["step"] + before})
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
                log=log_step,
                probe=_probe(session),
                round=number,
                rounds=config.passes,
                training=how,
                parts=parts,
            )
            if own:
                return launch.train(node, examples, context)
            return bind(node, "train")(list(store.read_records(examples, Example)), context)  # type: ignore[no-any-return]

    made = session.run.made(number, "filter")
    when = [number, config.passes]
    depends = [node, lora, config.model.dtype, config.seed, start.digest, session.base.digest, made, when]
    once(session, number, "train", depends, ["policy"], work)
    return Weights(str(folder / "policy"), number + 1, session.run.made(number, "train")["policy"])


_PROBE_TOKENS = 32  # of an answer


def _probe(session: Session) -> list[tuple[list[int], list[int]]]:
    """What sampler and trainer are both asked about (`selfimprove.handover`): the base policy's answers to the first
    held-out problems, to their first tokens. Nothing learns from them."""
    if "logprobs" not in session.config.engine["gives"]:
        return []
    found: dict[str, tuple[list[int], list[int]]] = {}
    for trajectory in store.read_records(session.run.round(-1) / "evaluation" / "trajectories.parquet", Trajectory):
        sample = trajectory.samples[0]
        if sample.completion_ids:
            found.setdefault(trajectory.problem_id, (sample.prompt_ids, sample.completion_ids[:_PROBE_TOKENS]))
        if len(found) == session.config.handover.answers:
            break
    return list(found.values())


def evaluate(session: Session, number: int, weights: Weights) -> dict[str, Any]:
    """The policy on the held-out problems, graded by the data set's own verifier: evaluation/. Returns the metrics."""
    config = session.config
    node, options = config.dataset.verifier, config.eval

    async def solver(problem: Problem, policy: Policy) -> list[Trajectory]:
        asked = [await policy.sample(problem.prompt, temperature=0, max_tokens=options.max_tokens)]
        if options.samples:
            heat, limit = options.temperature, options.max_tokens
            asked.append(await policy.sample(problem.prompt, options.samples, temperature=heat, max_tokens=limit))
        found = [
            Trajectory(problem.id, [sample], {"decoding": decoding})
            for decoding, samples in zip(("greedy", "sampled"), asked, strict=False)
            for sample in samples
        ]
        if (more := options.consistency) is not None:
            found += await decodings(problem, policy, more.samples, more.temperature, options.max_tokens)
        return found

    def work(key: str) -> dict[str, Any]:
        folder = session.run.round(number) / "evaluation"
        path = folder / "trajectories.parquet"
        cost = collect(session, number, "evaluate", path, key, session.heldout, solver, weights)
        verdicts = judge(session, number, "grade", folder, key, session.heldout, node, weights)
        figures = measure.evaluation(pair(folder, session.heldout))
        if options.consistency:
            figures |= consistency(pair(folder, session.heldout))
        if number >= 0:
            base = session.run.round(-1) / "evaluation"
            change = measure.change(pair(base, session.heldout), pair(folder, session.heldout))
            figures |= change.named("change")
        return {**figures, **verdicts, **cost}

    asked = options.model_dump(exclude={"drift", "also"})  # phases of their own
    depends = [node, asked, policy_key(config), weights.digest, problems_key(session.heldout)]
    if number >= 0:
        depends.append(session.run.made(-1, "evaluate"))
    outputs = ["evaluation/trajectories.parquet", "evaluation/verdicts.parquet"]
    return once(session, number, "evaluate", depends, outputs, work)


def attempts(session: Session, number: int) -> Iterator[list[Attempt]]:
    """The round's attempts, problem by problem, streamed from the run folder."""
    return pair(session.run.round(number), session.train_problems)


# What the phases share


def once(
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
    run.log({**run.where(number), "phase": name, **metrics, "seconds": round(seconds, 3)})
    run.finish(number, name, key, outputs, metrics, seconds)
    session.phase_done()
    return metrics  # type: ignore[no-any-return]


def policy_key(config: Config) -> list[Any]:
    """What decides a policy's samples beside its weights: never batch size or device."""
    return [config.seed, configuration.engine_options(config.engine), config.model.max_length, config.model.max_tokens]


def problems_key(problems: list[Problem]) -> str:
    return store.digest([[p.id, p.prompt, p.gold, p.metadata] for p in problems])


PREPARED = "prepared.json"  # beside a phase's trajectories: what its solver began with, and what that asked of models


def _prepared(session: Session, node: Node, kept: Path, key: str, problems: list[Problem], policy: Policy) -> Any:
    """What a node's solver begins with, from `kept`, made now where it is not there.

    A module whose solver has the keyword `prepared` has a coroutine
    `prepare(problems, policy, *, dev, check, **options)` for work that is done once and not a problem at a time. It
    gets the phase's problems, the dev problems, the verifier and the solver's options, and returns JSON, which is kept:
    a phase that is continued goes on with the same. What it asked of models is kept with it.
    """
    if not kept.exists() or store.read_json(kept)["key"] != key:
        options = bind(node, "generate").keywords  # type: ignore[attr-defined]
        value = session.wait(module_of(node).prepare(problems, policy, dev=session.dev, check=session.check, **options))
        store.write_json(kept, {"key": key, "prepared": value, "asked": policy.meter.take()})
    return store.read_json(kept)["prepared"]


def collect(
    session: Session,
    number: int,
    phase: str,
    path: Path,
    key: str,
    problems: list[Problem],
    solver: Solver | Node,
    weights: Weights,
) -> dict[str, Any]:
    """Run a solver on every problem and write the trajectories, a shard of problems at a time. Returns what it cost.

    That of a node is given what it asks the runner for: `check`, and `prepared`, which `_prepared` makes. A shard is
    generated from start to end by itself, so that one that is done again after a kill sees the same batches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = store.Parts(path, key, Trajectory)
    policy = session.policy(weights, phase, number)
    asked: Counter[str] = Counter()
    run: Callable[..., Any] = bind(solver, "generate") if isinstance(solver, dict) else solver
    if isinstance(solver, dict) and takes_check(solver):
        run = partial(run, check=session.check)
    if isinstance(solver, dict) and takes_prepared(solver):
        kept = path.with_name(PREPARED)
        beginning = session.policy(weights, phase, number, "prepare")
        try:
            run = partial(run, prepared=_prepared(session, solver, kept, key, problems, beginning))
        except ValueError as cause:
            raise RunError(f"{phase}: {cause}") from cause
        asked.update(store.read_json(kept)["asked"])
    with _phase(session, number, phase, len(problems), "problems") as progress:
        progress.skip(parts.done)

        async def solve(problem: Problem) -> list[Trajectory]:
            try:
                found = await run(problem, policy.for_problem(problem))
            except ValueError as cause:
                raise RunError(f"{phase}: problem {problem.id}: {cause}") from cause
            for i, trajectory in enumerate(found):
                trajectory.id = f"{session.run.prefix(number)}/{problem.id}/{i}"
            progress.advance(1, tokens=sum(t.sampled_tokens for t in found))
            return found  # type: ignore[no-any-return]

        async def solve_all(shard: list[Problem]) -> list[list[Trajectory]]:
            return await asyncio.gather(*map(solve, shard))

        while (start := parts.done) < len(problems):
            shard = problems[start : start + session.config.hardware.shard]
            found = session.wait(solve_all(shard))
            parts.add(start, start + len(shard), list(itertools.chain.from_iterable(found)), policy.meter.take())
    asked.update(parts.notes())
    parts.finish()
    return measure.cost(store.read_records(path, Trajectory)) | _tokens(asked)


def judge(
    session: Session,
    number: int,
    phase: str,
    folder: Path,
    key: str,
    problems: list[Problem],
    node: Node,
    weights: Weights,
    deal: int | None = None,
    name: str = "verdicts",
) -> dict[str, int]:
    """Check every trajectory of `folder`: `name`.parquet. `deal` is a seed by which the verdicts are dealt out at
    random (a control).

    Returns the number of verdicts of each status, and what a group verifier asked of models. Raises RunError with three
    examples when more checks than the configured share ended as `timeout` or `error`.
    """
    limits = session.config.verify
    source, path = folder / "trajectories.parquet", folder / f"{name}.parquet"
    parts = store.Parts(path, key, Verdict)
    total = store.count_records(source)
    by_id = {problem.id: problem for problem in problems}
    rows = ((by_id[t.problem_id], t) for t in store.read_records(source, Trajectory, start=parts.done))
    with _phase(session, number, phase, total, "answers") as progress:
        progress.skip(parts.done)
        if is_group(node):
            policy = session.policy(weights, phase, number)
            _judge_groups(
                session,
                rows,
                parts,
                Opening(session.config.model, session.config.hardware, problems),
                node,
                policy,
                progress.advance,
            )
        else:
            _judge_each(session.pool(node), rows, parts, progress.advance)
    asked = parts.notes()
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
    return {f"verdicts/{status}": count for status, count in counts.items()} | (_tokens(asked) if asked else {})


Rows = Iterator[tuple[Problem, Trajectory]]
Advance = Callable[[int], object]


def _judge_each(pool: Pool, rows: Rows, parts: store.Parts, advance: Advance) -> None:
    """Verdicts by a check, each trajectory by itself, in the pool."""
    for batch in store.batches(rows, _VERDICTS_A_PART):
        asked = ((trajectory.text, problem.gold, problem.metadata) for problem, trajectory in batch)
        verdicts = []
        for (_, trajectory), outcome in zip(batch, pool.run(asked), strict=True):
            verdicts.append(Verdict(trajectory.id, **asdict(outcome)))
            advance(1)
        parts.add(parts.done, parts.done + len(batch), verdicts)


def _judge_groups(
    session: Session, rows: Rows, parts: store.Parts, opening: Opening, node: Node, policy: Policy, advance: Advance
) -> None:
    """Verdicts by a group verifier, all trajectories of a problem at once, a shard of problems at a time."""
    verifier = bind(node, "verifier")
    with _resource(node, opening) as resource:

        async def verdicts(problem: Problem, group: list[Trajectory]) -> list[Verdict]:
            context = Context(policy.for_problem(problem), session.check, resource)
            outcomes = await verifier(problem, group, context)
            advance(len(group))
            return [Verdict(t.id, **asdict(outcome)) for t, outcome in zip(group, outcomes, strict=True)]

        async def judge_all(shard: list[tuple[Problem, list[Trajectory]]]) -> list[list[Verdict]]:
            return await asyncio.gather(*(verdicts(problem, group) for problem, group in shard))

        for shard in store.batches(_by_problem(rows), opening.hardware.shard):
            found = list(itertools.chain.from_iterable(session.wait(judge_all(shard))))
            parts.add(parts.done, parts.done + len(found), found, policy.meter.take())


def _by_problem(rows: Rows) -> Iterator[tuple[Problem, list[Trajectory]]]:
    for _, group in itertools.groupby(rows, key=lambda row: row[0].id):
        pairs = list(group)
        yield pairs[0][0], [trajectory for _, trajectory in pairs]


@contextmanager
def _resource(node: Node, opening: Opening) -> Iterator[Any]:
    """What the verifier's module opens for a phase, closed at its end; None where it opens nothing."""
    open_resource = getattr(module_of(node), "resource", None)
    resource: Any = open_resource(opening, **options_of(node)) if open_resource else None
    try:
        yield resource
    finally:
        if hasattr(resource, "close"):
            resource.close()


def version(node: Node) -> str:
    """A hash of the verifiers' code: verdicts of another version are not taken over."""
    code = sorted(Path(verifying.__file__ or "").parent.glob("*.py"))
    return store.digest([*map(store.file_digest, code), inspect.getsource(module_of(node))])


def _tokens(asked: dict[str, int]) -> dict[str, int]:
    counts = {key: asked.get(key, 0) for key in ("prompt", "sampled", "scored")}
    return {"calls": asked.get("calls", 0)} | {f"tokens/{key}": count for key, count in counts.items()}


def _steps(session: Session, number: int) -> int:
    manifest = session.run.manifest(number, "train")
    return int(manifest["metrics"]["steps"]) if manifest else 0


def _phase(session: Session, number: int, name: str, total: int, unit: str) -> AbstractContextManager[Phase]:
    return session.display.phase(number // session.config.method.refresh, session.config.rounds, name, total, unit)


def _share(session: Session, number: int) -> list[Problem]:
    """The training problems of a pass: all of them, or its part of the round's."""
    refresh, problems = session.config.method.refresh, session.train_problems
    part = number % refresh
    return problems[part * len(problems) // refresh : (part + 1) * len(problems) // refresh]


def _effects(
    groups: Iterator[list[Attempt]], outcomes: Mapping[Any, str | float], dropped: Counter[str]
) -> Iterator[list[Attempt]]:
    """The attempts as a filter sees them: without those whose status is to be dropped, which are counted."""
    for group in groups:
        seen = []
        for attempt in group:
            effect = outcomes.get(attempt.verdict.status, "keep")
            if effect == "drop":
                dropped[attempt.verdict.status] += 1
                continue
            if not isinstance(effect, str):
                attempt = replace(attempt, verdict=replace(attempt.verdict, reward=effect))
            seen.append(attempt)
        if seen:
            yield seen


_VERDICTS_A_PART = 4096


def open_pool(config: Config, node: Node) -> Pool:
    options = options_of(node)
    limits = config.verify
    workers = limits.workers or os.cpu_count() or 1
    return Pool(node["_target_"], options, workers=workers, seconds=limits.seconds, memory_mb=limits.memory_mb)


def _dealt(table: pa.Table, seed: int) -> pa.Table:
    """The same verdicts, each given to another trajectory at random."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    dealt = table.take(order)
    return dealt.set_column(0, "trajectory_id", table.column("trajectory_id"))


def pair(folder: Path, problems: list[Problem]) -> Iterator[list[Attempt]]:
    """Trajectories and their verdicts side by side, grouped by problem."""
    by_id = {problem.id: problem for problem in problems}
    both = zip(
        store.read_records(folder / "trajectories.parquet", Trajectory),
        store.read_records(folder / "verdicts.parquet", Verdict),
        strict=True,
    )
    for problem_id, group in itertools.groupby(both, key=lambda pair: pair[0].problem_id):
        yield [Attempt(by_id[problem_id], trajectory, verdict) for trajectory, verdict in group]
