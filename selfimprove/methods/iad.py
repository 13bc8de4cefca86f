"""Iterative Agent Decoding: sample, score, show the best and the worst so far, sample again.

Review, Refine, Repeat (Chakraborty et al. 2025, arXiv 2504.01931).

    for t = 1 .. T
        y_1 .. y_n ~ pi(. | x, f)       f: nothing at first, then the best and the worst so far, with their scores
        r_i = R(x, y_i)                 the verifier
        best so far                     replaced only by a candidate of a higher score
    answer: the best so far

Nothing is trained. Best-of-(n T) by the same verifier is the same without f. The method is for graded rewards: with
rewards of 0 or 1, all that is shown before the task is solved has 0.

*Wrong when* an answer does not get better for being shown the best so far: then best-of-(n T) finds as much for fewer
tokens. A verifier whose scores are noisy also picks wrong answers, here as in best-of-(n T).
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from selfimprove.generate.critique import fill
from selfimprove.policy import Policy, Prompt
from selfimprove.types import Count, Message, NonNegative, Problem, Sample, Samples, Trajectory
from selfimprove.verify import Check


@dataclass(frozen=True, slots=True)
class Candidate:
    """An attempt and the verifier's score of it."""

    trajectory: Trajectory
    score: float

    @property
    def text(self) -> str:
        return self.trajectory.text


Score = Callable[[str], Awaitable[float]]  # R(x, .)
Ask = Callable[[Candidate, Candidate], Prompt]  # (best, worst) -> the prompt with feedback


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    prompt: list[Message],
    iterations: Count,
    n: Annotated[Samples, Ge(2)],
    temperature: NonNegative,
    max_tokens: Count | None = None,
    check: Check,
) -> list[Trajectory]:
    """n * iterations candidates, in the order in which they were sampled. Scores are the rewards of `check`.

    In `prompt`, {question} and {options} are replaced. {solution} and {score} become the best candidate so far, {worst}
    and {worst_score} the worst.
    """

    async def score(text: str) -> float:
        return (await check(text, problem)).reward

    def ask(best: Candidate, worst: Candidate) -> Prompt:
        shown = {"score": f"{best.score:.2f}", "worst": worst.text.strip(), "worst_score": f"{worst.score:.2f}"}
        return fill(prompt, problem, best.text, **shown)

    return await decode(problem, policy, ask, score, iterations, n, temperature, max_tokens)


async def decode(
    problem: Problem,
    policy: Policy,
    ask: Ask,
    score: Score,
    iterations: int,
    n: int,
    temperature: float,
    max_tokens: int | None = None,
) -> list[Trajectory]:
    """The algorithm, for any feedback and any score.

    A trajectory's samples are those of the best candidate before it, on which it was to improve, then its own. Its
    metadata has its `stage`, and the `score` that the method saw.
    """
    candidates: list[Candidate] = []
    for stage in range(iterations):
        before: list[Sample] = []
        prompt: Prompt = problem.prompt
        if candidates:
            best = max(candidates, key=lambda c: c.score)  # the first of equals: only a better one replaces it
            worst = min(reversed(candidates), key=lambda c: c.score)  # the last of equals: another one than the best
            before, prompt = best.trajectory.samples, ask(best, worst)
        samples = await policy.sample(prompt, n, temperature=temperature, max_tokens=max_tokens)
        scores = await asyncio.gather(*(score(sample.text) for sample in samples))
        for sample, reward in zip(samples, scores, strict=True):
            metadata = {"stage": stage, "score": reward}
            candidates.append(Candidate(Trajectory(problem.id, [*before, sample], metadata), reward))
    return [candidate.trajectory for candidate in candidates]


# What the theory says, of a policy whose chances are known


Chances = Mapping[str, float]  # probabilities of the kinds of an answer; or the score of each kind


def solved_exactly(
    first: Chances,
    after: Mapping[str, Chances],
    scores: Chances,
    *,
    n: int,
    iterations: int,
    p_flip: float = 0.0,
    oracle: bool = False,
) -> float:
    """The probability that the answer is right: the best so far is a Markov chain over its kind and score.

    Answers are of several kinds, one of them "right". `first` are the chances of an answer without feedback, `after`
    those of one that is to improve on an answer of a kind; `first` for each kind is best-of-n. A score r is seen as
    1 - r with probability `p_flip`. With `oracle` the seen scores are feedback alone, and the answer is right where any
    candidate is.
    """
    states: dict[tuple[float, str], float] = {(-math.inf, ""): 1.0}  # score and kind of the best so far
    for _ in range(iterations):
        following: dict[tuple[float, str], float] = defaultdict(float)
        for (top, kind), p in states.items():
            candidate: dict[tuple[float, str], float] = defaultdict(float)  # chances of its score and kind
            for new, weight in (after[kind] if kind else first).items():
                if not (oracle and new == "right"):
                    candidate[scores[new], new] += weight * (1 - p_flip)
                    candidate[1 - scores[new], new] += weight * p_flip
            below = 0.0
            for value in sorted({seen for seen, _ in candidate}):
                here = sum(weight for (seen, _), weight in candidate.items() if seen == value)
                highest = (below + here) ** n - below**n  # that the best of n candidates has this score
                for (seen, new), weight in candidate.items():
                    if seen == value and here:
                        following[(value, new) if value > top else (top, kind)] += p * highest * weight / here
                below += here
        states = dict(following)
    total = sum(states.values()) if oracle else sum(p for (_, kind), p in states.items() if kind != "right")
    return 1 - total
