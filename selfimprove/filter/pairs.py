"""Preference pairs of answers to one problem, by the verdicts of a check."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from selfimprove.filter.distinct import answered
from selfimprove.types import Attempt, Count, Example


def right_and_wrong(groups: Iterable[list[Attempt]], *, per_problem: Count, seed: int) -> Iterator[Example]:
    """Up to `per_problem` pairs a problem, from shuffled correct and incorrect answers.

    A rejected answer is `wrong` or `unparseable`, since the policy is to blame for both. `timeout` and `error` say
    nothing about the answer, so such answers are in no pair. A chosen answer has to end by itself.
    """
    for attempts in groups:
        chosen = [a for a in attempts if a.verdict.status == "correct" and a.trajectory.samples[-1].finish == "stop"]
        rejected = [a for a in attempts if a.verdict.status in ("wrong", "unparseable")]
        if not chosen or not rejected:
            continue
        rng = random.Random(f"{seed}/{chosen[0].problem.id}")
        rng.shuffle(chosen)
        rng.shuffle(rejected)
        for k in range(min(per_problem, max(len(chosen), len(rejected)))):
            winner, loser = chosen[k % len(chosen)], rejected[k % len(rejected)]
            prompt_ids, chosen_ids = answered(winner.trajectory)
            yield Example(
                problem_id=winner.problem.id,
                trajectory_ids=[winner.trajectory.id, loser.trajectory.id],
                prompt_ids=prompt_ids,
                completion_ids=chosen_ids,
                rejected_ids=answered(loser.trajectory)[1],
            )
