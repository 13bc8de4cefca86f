"""One round: generate → verify → filter → train → evaluate. Each phase reads the run folder and writes it.

A phase has a key, the hash of all it depends on: its part of the configuration, and the outputs of the phases before
it. Batch sizes, devices and worker counts are not in it. A phase whose manifest has the same key is not done again.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import seeds, store
from selfimprove.attempt import PREPARED, attempts, collect, pair
from selfimprove.binding import Target, bind, is_group, takes_check, takes_prepared
from selfimprove.generate.decodings import decodings
from selfimprove.grading import effects, grade
from selfimprove.phase import once, policy_key, problems_key, version
from selfimprove.phase import progress as show
from selfimprove.policy import Policy
from selfimprove.report import metrics as measure
from selfimprove.report.consistency import consistency
from selfimprove.schema import SLOTS
from selfimprove.session import Session, Weights
from selfimprove.types import Adaptation, Example, Problem, Trajectory

log = logging.getLogger("selfimprove")


def run_round(session: Session, number: int, weights: Weights) -> Weights:
    """All phases of one pass but the evaluation. Returns the policy that the next pass starts from."""
    slots = adapt(session, number, weights)
    sampler = weights if session.config.method.sampler == "last" else session.base
    generate(session, number, sampler, slots["generate"])
    verify(session, number, sampler)
    if not keep(session, number, slots["filter"]):
        return weights  # nothing to learn from: the policy stays
    return train(session, number, weights, slots["train"])


def adapt(session: Session, number: int, weights: Weights) -> dict[str, Target]:
    """The nodes of this pass's slots: the configured ones, with what the method's `adapt` makes of its dev problems."""
    config = session.config
    slots: dict[str, Target] = {name: config.slot(name) for name in SLOTS}
    probe, rule = config.method.probe, config.method.adapt
    if probe is None or rule is None:
        return slots
    folder = session.run.round(number) / "adapt"

    def work(key: str) -> dict[str, Any]:
        path = folder / "trajectories.parquet"
        cost = collect(session, number, "adapt", path, key, session.dev, probe, weights)
        verdicts = grade(session, number, "adapt", folder, key, session.dev, config.training_verifier, weights)
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


def generate(session: Session, number: int, weights: Weights, node: Target) -> None:
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
        return grade(session, number, "verify", folder, key, session.train_problems, node, weights, deal)

    depends = [node, version(node), limits.seconds, limits.memory_mb, config.control]
    if is_group(node):
        depends += [policy_key(config), weights.digest]
    depends.append(session.run.made(number, "generate"))
    once(session, number, "verify", depends, ["verdicts.parquet"], work)


def keep(session: Session, number: int, node: Target) -> int:
    """The filter slot's examples: examples.parquet. Returns how many there are."""
    config = session.config
    outcomes = config.verify.outcomes

    def work(key: str) -> dict[str, Any]:
        path = session.run.round(number) / "examples.parquet"
        dropped: Counter[str] = Counter()
        seen = effects(attempts(session, number), outcomes, dropped)
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


def train(session: Session, number: int, weights: Weights, node: Target) -> Weights:
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
            show(session, number, "train", store.count_records(examples), "examples") as progress,
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
        verdicts = grade(session, number, "grade", folder, key, session.heldout, node, weights)
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


def _steps(session: Session, number: int) -> int:
    manifest = session.run.manifest(number, "train")
    return int(manifest["metrics"]["steps"]) if manifest else 0


def _share(session: Session, number: int) -> list[Problem]:
    """The training problems of a pass: all of them, or its part of the round's."""
    refresh, problems = session.config.method.refresh, session.train_problems
    part = number % refresh
    return problems[part * len(problems) // refresh : (part + 1) * len(problems) // refresh]
