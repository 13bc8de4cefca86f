"""Iterative DPO: pair the policy's correct answers with its incorrect ones, prefer, repeat.

Iterative Reasoning Preference Optimization (Pang et al. 2024, arXiv 2404.19733): each round trains on pairs of its own
answers against the policy that gave them, by DPO (Rafailov et al. 2023, arXiv 2305.18290) with an NLL term.

    generate   y_1..y_n ~ pi_v(. | x)
    verify     correct or not, by the data set's verifier
    filter     (y_w, y_l): y_w correct, y_l not, K pairs a problem, no answer used twice where that can be
    train      L = -log sigmoid(beta [log pi/pi_v (y_w|x) - log pi/pi_v (y_l|x)]) - alpha log pi(y_w|x) / |y_w|

*Wrong when* few problems have answers of both kinds: the others make no pair. It harms at a learning rate at which the
probability of the chosen answers falls along with that of the rejected ones, which the NLL term is there to prevent.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from selfimprove.filter.distinct import answered
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.dpo import dpo
from selfimprove.types import Attempt, Count, Example

generate, train = best_of_n, dpo


def pairs(groups: Iterable[list[Attempt]], *, per_problem: Count, seed: int) -> Iterator[Example]:
    """Up to `per_problem` pairs a problem, from shuffled correct and incorrect answers.

    A rejected answer is `wrong` or `unparseable`: the policy is to blame for both. `timeout` and `error` say nothing
    about the answer, so such answers are in no pair. A chosen answer ended by itself.
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
