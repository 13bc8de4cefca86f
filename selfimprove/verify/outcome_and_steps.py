"""Two reward models as one: how right the answer seems, and how right each step (MAgICoRe, arXiv 2409.12147).

    w = o + prod(step scores)

o is the outcome reward model's score of a solution, in (0, 1). Each of the two is a group verifier of its own, for
instance `reward_model`, `steps`, or one of `noisy`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from selfimprove import config as configuration
from selfimprove.binding import Target, bind, is_group, module_of, options_of
from selfimprove.errors import ConfigError
from selfimprove.types import NonNegative, Problem, Trajectory
from selfimprove.verify import Context, Opening, Outcome
from selfimprove.verify.consensus import answer

if TYPE_CHECKING:
    from selfimprove.schema import Config


class Part:
    """One of the two verifiers, with its options, and what it opened."""

    def __init__(self, node: Target, where: str, opening: Opening) -> None:
        own = getattr(module_of(node), "resource", None)
        self.verify = bind(node, where)
        self.opened: Any = own(opening, **options_of(node)) if own else None

    async def __call__(self, problem: Problem, trajectories: list[Trajectory], context: Context) -> list[Outcome]:
        own = Context(context.policy, context.check, self.opened)
        return list(await self.verify(problem, trajectories, own))


@dataclass(frozen=True)
class Models:
    """Both, open."""

    outcome: Part
    steps: Part

    def close(self) -> None:
        for opened in (self.outcome.opened, self.steps.opened):
            if opened is not None and hasattr(opened, "close"):
                opened.close()


def resource(opening: Opening, *, outcome: Target, steps: Target, **options: Any) -> Models:
    """The two models, open. Raises ConfigError as their own modules do."""
    return Models(Part(outcome, "verifier.outcome", opening), Part(steps, "verifier.steps", opening))


def require(*, outcome: Target, steps: Target, **options: Any) -> None:
    """Raises ConfigError if one of the two lacks what it needs."""
    for node in (outcome, steps):
        if own := getattr(module_of(node), "require", None):
            own(**options_of(node))


def require_stage(config: Config, verifier: Target, where: str) -> None:
    """Raises ConfigError unless both are group verifiers with options that fit."""
    for name in ("outcome", "steps"):
        node, label = verifier[name], f"{where}.{name}"
        bind(node, label)
        if not is_group(node):
            raise ConfigError(f"{label}._target_={node['_target_']}: is no verifier of a reward model", label)
        if own := getattr(module_of(node), "require_stage", None):
            own(config, node, label)


def reads_gold(*, outcome: Target, steps: Target, **options: Any) -> bool:
    """Whether one of the two compares with gold answers."""
    return any(map(configuration.reads_gold, (outcome, steps)))


async def verify(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    outcome: Target,
    steps: Target,
    threshold: NonNegative = 1.0,
) -> list[Outcome]:
    """w as the reward, `correct` from `threshold` on, with the scores of the steps, and the answer that is read.

    The product of the step scores counts 0 if a solution states no answer, as in the released code. What one of the
    two models cannot read is an `error`.
    """
    models: Models = context.resource
    o, s = await asyncio.gather(
        models.outcome(problem, trajectories, context), models.steps(problem, trajectories, context)
    )
    read = await asyncio.gather(*(answer(problem, t.text, context) for t in trajectories))

    def together(mine: Outcome, step: Outcome, said: str | None) -> Outcome:
        for failed in (mine, step):
            if failed.status in ("timeout", "error"):
                return failed
        w = mine.reward + product(step.step_rewards, said)
        return Outcome("correct" if w >= threshold else "wrong", w, said, step.step_rewards)

    return [together(*three) for three in zip(o, s, read, strict=True)]


def product(scores: Sequence[float] | None, answer: str | None) -> float:
    """prod(step scores), 0 without an answer or a step."""
    return math.prod(scores) if scores and answer is not None else 0.0
