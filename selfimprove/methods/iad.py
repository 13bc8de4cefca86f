"""Iterative Agent Decoding: sample, score, show the best and the worst so far, sample again (Chakraborty et al. 2025,
arXiv 2504.01931, "Review, Refine, Repeat").

    for t = 1 .. T
        y_1 .. y_n ~ pi(. | x, f)       f: nothing at first, then the best and the worst so far, with their scores
        r_i = R(x, y_i)                 the verifier
        best so far                     replaced only by a candidate of a higher score
    answer: the best so far

Nothing is trained. Best-of-(n T) by the same verifier is the same without f. A verifier whose rewards are 0 or 1 has
little to say through f, since all that is shown before the task is solved has 0: the method is for graded rewards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from selfimprove.generate.critique import fill
from selfimprove.policy import Policy, Prompt
from selfimprove.types import Count, Message, NonNegative, Problem, Sample, Trajectory
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
    n: Annotated[int, Ge(2)],
    temperature: NonNegative,
    max_tokens: Count | None = None,
    check: Check,
) -> list[Trajectory]:
    """n * iterations candidates, in the order found; scores are the rewards of `check`.

    In `prompt`, {question} and {options} are replaced, {solution} and {score} by the best candidate so far, {worst} and
    {worst_score} by the worst.
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

    A trajectory's samples are those of the best candidate that it was to improve on, then its own. Its metadata has its
    `stage`, and the `score` that the method saw.
    """
    found: list[Candidate] = []
    for stage in range(iterations):
        before: list[Sample] = []
        asked: Prompt = problem.prompt
        if found:
            best = max(
                found, key=lambda candidate: candidate.score
            )  # the first of equals: only a better one replaces it
            worst = min(reversed(found), key=lambda candidate: candidate.score)  # the last: another one than the best
            before, asked = best.trajectory.samples, ask(best, worst)
        samples = await policy.sample(asked, n, temperature=temperature, max_tokens=max_tokens)
        scores = await asyncio.gather(*(score(sample.text) for sample in samples))
        for sample, reward in zip(samples, scores, strict=True):
            metadata = {"stage": stage, "score": reward}
            found.append(Candidate(Trajectory(problem.id, [*before, sample], metadata), reward))
    return [candidate.trajectory for candidate in found]
