"""The train phase: the learner's new weights from a pass's examples, in policy/."""

from __future__ import annotations

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


def train(session: Session, step: Pass, policies: Policies, node: Target) -> Weights:
    """The train slot's update of the stage's learner on the pass's examples: policy/."""
    config, stage, folder = session.config, session.stage(step), session.run.folder(step)
    role = stage.role
    assert role is not None
    model = config.model_of(role)
    lora = model.lora.model_dump() if model.lora else None
    start = policies[role] if stage.start == "last" else session.base[role]
    verifier = config.verifier_of(stage)

    def work(key: str) -> dict[str, Any]:
        return _work(session, step, node, role, start, key)

    made = session.run.made(step, "filter")
    depends: list[Any] = [node, lora, model.dtype, config.seed, start.digest, session.base[role].digest, made]
    depends.append([step.turn, step.turns])
    depends += [["pass", step.number]] if step.stage else []
    depends += supplies_key(session, step, node, verifier)
    once(session, step, "train", depends, ["policy"], work)
    return Weights(str(folder / "policy"), step.number + 1, session.run.made(step, "train")["policy"])


def _work(session: Session, step: Pass, node: Target, role: str, start: Weights, key: str) -> dict[str, Any]:
    from selfimprove.train import TrainContext, launch, unfinished

    config, folder, model = session.config, session.run.folder(step), session.config.model_of(role)
    how = config.hardware.training
    own = how.own_process or how.processes > 1
    session.rest()
    session.restore(start)
    examples, parts = folder / "examples.parquet", None
    if own or how.checkpoint_steps:  # removed when the phase is done, as other parts are
        same = [key, how.model_dump(), config.hardware.micro_batch]
        parts = unfinished(folder / "policy.parts", store.digest(same))
    before = steps_before(session, step)
    with (
        store.new_folder(folder / "policy") as out,
        show(session, step, "train", store.count_records(examples), "examples") as progress,
    ):

        def log_step(record: dict[str, float]) -> None:
            session.run.log({**session.run.where(step), "phase": "train", **record})
            session.log_step(step.round, record | {"step": record["step"] + before})
            progress.set(record["progress"])

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
        )
        if own:
            return launch.train(node, examples, context)
        update = supplied(session, step, node, "train", "train", config.verifier_of(session.stage(step)))
        return update(list(store.read_records(examples, Example)), context)  # type: ignore[no-any-return]


def steps_before(session: Session, step: Pass) -> int:
    """Optimizer steps of the passes of this round before this one."""
    earlier = [p for p in session.passes[: step.number] if p.round == step.round]
    found = [session.run.manifest(p, "train") for p in earlier]
    return sum(int(manifest["metrics"]["steps"]) for manifest in found if manifest)


_PROBE_TOKENS = 32  # of an answer


def _probe(session: Session, step: Pass, role: str) -> list[tuple[list[int], list[int]]]:
    """What sampler and trainer are both asked about (`selfimprove.handover`): the first tokens of the base policy's
    answers to a few held-out problems; of another role, of its own answers in this pass. Nothing learns from them."""
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
