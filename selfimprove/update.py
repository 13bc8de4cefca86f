"""The train phase: the learner's new weights from a pass's examples, in policy/."""

from __future__ import annotations

import logging
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from selfimprove import seeds, store
from selfimprove.binding import Target
from selfimprove.phase import once
from selfimprove.phase import progress as show
from selfimprove.plan import BASE, Pass
from selfimprove.session import Policies, Session, Weights
from selfimprove.supplies import key as supplies_key
from selfimprove.supplies import supplied
from selfimprove.types import Example, Trajectory

log = logging.getLogger("selfimprove")


def train(session: Session, step: Pass, policies: Policies, node: Target) -> Weights:
    """Train the stage's learner on the pass's examples by the train slot: policy/, and with `carry` state/."""
    config, stage, folder = session.config, session.stage(step), session.run.folder(step)
    role = stage.role
    assert role is not None
    model = config.model_of(role)
    lora = model.lora.model_dump() if model.lora else None
    start = policies[role] if stage.start == "last" else _start(session, step)
    last = _trained(session, policies[role] if stage.start == "base" else start)
    verifier = config.verifier_of(stage)

    def work(key: str) -> dict[str, Any]:
        return _work(session, step, node, start, key)

    made = session.run.made(step, "filter")
    depends: list[Any] = [node, lora, model.dtype, config.seed, start.digest, session.base[role].digest, made]
    depends.append([step.turn, step.turns])
    depends += [["pass", step.number]] if step.stage else []
    depends += [["state", last and session.run.made(last, "train").get("state")]] if node.get("carry") else []
    depends += supplies_key(session, step, node, verifier)
    once(session, step, "train", depends, ["policy", *["state"] * bool(node.get("carry"))], work)
    if last and not _stays(session, last):
        session.run.let_go(last, "train")
    return Weights(str(folder / "policy"), step.number + 1, session.run.made(step, "train")["policy"])


def _trained(session: Session, weights: Weights) -> Pass | None:
    """The pass that trained these weights. None if they are a base model's."""
    return session.passes[weights.version - 1] if weights.version else None


def _stays(session: Session, step: Pass) -> bool:
    """Whether a pass's policy stays on disk when the next one is trained, by `keep`."""
    keep = session.stage(step).keep
    return keep is None or (step.turn + 1) % keep == 0


def restore(session: Session, weights: Weights) -> None:
    """Make a policy's folder again that was not kept or is damaged.

    Training starts from the last complete policy and uses the examples of each pass since. Nothing is sampled. On a CPU
    the result has the same bytes as before.
    """
    chain: list[tuple[Pass, Weights]] = []
    step = _trained(session, weights)
    while step is not None and not session.run.whole(step, "train"):
        chain.append((step, _start(session, step)))
        step = _trained(session, chain[-1][1])
    for number, (step, start) in enumerate(reversed(chain)):
        manifest = session.run.manifest(step, "train")
        node = session.stage(step).train
        assert manifest is not None
        assert node is not None
        adapted = session.run.manifest(step, "adapt")
        node = node | (adapted["metrics"]["overrides"].get("train", {}) if adapted else {})
        log.info("round %s: its policy is made again from its examples", session.run.prefix(step)[1:])
        _work(session, step, node, start, manifest["key"], again=True)
        if any(store.file_digest(session.run.folder(step) / n) != h for n, h in manifest["outputs"].items()):
            log.warning("round %s: the policy made again differs from the first by rounding", step.label)
        if number:  # the one before was only needed for this one
            before = _trained(session, start)
            assert before is not None
            session.run.let_go(before, "train")


def _start(session: Session, step: Pass) -> Weights:
    """The policy that a pass's training starts from.

    It is the role's base, or what the newest pass before it trained: of the stage that `start` names, or of any.
    """
    stage = session.stage(step)
    assert stage.role is not None
    for earlier in reversed(session.passes[: step.number]) if stage.start != "base" else ():
        fits = session.stage(earlier).role == stage.role and stage.start in ("last", earlier.stage)
        if fits and session.run.manifest(earlier, "train"):
            path = session.run.folder(earlier) / "policy"
            return Weights(str(path), earlier.number + 1, session.run.made(earlier, "train")["policy"])
    return session.base[stage.role]


