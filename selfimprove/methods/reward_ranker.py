"""RewardRanker: a reward model learns from the programs that fooled it, and picks the best of several in the end.

Iterative Self-Training for Code Generation via Reinforced Re-Ranking (Sorokin et al. 2025, arXiv 2504.09643).

    rank       in the first round: y_1..y_n ~ pi_0(. | x) of the SFT policy, judged by unit tests;
               r by  L = -log sigmoid(r(x, y+) - r(x, y-))  on pairs of a right and a wrong program
    rl         from pi_0 again:  pi = argmax  E r(x, y) - beta KL(pi | pi_0)
    mine       y_1..y_n ~ pi(. | x), judged by unit tests and by r; hard negatives are programs that fail, with r above
               the median r of those that pass. Pairs (y+, hard y-) join the earlier ones, and r is trained again on all
    answer     y_1..y_N ~ pi(. | x); the one of highest r

The next round goes on with rl. What of this is the paper's and what is our own choice is said in
docs/methods/reward_ranker.md.

*Wrong when* few programs that fail score high: there is then nothing to mine. It harms where the tests pass wrong
programs, because these are positives, and where the policy moves so far under r that all it writes is odd.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Literal

from selfimprove.filter.advantages import advantages
from selfimprove.filter.distinct import answered
from selfimprove.filter.pairs import right_and_wrong
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.made import Made
from selfimprove.policy import Policy
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.reward import reward
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify import Context, Outcome, RewardModel

generate, pairs, rank = best_of_n, right_and_wrong, reward
group_relative, train = advantages, policy_gradient


async def tested(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, scorers: Mapping[str, RewardModel], role: str
) -> list[Outcome]:
    """Of each program what the data set's own check says of it, with r as the reward."""

    async def one(trajectory: Trajectory) -> Outcome:
        checked = await context.check(trajectory.text, problem)
        try:
            (score,) = await rated([trajectory.samples[-1]], scorers[role], context.policy, role)
        except ValueError as error:
            return Outcome("error", 0.0, reason=f"reward model: {error}")
        return Outcome(checked.status, score, checked.extracted, reason=checked.reason)

    return await asyncio.gather(*map(one, trajectories))


async def rated(samples: Sequence[Sample], scorer: RewardModel, policy: Policy, role: str) -> list[float]:
    """r of each sample. Raises ValueError for one that is longer than the reward model can read."""
    asked = [[*sample.prompt_ids, *sample.completion_ids] for sample in samples]
    rows = await asyncio.gather(*map(scorer.logits, asked))
    policy.meter.count(role, calls=len(asked), prompt=0, scored=sum(map(len, asked)))
    return [score for ((score,),) in rows]


def enlarged(
    groups: Iterable[list[Attempt]],
    *,
    per_problem: Count,
    negatives: Literal["hard", "any"] = "hard",
    stages: Sequence[str] = ("rank", "mine"),
    made: Made,
    seed: int,
) -> Iterator[Example]:
    """The pairs of earlier passes of `stages`, then up to `per_problem` new ones a problem, of a right program and a
    hard negative.

    With `negatives: any` there are as many new pairs of each problem, and any program that fails may be the negative.
    """
    known = {tuple(example.trajectory_ids): example for stage in stages for example in made.examples(stage)}
    yield from known.values()
    kept = [group for group in groups if any(passes(a) for a in group)]
    limit = median([a.verdict.reward for group in kept for a in group if passes(a)]) if kept else 0.0
    for group in kept:
        right, wrong = [a for a in group if passes(a)], [a for a in group if fails(a)]
        hard = [a for a in wrong if a.verdict.reward > limit]
        rng = random.Random(f"{seed}/{group[0].problem.id}")
        rng.shuffle(right)
        chosen = rng.sample(hard if negatives == "hard" else wrong, len(hard))
        for k, loser in enumerate(distinct(chosen)[:per_problem]):
            yield pair(right[k % len(right)], loser, hard=loser.verdict.reward > limit)


def passes(attempt: Attempt) -> bool:
    return attempt.verdict.status == "correct" and attempt.trajectory.samples[-1].finish == "stop"


def fails(attempt: Attempt) -> bool:
    return attempt.verdict.status in ("wrong", "unparseable")


def distinct(found: Sequence[Attempt]) -> list[Attempt]:
    return list({tuple(a.trajectory.samples[-1].completion_ids): a for a in found}.values())


def pair(winner: Attempt, loser: Attempt, hard: bool) -> Example:
    prompt_ids, chosen_ids = answered(winner.trajectory)
    return Example(
        winner.problem.id,
        [winner.trajectory.id, loser.trajectory.id],
        prompt_ids,
        chosen_ids,
        rejected_ids=answered(loser.trajectory)[1],
        metadata={"hard": hard},
    )


async def rerank(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    scorers: Mapping[str, RewardModel],
    role: str = "reward",
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n programs for a held-out problem, each with r in metadata["score"]; without one where no reward model is trained
    yet."""
    found = await policy.sample(problem.prompt, n, temperature=temperature, max_tokens=max_tokens)
    if role not in scorers:
        return [Trajectory(problem.id, [sample]) for sample in found]
    scores = await rated(found, scorers[role], policy, role)
    return [Trajectory(problem.id, [s], {"score": score}) for s, score in zip(found, scores, strict=True)]


def top(group: Sequence[Attempt]) -> int | None:
    """The program of highest r, the first of equals; without scores the first one."""
    return max(range(len(group)), key=lambda i: (group[i].trajectory.metadata.get("score", 0.0), -i), default=None)
