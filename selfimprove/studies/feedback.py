"""Iterative Agent Decoding with other feedback than the best and worst candidate, with noisy scores, and on a toy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from selfimprove import seeds
from selfimprove.config import compose
from selfimprove.generate.critique import fill
from selfimprove.methods.iad import Candidate, Chances, decode, solved_exactly
from selfimprove.policy import Policy, Prompt
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.studies.solving import Check, Groups
from selfimprove.types import Attempt, Message, Problem, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.answers import best

ITERATIONS, N, TEMPERATURE = 3, 4, 0.7


async def arm(
    problem: Problem,
    policy: Policy,
    *,
    prompt: list[Message],
    donors: Mapping[str, Candidate] | None = None,
    blind: bool = False,
    check: Callable[[str, Problem], Awaitable[Outcome]],
) -> list[Trajectory]:
    """The method, shown another problem's candidate (`donors`, by problem), or going by scores drawn at random."""
    rng = np.random.default_rng(seeds.derive(policy.seed, "blind", problem.id))

    async def score(text: str) -> float:
        return float(rng.random()) if blind else (await check(text, problem)).reward

    def ask(top: Candidate, bottom: Candidate) -> Prompt:
        shown = donors[problem.id] if donors else top
        blanks = {"score": f"{shown.score:.2f}", "worst": bottom.text, "worst_score": f"{bottom.score:.2f}"}
        return fill(prompt, problem, shown.text, **blanks)

    return await decode(problem, policy, ask, score, ITERATIONS, N, TEMPERATURE)


def feedback(model: Sequence[str]) -> Callable[..., Any]:
    """The arm with the feedback prompt that conf/ has for a model."""
    return partial(arm, prompt=compose(["method=iad", *model], needs=False).solver["prompt"])


def by_score(group: Sequence[Attempt]) -> int:
    """The candidate that the method itself would answer with: of the highest score that it saw."""
    return max(range(len(group)), key=lambda i: (group[i].trajectory.metadata["score"], -i))


def neighbours(groups: Groups) -> dict[str, Candidate]:
    """For each problem the best candidate of the next one."""
    donors = {}
    for group, other in zip(groups, [*groups[1:], groups[0]], strict=True):
        chosen = other[best(other) or 0]
        donors[group[0].problem.id] = Candidate(chosen.trajectory, chosen.verdict.reward)
    return donors


def flipped(check: Check, p_flip: float, seed: int) -> Check:
    """`check` whose reward r is 1 - r with probability p_flip, each time it is asked."""
    times: Counter[str] = Counter()

    def noisy(text: str, problem: Problem) -> Outcome:
        outcome = check(text, problem)
        times[problem.id] += 1
        draw = np.random.default_rng(seeds.derive(seed, "flip", problem.id, times[problem.id])).random()
        return replace(outcome, reward=1 - outcome.reward) if draw < p_flip else outcome

    return noisy


def scored(groups: Groups, check: Check) -> Groups:
    """Plain samples, their `score` now that which `check` gives them."""
    for group in groups:
        for attempt in group:
            attempt.trajectory.metadata["score"] = check(attempt.trajectory.text, attempt.problem).reward
    return groups


# The policy whose chances are known

FIRST: Chances = {"right": 0.1, "near": 0.225, "far": 0.675}  # p_correct .1, four wrong values of which one is near
AFTER: Mapping[str, Chances] = {
    "right": {"right": 1.0},
    "near": {"right": 0.5, "near": 0.5},
    "far": {"right": 0.1, "far": 0.9},  # no better than to start again
}
SAMPLED: Mapping[str, Chances] = dict.fromkeys(AFTER, FIRST)  # best-of-n
GRADED: Chances = {"right": 1.0, "near": 0.5, "far": 0.0}
SPARSE: Chances = {"right": 1.0, "near": 0.0, "far": 0.0}

chance = partial(solved_exactly, FIRST, n=N, iterations=ITERATIONS)


def margin(scores: Chances = GRADED, p_flip: float = 0.0, oracle: bool = False) -> float:
    """What the method finds more than best-of-n, exactly."""
    noise = 0.0 if oracle else p_flip
    return chance(AFTER, scores, p_flip=p_flip, oracle=oracle) - chance(SAMPLED, scores, p_flip=noise, oracle=oracle)


def toy(count: int) -> tuple[list[Problem], ScriptedEngine]:
    """Problems with whole-number answers 100 apart, and the policy above."""
    problems = [Problem(f"q{i}", f"Question {i}?", str(100 * i)) for i in range(count)]
    gold = {str(p.prompt): str(p.gold) for p in problems}
    return problems, ScriptedEngine(gold, 0.1, p_improve=(0.5, 0.1, 0.1, 0.1), wrong_values=4)


def distance(text: str, problem: Problem) -> Outcome:
    """1 for the right value, 0.5 for the one above it, else 0."""
    off = int(text.removeprefix(ANSWER)) - int(str(problem.gold))
    return Outcome("wrong" if off else "correct", {0: 1.0, 1: 0.5}.get(off, 0.0), str(off))
