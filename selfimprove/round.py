"""One pass: generate → verify → make → filter → remember → train. Each phase reads the run folder and writes to it.

A phase has a key. It is the hash of all that the phase depends on: its part of the configuration, and the outputs of
the phases before it. Batch sizes, devices and worker counts are not part of it. A phase whose manifest has the same key
is not done again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import store
from selfimprove.attempt import PREPARED, collect, pair
from selfimprove.binding import Target, asks_for, is_group, module_of
from selfimprove.errors import RunError
from selfimprove.grading import beside_gold, effects, grade
from selfimprove.phase import once, policy_key, problems_key, version
from selfimprove.plan import Pass
from selfimprove.report import metrics as measure
from selfimprove.schema import SLOTS
from selfimprove.session import Policies, Session
from selfimprove.supplies import key as supplies_key
from selfimprove.supplies import key_of_roles, supplied
from selfimprove.types import Adaptation, Attempt, Example, Memory, Problem
from selfimprove.update import train

log = logging.getLogger("selfimprove")


def run_pass(session: Session, step: Pass, policies: Policies) -> Policies:
    """All phases of one pass except the evaluation. Returns the policies that the next pass starts from."""
    stage = session.stage(step)
    slots = adapt(session, step, policies)
    if stage.of is None:
        generate(session, step, policies, slots["generate"])
    if stage.of is None or _verifies_again(session, step):
        verify(session, step, policies)
    if stage.make:
        make(session, step, stage.make)
    kept = keep(session, step, slots["filter"]) if slots["filter"] else 0
    if stage.remember:
        remember(session, step, stage.remember)
    if kept and stage.role and slots["train"]:
        policies = policies | {stage.role: train(session, step, policies, slots["train"])}
    _note(session, step)
    return policies


def sampler(session: Session, step: Pass, policies: Policies) -> tuple[str, Policies]:
    """The role that samples in a pass, and all policies as that role sees them."""
    stage = session.stage(step)
    role = stage.by or stage.role or "policy"
    return role, policies if stage.sampler == "last" else policies | {role: session.base[role]}


def adapt(session: Session, step: Pass, policies: Policies) -> dict[str, Target | None]:
    """The targets of this pass's slots: the configured ones with the changes of the method's `adapt`.

    `adapt` decides by a probe on the dev problems, or by the figures of earlier passes.
    """
    config, stage = session.config, session.stage(step)
    slots: dict[str, Target | None] = {name: getattr(stage, name) for name in SLOTS}
    probe, rule = stage.probe, stage.adapt
    if rule is None:
        return slots
    folder, verifier = session.run.folder(step) / "adapt", config.verifier_of(stage)
    role = stage.by or stage.role or "policy"

    def work(key: str) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        groups: Iterable[list[Attempt]] = ()
        if probe:
            path = folder / "trajectories.parquet"
            cost = collect(session, step, "adapt", path, key, session.dev, probe, policies, role, verifier)
            figures = grade(session, step, "adapt", folder, key, session.dev, verifier, policies, role) | cost
            groups = pair(folder, session.dev)
        folder.mkdir(parents=True, exist_ok=True)
        adaptation: Adaptation = supplied(session, step, rule, "adapt", "method.adapt", verifier)(groups)
        with store.new_file(folder / "surface.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(adaptation.surface), temporary)
        chosen = ", ".join(f"{s}.{k}={v}" for s, options in adaptation.overrides.items() for k, v in options.items())
        log.info("round %s: %s chose %s", session.run.prefix(step)[1:], config.method.name, chosen)
        return {"overrides": adaptation.overrides, **adaptation.metrics, **figures}

    depends = [probe, rule, verifier, version(verifier), policy_key(config), policies[role].digest, step.number]
    outputs = [f"adapt/{name}.parquet" for name in (("trajectories", "verdicts") if probe else ())]
    outputs.append("adapt/surface.parquet")
    outputs += [f"adapt/{PREPARED}"] if probe and "prepared" in asks_for(probe) else []
    depends += [problems_key(session.dev), *supplies_key(session, step, rule, verifier)]
    overrides = once(session, step, "adapt", depends, outputs, work)["overrides"]
    return {name: node and node | overrides.get(name, {}) for name, node in slots.items()}


def problems_of(session: Session, step: Pass) -> list[Problem]:
    """The problems of a pass: its part of the training problems, or those that the stage's rule chooses."""
    rule = session.stage(step).problems
    if rule is None:
        problems = session.train_problems
        return problems[step.part * len(problems) // step.parts : (step.part + 1) * len(problems) // step.parts]
    path = session.run.folder(step) / "problems.parquet"

    def work(key: str) -> dict[str, Any]:
        choose = supplied(session, step, rule, "problems", "method.problems", session.config.dataset.verifier)
        return {"problems": store.write_records(path, choose(session.train_problems), Problem)}

    verifier = session.config.dataset.verifier
    depends = [rule, session.config.seed, step.number, problems_key(session.train_problems)]
    depends += supplies_key(session, step, rule, verifier)
    once(session, step, "problems", depends, ["problems.parquet"], work)
    found = list(store.read_records(path, Problem))
    if not found:
        raise RunError(f"{step.label}: method.problems={rule['_target_']} left no problem for this pass")
    return found


def generate(session: Session, step: Pass, policies: Policies, node: Target | None) -> None:
    """Trajectories of this pass's problems, by the generate slot's solver: trajectories.parquet."""
    assert node is not None
    config, verifier = session.config, session.config.verifier_of(session.stage(step))
    problems = problems_of(session, step)
    role, seen = sampler(session, step, policies)

    def work(key: str) -> dict[str, Any]:
        path = session.run.folder(step) / "trajectories.parquet"
        return collect(session, step, "generate", path, key, problems, node, seen, role, verifier)

    depends = [node, policy_key(config), seen[role].digest, step.number, problems_key(problems)]
    depends += [*supplies_key(session, step, node, verifier), *key_of_roles(config, seen)]
    outputs = ["trajectories.parquet", *([PREPARED] if "prepared" in asks_for(node) else [])]
    once(session, step, "generate", depends, outputs, work)


def verify(session: Session, step: Pass, policies: Policies) -> None:
    """A verdict for every trajectory, by the stage's verifier: verdicts.parquet."""
    config, folder = session.config, session.run.folder(step)
    node, limits = config.verifier_of(session.stage(step)), config.verify
    role, seen = sampler(session, step, policies)
    source = session.sources(step)[0]
    problems = problems_of(session, source)

    def work(key: str) -> dict[str, Any]:
        deal = _control_seed(session, step) if config.control == "shuffled_verdicts" else None
        place = session.run.folder(source)
        counts = grade(session, step, "verify", folder, key, problems, node, seen, role, deal=deal, source=place)
        graded = getattr(module_of(node), "GRADED", False)
        return counts | (beside_gold(session, folder, place, problems) if graded else {})

    depends = [node, version(node), limits.seconds, limits.memory_mb, config.control]
    if is_group(node):
        depends += [policy_key(config), seen[role].digest]
        depends += [*supplies_key(session, step, node, node), *key_of_roles(config, seen)]
    depends.append(session.run.made(source, "generate"))
    once(session, step, "verify", depends, ["verdicts.parquet"], work)


def make(session: Session, step: Pass, node: Target) -> None:
    """New problems from verified attempts: made.parquet.

    A problem is left out, and counted, if it is like a dev or held-out problem, or if its stated gold answer fails the
    data set's verifier.
    """
    from selfimprove.ready import failing_gold, like_heldout

    config, path = session.config, session.run.folder(step) / "made.parquet"

    def work(key: str) -> dict[str, Any]:
        dropped: Counter[str] = Counter()
        groups = effects(attempts(session, step), config.verify.outcomes, dropped)
        found: list[Problem] = []
        verifier = config.verifier_of(session.stage(step))
        for number, problem in enumerate(supplied(session, step, node, "make", "method.make", verifier)(groups)):
            if "origin" not in problem.metadata:
                raise RunError(
                    f"make: {node['_target_']} gave a problem without metadata['origin'], its trajectory's id"
                )
            problem.id, problem.split = f"{session.run.prefix(step)}/{number}", "train"
            found.append(problem)
        like = like_heldout(config, found, session.apart)
        wrong = failing_gold(config, [p for p in found if p.gold is not None and p.id not in like])
        count = store.write_records(path, [p for p in found if p.id not in like and p.id not in wrong], Problem)
        if like or wrong:
            log.info("round %s: of %d made problems %d are like a held-out one, %d have a gold answer that fails",
                     session.run.prefix(step)[1:], len(found), len(like), len(wrong))  # fmt: skip
        return {"problems": count, "dropped/overlap": len(like), "dropped/gold": len(wrong)}

    verifier = config.verifier_of(session.stage(step))
    depends = [
        node,
        config.seed,
        step.number,
        config.verify.outcomes,
        config.overlap.model_dump(),
        verdicts_key(session, step),
    ]
    depends += supplies_key(session, step, node, verifier)
    once(session, step, "make", depends, ["made.parquet"], work)


def keep(session: Session, step: Pass, node: Target) -> int:
    """The filter slot's examples: examples.parquet. Returns how many there are."""
    config = session.config
    outcomes, verifier = config.verify.outcomes, config.verifier_of(session.stage(step))

    def work(key: str) -> dict[str, Any]:
        path = session.run.folder(step) / "examples.parquet"
        dropped: Counter[str] = Counter()
        seen = effects(attempts(session, step), outcomes, dropped)
        count = store.write_records(path, supplied(session, step, node, "filter", "filter", verifier)(seen), Example)
        kept = {name for example in store.read_records(path, Example) for name in example.trajectory_ids[:1]}
        if dropped:
            said = ", ".join(f"{n} {status}" for status, n in sorted(dropped.items()))
            log.info("round %s: left out of training by verify.outcomes: %s", session.run.prefix(step)[1:], said)
        figures = {f"dropped/{status}": n for status, n in dropped.items()}
        return {"examples": count, **figures, **measure.round_metrics(attempts(session, step), kept)}

    depends = [node, config.seed, step.number, outcomes, verdicts_key(session, step)]
    depends += supplies_key(session, step, node, verifier)
    return int(once(session, step, "filter", depends, ["examples.parquet"], work)["examples"])


def remember(session: Session, step: Pass, node: Target) -> None:
    """What later passes know besides weights: memory.parquet, from the last memory and this pass's attempts."""
    config, path = session.config, session.run.folder(step) / "memory.parquet"
    verifier = config.verifier_of(session.stage(step))

    def work(key: str) -> dict[str, Any]:
        rule = supplied(session, step, node, "remember", "method.remember", verifier)
        return {"memories": store.write_records(path, rule(attempts(session, step)), Memory)}

    depends = [node, config.seed, step.number, verdicts_key(session, step), session.memories.digest]
    depends += supplies_key(session, step, node, verifier)
    once(session, step, "remember", depends, ["memory.parquet"], work)


def attempts(session: Session, step: Pass) -> Iterator[list[Attempt]]:
    """The attempts that a pass learns from, problem by problem, streamed from the run folder."""
    again = _verifies_again(session, step)
    for source in session.sources(step):
        verdicts: Path | None = session.run.folder(step) / "verdicts.parquet" if again else None
        yield from pair(session.run.folder(source), problems_of(session, source), verdicts)


def verdicts_key(session: Session, step: Pass) -> Any:
    """The hashes of the verdicts that a pass learns from."""
    if session.stage(step).of is None or _verifies_again(session, step):
        return session.run.made(step, "verify")
    return [session.run.made(source, "verify") for source in session.sources(step)]


def _verifies_again(session: Session, step: Pass) -> bool:
    """Whether a pass that learns from another pass's attempts has a verifier of its own."""
    config, stage = session.config, session.stage(step)
    return stage.of is not None and config.verifier_of(stage) != config.verifier_of(config.stages[stage.of])


def _control_seed(session: Session, step: Pass) -> int:
    from selfimprove import seeds

    return seeds.derive(session.config.seed, "control", step.number)


def _note(session: Session, step: Pass) -> None:
    """Tell the session what this pass left for later ones."""
    folder, files = session.run.folder(step), dict[str, str]()
    for phase in ("make", "filter"):
        if manifest := session.run.manifest(step, phase):
            files |= manifest["outputs"]
    session.made.add(step.stage, folder, files)
    if manifest := session.run.manifest(step, "remember"):
        session.memories.path, session.memories.digest = (
            folder / "memory.parquet",
            manifest["outputs"]["memory.parquet"],
        )
