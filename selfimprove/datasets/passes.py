"""Rules that choose the problems of a pass, for a stage's `problems`."""

from __future__ import annotations

import random
from typing import Literal

from selfimprove.made import Made
from selfimprove.plan import Pass
from selfimprove.types import Count, Problem, Share


def part(problems: list[Problem], *, step: Pass) -> list[Problem]:
    """The pass's part of the training problems. A round's parts cover all of them. This is a stage's default."""
    return problems[step.part * len(problems) // step.parts : (step.part + 1) * len(problems) // step.parts]


def drawn(problems: list[Problem], *, seed: int, count: Count) -> list[Problem]:
    """`count` random training problems without replacement, in the order of the data set; all if there are no more."""
    chosen = sorted(random.Random(seed).sample(range(len(problems)), min(count, len(problems))))
    return [problems[i] for i in chosen]


def made_by(
    problems: list[Problem], *, step: Pass, seed: int, made: Made, stage: str, count: Count | None = None
) -> list[Problem]:
    """The problems that the last pass of `stage` made: this pass's part of them, or `count` of them at random."""
    new = made.problems(stage)
    return part(new, step=step) if count is None else drawn(new, seed=seed, count=count)


def fold(
    problems: list[Problem], *, step: Pass, folds: Count, held: bool = False, by: Literal["part", "round"] = "part"
) -> list[Problem]:
    """All training problems but those of one fold; with `held`, only those.

    The fold is the pass's part modulo `folds`, or its round.
    """
    k = (step.part if by == "part" else step.round) % folds
    return [problem for i, problem in enumerate(problems) if (i % folds == k) == held]


def task(problems: list[Problem], *, step: Pass, before: bool = False) -> list[Problem]:
    """The training problems of this round's task in a stream, by `metadata["task"]`. With `before`, also those of all
    earlier tasks."""
    wanted = range(step.round + 1) if before else (step.round,)
    return part([problem for problem in problems if problem.metadata.get("task") in wanted], step=step)


def fresh(problems: list[Problem], *, step: Pass, between: tuple[Share, Share] = (0.0, 1.0)) -> list[Problem]:
    """New problems in every pass: the training problems between two shares, in equal parts over all passes of the
    stage in a run. Stages with shares that do not overlap have no problem in common."""
    low, high = (round(share * len(problems)) for share in between)
    own = problems[low:high]
    return own[step.turn * len(own) // step.turns : (step.turn + 1) * len(own) // step.turns]


def made_later(
    problems: list[Problem], *, step: Pass, made: Made, stage: str, between: tuple[Share, Share] = (0.0, 1.0)
) -> list[Problem]:
    """In the first round the training problems between two shares, later those that the last pass of `stage` made."""
    if step.round:
        return part(made.problems(stage), step=step)
    low, high = (round(share * len(problems)) for share in between)
    return part(problems[low:high], step=step)