def _work(session: Session, step: Pass, node: Target, start: Weights, key: str, again: bool = False) -> dict[str, Any]:
    """Train. `again`: the phase was done before, so its steps are not logged."""
    from selfimprove.train import TrainContext, launch, unfinished

    config, folder, role = session.config, session.run.folder(step), session.stage(step).role
    assert role is not None
    how, model = config.training_of(role), config.model_of(role)
    own = how.own_process or how.processes > 1
    session.rest()
    session.restore(start)
    examples, parts = folder / "examples.parquet", None
    if own or how.checkpoint_steps or how.checkpoint_minutes:  # removed when the phase is done, as other parts are
        same = [key, how.model_dump(), config.hardware.micro_batch]
        parts = unfinished(folder / "policy.parts", store.digest(same))
    held = None if own or config.hardware.sleep else session.held
    how_trained = [node, role, model.model_dump()]
    if held:
        held.only(start.path, how_trained)
    before, last = steps_before(session, step), _trained(session, start)
    carry = bool(node.get("carry"))
    with (
        store.new_folder(folder / "state") if carry else nullcontext() as state,
        store.new_folder(folder / "policy") as out,
        show(session, step, "train", store.count_records(examples), "examples") as progress,
    ):

        def log_step(record: dict[str, float]) -> None:
            progress.set(record["progress"])
            if not again:
                session.run.log({**session.run.where(step), "phase": "train", **record})
                session.log_step(step.round, record | {"step": record["step"] + before})

        context = TrainContext(
            start=start.path,
            base=session.base[role].path,
            out=out,
            seed=seeds.derive(config.seed, "train", step.number) % 2**31,
            device=config.hardware.device,
            dtype=model.dtype,
            micro_batch=config.hardware.micro_batch,
            gradient_checkpointing=config.hardware.gradient_checkpointing,
            lora=model.lora.model_dump() if model.lora else None,
            log=log_step,
            probe=_probe(session, step, role),
            round=step.turn,
            rounds=step.turns,
            training=how,
            parts=parts,
            state=state,
            last_state=session.run.folder(last) / "state" if carry and last and _carries(session, last) else None,
            held=held,
        )
        if own:
            stays = carry and how.processes > 1 and not config.hardware.sleep
            result = launch.train(node, examples, context, session.workers if stays else None)
        else:
            update = supplied(session, step, node, "train", "train", config.verifier_of(session.stage(step)))
            result = update(list(store.read_records(examples, Example)), context)
    if held:  # now the policy is in its place
        held.path, held.node = str(folder / "policy"), how_trained
    if again and parts:
        shutil.rmtree(parts, ignore_errors=True)
    return result


def _carries(session: Session, step: Pass) -> bool:
    return "state" in session.run.made(step, "train")


def steps_before(session: Session, step: Pass) -> int:
    """Optimizer steps of the passes of this round before this one."""
    earlier = [p for p in session.passes[: step.number] if p.round == step.round]
    found = [session.run.manifest(p, "train") for p in earlier]
    return sum(int(manifest["metrics"]["steps"]) for manifest in found if manifest)


_PROBE_TOKENS = 32  # of an answer


def _probe(session: Session, step: Pass, role: str) -> list[tuple[list[int], list[int]]]:
    """Answers whose log-probabilities sampler and trainer both give (`selfimprove.handover`). Nothing learns from them.

    They are the first tokens of the base policy's answers to a few held-out problems. For another role they come from
    its own answers in this pass.
    """
    config = session.config
    if "logprobs" not in config.engine["gives"] or config.roles[role].kind != "causal":
        return []
    source = session.sources(step)[0]
    folder: Path = session.run.folder(BASE) / "evaluation" if role == "policy" else session.run.folder(source)
    found: dict[str, tuple[list[int], list[int]]] = {}
    path = folder / "trajectories.parquet"
    for trajectory in store.read_records(path, Trajectory) if path.exists() else ():
        sample = next((s for s in trajectory.samples if s.role == role), None)
        if sample and sample.completion_ids:
            found.setdefault(trajectory.problem_id, (sample.prompt_ids, sample.completion_ids[:_PROBE_TOKENS]))
        if len(found) == config.handover.answers:
            break
    return list(found.values())
