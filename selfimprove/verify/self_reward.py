"""The base policy's own opinion as the reward. This group verifier reads no gold answer.

Three self-rewards of "Self-Improvement in Language Models: The Sharpening Mechanism" (Huang et al. 2024, arXiv
2412.01951), for responses y to a problem x:

    logprob        log pi_base(y | x), in nats
    mean_logprob   log pi_base(y | x) / |y|
    majority       the share of the problem's responses that give the same answer

The best response has status `correct`, the others `wrong`: best-of-n with the policy as its own judge.
"""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Literal

from selfimprove.policy import Engine
from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Opening, Outcome
from selfimprove.verify.consensus import consensus

Form = Literal["logprob", "mean_logprob", "majority"]


class Base:
    """The base model, opened when first needed. Samples of the base itself already have their log-probabilities."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    @cached_property
    def engine(self) -> Engine:
        from selfimprove.policy.engines import transformers
        from selfimprove.policy.models import resolve

        model, hardware = self._opening.model, self._opening.hardware
        return transformers(resolve(model.name, model.path), model, hardware, self._opening.problems)

    def close(self) -> None:
        if "engine" in self.__dict__:
            self.engine.close()


def resource(opening: Opening, *, form: Form) -> Base:
    if opens(form=form):
        opening.room()  # now, for the model is opened while requests are in flight
    return Base(opening)


def opens(*, form: Form) -> list[str]:
    """The models that `resource` puts on the device."""
    return [] if form == "majority" else ["base"]


async def self_reward(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, form: Form
) -> list[Outcome]:
    """The self-reward of each response; the best one is `correct`, the first if several are equal.

    A response cut off at the token limit is never the best, because log pi(y | x) is not that of a whole response.
    """
    if form == "majority":
        rewards = [outcome.reward for outcome in await consensus(problem, trajectories, context)]
    else:
        rewards = list(await asyncio.gather(*(log_probability(t, context) for t in trajectories)))
        if form == "mean_logprob":
            rewards = [r / t.sampled_tokens for r, t in zip(rewards, trajectories, strict=True)]
    whole = [i for i, t in enumerate(trajectories) if t.samples[-1].finish == "stop"]
    best = max(whole, key=rewards.__getitem__, default=None)
    return [Outcome("correct" if i == best else "wrong", reward) for i, reward in enumerate(rewards)]


async def log_probability(trajectory: Trajectory, context: Context) -> float:
    """log pi_base of all tokens sampled in a trajectory, in nats."""
    total = 0.0
    for sample in trajectory.samples:
        if sample.version == 0:
            total += sum(sample.logprobs)
        else:
            base = context.policy.through(context.resource.engine, "base")
            total += sum(await base.logprobs(sample.prompt_ids, sample.completion_ids))
    return total
