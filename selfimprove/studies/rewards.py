"""What studies of reward models share: scores by a folder's model, and a reward model that is known to be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from selfimprove import seeds
from selfimprove.methods import upo
from selfimprove.report.statistics import Estimate
from selfimprove.types import Problem, Share, Trajectory
from selfimprove.verify import Context, Opening, Outcome
from selfimprove.verify.reward_model import open_model


def rated(folder: str, asked: Sequence[list[int]]) -> list[float]:
    """The score of each text, by its token ids."""
    model = SimpleNamespace(name="tiny", path="package", dtype="float32", trust_remote_code=False)
    scorer = open_model(Opening(model, SimpleNamespace(device="cpu", max_batch=64), []), folder)  # type: ignore[arg-type]

    async def everything() -> list[list[list[float]]]:
        return await asyncio.gather(*map(scorer.logits, asked))

    return [score for ((score,),) in asyncio.run(everything())]


def auroc(groups: Sequence[Sequence[tuple[float, bool]]]) -> Estimate:
    """The chance that what is wrong is doubted more than what is not, with its bootstrap over problems. A group has the
    doubt of each of a problem's pairs, and whether it is wrong; equal doubts count half."""

    def area(found: Sequence[tuple[float, bool]]) -> float:
        values, marks = np.array([d for d, _ in found]), np.array([wrong for _, wrong in found], dtype=bool)
        gap = values[marks][:, None] - values[~marks][None]
        return float(((gap > 0) + 0.5 * (gap == 0)).mean()) if gap.size else 0.5

    rng, n = np.random.default_rng(0), len(groups)
    drawn = [area([pair for i in rng.integers(n, size=n) for pair in groups[i]]) for _ in range(300)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(area([pair for group in groups for pair in group]), float(low), float(high), n)


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
