"""Deep Self-Evolving Reasoning: chains of verify and refine that go on whatever the verdict, and a vote at the end.

Deep Self-Evolving Reasoning (Liu, Zheng, Wen et al. 2025, arXiv 2510.17498).

    generate   K chains in parallel: s_0 ~ pi(. | x), then N times
                   v_n ~ pi(. | verify(x, s_{n-1})),   s_n ~ pi(. | refine(x, s_{n-1}, v_n))
               Only the last solution is carried; no chain stops early, and no refinement is turned down
    answer     the majority over all chains of the last iterations (conf/method/dser.yaml)

Let p_IC be the probability that an iteration makes a wrong solution right, and p_CI that it makes a right one wrong. A
chain is then a Markov chain over {C, I}. Wherever it starts, it is right with probability p_IC / (p_IC + p_CI) in the
end. Many chains outvote the rest where that is more than a half: where p_IC > p_CI.

*Wrong when* p_IC < p_CI: the policy then spoils more solutions than it mends, and the vote ends below a plain one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from selfimprove.generate.critique import Critique, after_reasoning, fill, verdict
from selfimprove.policy import Policy
from selfimprove.types import Attempt, Count, NonNegative, Problem, Sample, Samples, Trajectory
from selfimprove.verify.answers import stage


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    critique: Critique,
    chains: Samples,
    iterations: Count,
    temperature: NonNegative,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The solution of every chain after every iteration, iteration by iteration. The drafts are `stage` 0.

    A trajectory holds its chain's draft, the solution that was refined (where that is not the draft), its review, and
    the new solution. `verified` is the review's verdict on the solution before; it has no effect. `max_tokens` limits
    each solution and review; None: the policy's limit. Raises ValueError if a prompt does not fit the model's
    window.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}

    async def evolve(chain: int, draft: Sample) -> list[Trajectory]:
        alone = policy.for_problem(problem, "chain", chain)  # its samples do not depend on how fast the others are
        path = [Trajectory(problem.id, [draft], {"stage": 0, "chain": chain})]
        last = draft  # s_{n-1}
        for n in range(1, iterations + 1):
            solution = after_reasoning(last.text)
            (review,) = await alone.sample(fill(critique.verify, problem, solution), **sampling)  # v_n
            request = fill(critique.refine, problem, solution, review=after_reasoning(review.text))
            (new,) = await alone.sample(request, **sampling)  # s_n
            verified = verdict(after_reasoning(review.text), critique.correct, critique.incorrect)
            steps = [draft, review, new] if last is draft else [draft, last, review, new]
            path.append(Trajectory(problem.id, steps, {"stage": n, "chain": chain, "verified": verified}))
            last = new
        return path

    drafts = await policy.sample(problem.prompt, chains, **sampling)
    paths = await asyncio.gather(*itertools.starmap(evolve, enumerate(drafts)))
    return [trajectory for iteration in zip(*paths, strict=True) for trajectory in iteration]


# What the theory says


def stationary(p_ic: float, p_ci: float) -> float:
    """pi_C = p_IC / (p_IC + p_CI): the share of right solutions that a chain tends to.

    Raises ValueError if nothing ever changes.
    """
    if not p_ic + p_ci:
        raise ValueError("p_IC = p_CI = 0: a chain stays what it was")
    return p_ic / (p_ic + p_ci)


def right_after(n: int, start: float, p_ic: float, p_ci: float) -> float:
    """P_n(C) = pi_C + (P_0(C) - pi_C) (1 - p_IC - p_CI)^n."""
    limit = stationary(p_ic, p_ci)
    return limit + (start - limit) * (1 - p_ic - p_ci) ** n


def vote_right(p: float, voters: int) -> float:
    """The probability that the majority of `voters` independent chains is right, each with probability p.

    All wrong chains give the same answer. Of a tie, the answer that came first counts.
    """
    ways = [math.comb(voters, k) * p**k * (1 - p) ** (voters - k) for k in range(voters + 1)]
    tie = ways[voters // 2] / 2 if voters % 2 == 0 else 0.0
    return math.fsum(ways[voters // 2 + 1 :]) + tie


# What is measured, of each problem's attempts with verdicts


def solutions_of(groups: Sequence[Sequence[Attempt]], chains: int) -> np.ndarray:
    """Which solutions are right, (problems, stages, chains)."""
    right = [[attempt.verdict.status == "correct" for attempt in group] for group in groups]
    return np.array(right).reshape(len(groups), -1, chains)


def stopped(groups: Sequence[Sequence[Attempt]], chains: int) -> np.ndarray:
    """Whether each chain ends right, (problems, chains), if it stops at the first solution that it verified.

    A review is of the solution before it and changes nothing in what the chain does next. So the chain that stops is
    this one, cut.
    """
    solutions = solutions_of(groups, chains)
    yes = np.array([[a.trajectory.metadata.get("verified") is True for a in group] for group in groups])
    yes = yes.reshape(len(groups), -1, chains)[:, 1:]  # of the solution at stages 0, 1, ...
    end = np.where(yes.any(axis=1), yes.argmax(axis=1), solutions.shape[1] - 1)
    return np.take_along_axis(solutions, end[:, None], axis=1)[:, 0]


def review_rates(groups: Sequence[Sequence[Attempt]]) -> tuple[float, float]:
    """(false, true) positive rates of the reviews, over all iterations; an unreadable review passes nothing."""
    passed: dict[bool, list[bool]] = {False: [], True: []}
    for group in groups:
        known = {(a.trajectory.metadata["chain"], stage(a)): a.verdict.status == "correct" for a in group}
        for a in group:
            if n := stage(a):
                was = known[a.trajectory.metadata["chain"], n - 1]
                passed[was].append(a.trajectory.metadata["verified"] is True)
    return float(np.mean(passed[False])), float(np.mean(passed[True]))
