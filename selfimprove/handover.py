"""Gives trained weights to the sampler, and checks that they arrived.

A sampler that keeps all or some of its old weights raises no error, but answers like another policy. So trainer and
sampler both give the log-probabilities of the same few answers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from selfimprove import store
from selfimprove.errors import RunError
from selfimprove.phase import once
from selfimprove.plan import Pass
from selfimprove.policy import Policy
from selfimprove.schema import Config
from selfimprove.session import Policies, Session
from selfimprove.train.probed import HANDOVER, Answer


def hand_over(session: Session, step: Pass, policies: Policies) -> None:
    """Load what a pass trained into the sampler, and compare.

    Figures, in nats a token: `gap` and `gap_max` are between sampler and trainer, and `moved` is between the trainer
    before and after training. Raises RunError if the mean gap is above `handover.tolerance`, or if the sampler is
    nearer to the old weights by more than rounding. A policy that scores no answers (tables, flows) is not asked.
    """
    file, role = session.run.folder(step) / "policy" / HANDOVER, session.stage(step).role
    if role is None or not file.exists() or not store.read_json(file)["answers"]:
        return
    options = session.config.handover
    tolerance = options.tolerance if options.tolerance is not None else _tolerance(session.config)

    async def scored(policy: Policy, asked: list[Answer]) -> list[list[float]]:
        return await asyncio.gather(*(policy.logprobs(prompt, completion) for prompt, completion in asked))

    def work(key: str) -> dict[str, Any]:
        said = store.read_json(file)
        asked = [(prompt, completion) for prompt, completion in said["answers"]]
        before, after = (np.concatenate(said[when]) for when in ("before", "after"))
        policy = session.policy(policies, role, "handover", step.number)
        found = np.concatenate(session.wait(scored(policy, asked)))
        gap, stale = np.abs(found - after), float(np.abs(found - before).mean())
        moved, mean = float(np.abs(after - before).mean()), float(gap.mean())
        figures = {"gap": mean, "gap_max": float(gap.max()), "moved": moved, "tokens/scored": len(found)}
        if not mean <= tolerance or (stale < mean and moved > 2 * stale):
            raise RunError(
                f"handover: after round {session.run.prefix(step)[1:]} engine={session.config.engine['name']} does "
                f"not have the weights that were trained: its log-probabilities are {mean:.2g} nats a token from the "
                f"trainer's (handover.tolerance={tolerance}) and {stale:.2g} from those before training, which moved "
                f"them by {moved:.2g}"
            )
        return figures

    made = session.run.made(step, "train")
    once(session, step, "handover", [made, policies[role].digest, options.model_dump(), tolerance], [], work)


def _tolerance(config: Config) -> float:
    """The mean gap that rounding can make, in nats a token."""
    if config.model.lora and config.model.lora.quantize:
        return 0.5  # the trainer's base has 4 bits a weight, the sampler's has all
    return 0.001 if config.model.dtype == "float32" else 0.1
