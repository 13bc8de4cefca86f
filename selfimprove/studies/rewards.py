"""What studies of reward models share: scores by a folder's model, and a reward model that is known to be wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from selfimprove import seeds, store
from selfimprove.attempt import pair
from selfimprove.methods import upo
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Result
from selfimprove.studies.solving import ByProblem, Groups, resampled
from selfimprove.studies.staged import GRADE, pass_folder
from selfimprove.types import Attempt, Problem, Share, Trajectory
from selfimprove.verify import Context, Opening, Outcome
from selfimprove.verify.doubt import bald
from selfimprove.verify.reward_model import open_model


def opening() -> Opening:
    """What a verifier is told that is opened outside of a run."""
    model = SimpleNamespace(name="tiny", path="package", dtype="float32", trust_remote_code=False)
    return Opening(model, SimpleNamespace(device="cpu", max_batch=64), [])  # type: ignore[arg-type]


def rated(folder: str, asked: Sequence[list[int]]) -> list[float]:
    """The score of each text, by its token ids."""
    scorer = open_model(opening(), folder)

    async def everything() -> list[list[list[float]]]:
        return await asyncio.gather(*map(scorer.logits, asked))

    return [score for ((score,),) in asyncio.run(everything())]


def auroc(groups: Sequence[Sequence[tuple[float, bool]]]) -> Estimate:
    """The chance that what is wrong is doubted more than what is not, with its bootstrap over problems. A group has the
    doubt of each of a problem's pairs, and whether it is wrong; equal doubts count half."""

    def area(places: np.ndarray) -> float:
        found = [pair for place in places for pair in groups[place]]
        values, marks = np.array([d for d, _ in found]), np.array([wrong for _, wrong in found], dtype=bool)
        gap = values[marks][:, None] - values[~marks][None]
        return float(((gap > 0) + 0.5 * (gap == 0)).mean()) if gap.size else 0.5

    return resampled(area, len(groups), draws=300)


# Measures: each a value a problem, of the problems that have one


def by_problem(groups: Groups, measure: Callable[[list[Attempt]], float | None]) -> ByProblem:
    found = {group[0].problem.id: measure(group) for group in groups}
    return {name: value for name, value in found.items() if value is not None}


def over(measure: Callable[..., ByProblem], groups: Sequence[Groups], *scores: Any) -> list[ByProblem]:
    """A measure seed by seed; what is no list of scores is the same for all seeds."""
    return [
        measure(found, *(score[i] if isinstance(score, list) else score for score in scores))
        for i, found in enumerate(groups)
    ]


def pooled(runs: Sequence[ByProblem]) -> list[ByProblem]:
    """All seeds as one: not every problem has a value in each of them."""
    return [{f"{i}/{name}": value for i, found in enumerate(runs) for name, value in found.items()}]


# Pairs of `upo`'s last stage


def pairs_of(result: Result) -> list[Attempt]:
    """The pairs of a run, each an attempt of two samples, of which the reward model preferred the first."""
    folder = pass_folder(result, "prefer")
    problems = list(store.read_records(folder / "problems.parquet", Problem))
    return [a for group in pair(folder, problems) for a in group if a.verdict.status != "error"]


def flat(pairs: Sequence[Sequence[Attempt]]) -> list[Attempt]:
    return [attempt for found in pairs for attempt in found]


def is_reversed(attempt: Attempt) -> bool:
    """Whether the first answer, which the reward model preferred, is wrong. The other one is right then."""
    return GRADE(attempt.trajectory.samples[0].text, attempt.problem).status != "correct"


def vote(attempt: Attempt) -> bool:
    return attempt.verdict.status == "correct"


def p_of(attempt: Attempt) -> list[float]:
    return attempt.verdict.step_rewards or []


def doubt(attempt: Attempt) -> float:
    return (not vote(attempt)) + bald(p_of(attempt))


def grouped(found: Sequence[Attempt]) -> list[list[Attempt]]:
    return [list(group) for _, group in itertools.groupby(found, key=lambda attempt: attempt.problem.id)]


# A group verifier: `upo.verify`, with the data set's check for a reward model


def resource(opening: Opening, **options: Any) -> Any:
    return SimpleNamespace(reward=None, estimator=open_model(opening, opening.paths["estimator"]))


async def corrupted(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, passes: int, words: str, share: Share
) -> list[Outcome]:
    """The check is reversed on a share of the problems."""
    if any(len(t.samples) > 1 for t in trajectories):
        return await upo.verify(problem, trajectories, context, passes=passes, words=words)
    wrong = seeds.derive(context.policy.seed, "reversed", problem.id) % 1000 < 1000 * share
    found = [await context.check(t.text, problem) for t in trajectories]
    return [replace(o, reward=-o.reward if wrong else o.reward) for o in found]
