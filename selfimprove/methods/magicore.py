"""MAgICoRe: easy problems are answered by a vote, hard ones are reviewed step by step and refined.

MAgICoRe: Multi-Agent, Iterative, Coarse-to-Fine Refinement for Reasoning (Chen, Saha, Stengel-Eskin and Bansal 2024,
arXiv 2409.12147; code dinobby/MAgICoRe).

    solve      Y = y_1..y_k ~ pi(. | x)
    score      w_i = o_i + s_i       o_i: the outcome reward model's score, s_i: the product of the step scores
    route      1.  mean of (w_i - mu) / sigma over the solutions with the majority answer  >= 0
               2.  2 (1 - sigmoid(H)) >= 1/2  for H = H_o and for H = H_s, the entropies (nats) of the votes for the
                   answers, weighted by o and by s
               x is hard where both 1 and 2 fail
    refine     at most T times, while x is hard, for each y in Y:
                   f  ~ pi(. | review(x, y with its step scores))       Reviewer
                   y' ~ pi(. | refine(x, y with its step scores, f))    Refiner
               Y = the k of highest w among Y and all y'
    answer     the vote over Y, weighted by w (verify/answers.py: weighted)

mu and sigma are of w over a data set, of one solution a problem (`prepare`): the dev problems', or if there are none
those of the problems to be solved. No gold answer is needed for them. Condition 2 asks for an entropy of at most
log 3: as if no more than three answers had equal votes.

What of this is the paper's, the released code's and our own is said in docs/methods/magicore.md.

*Wrong when* the scores do not tell right from wrong: routing, reviews and the vote all rest on them. Where no solution
of a hard problem is right and the refiner mends none either, the tokens of refining are lost.
"""

from __future__ import annotations

import asyncio
import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge

from selfimprove import seeds
from selfimprove.binding import Target
from selfimprove.errors import ConfigError
from selfimprove.generate.critique import after_reasoning, fill
from selfimprove.policy import Policy
from selfimprove.types import Count, Message, NonNegative, Problem, Sample, Samples, Share, Trajectory
from selfimprove.verify import Judge, outcome_and_steps
from selfimprove.verify.equality import canonical
from selfimprove.verify.outcome_and_steps import product
from selfimprove.verify.steps import lines

DOUBTED = 0.5  # a step of a lower score is taken for wrong


class Scale(TypedDict):
    """Mean and standard deviation of w."""

    mean: float  # mu
    std: float  # sigma


@dataclass(frozen=True)
class Solution:
    """A solution with what the reward models say of it."""

    trajectory: Trajectory
    answer: str | None  # in one form for equal answers; None: it states none
    outcome: float  # o
    steps: tuple[float, ...]  # one score a step

    @property
    def product(self) -> float:
        """s"""
        return product(self.steps, self.answer)

    @property
    def weight(self) -> float:
        """w = o + s"""
        return self.outcome + self.product

    @property
    def text(self) -> str:
        return after_reasoning(self.trajectory.text)

    @property
    def scored(self) -> str:
        """The text with "(Score: 8/10)" behind each step; as it is where there is not one score a step."""
        steps = lines(self.text)
        if len(steps) != len(self.steps):
            return self.text
        return "\n".join(f"{step} (Score: {round(10 * p)}/10)" for step, p in zip(steps, self.steps, strict=True))

    @property
    def first_doubted(self) -> int | None:
        """The number of the first step, from 1 on, whose score is below one half; None if there is none."""
        return next((i for i, score in enumerate(self.steps, 1) if score < DOUBTED), None)


def require_verifier(verifier: Target) -> None:
    """Raises ConfigError for a verifier that does not give both kinds of scores."""
    if verifier["_target_"] != f"{outcome_and_steps.__name__}.verify":
        raise ConfigError(
            f"verifier={verifier['_target_']}: magicore asks two reward models, of outcomes and of steps: use "
            "verifier=reward_models, or verifier=noisy for an experiment",
            "verifier",
        )


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    n: Samples,
    iterations: Annotated[int, Ge(0)],
    review: list[Message],
    refine: list[Message],
    lead: str = "",
    route: Literal["hard", "easy", "all"] = "hard",
    keep: Literal["best", "new"] = "best",
    shuffled: Sequence[Literal["outcome", "steps"]] = (),
    temperature: NonNegative = 0.8,
    top_p: Share = 0.95,
    max_tokens: Count | None = None,
    judge: Judge,
    prepared: Scale,
) -> list[Trajectory]:
    """All solutions found: the k = `n` drafts, `stage` 0, then those of each iteration. `iterations` is T.

    In `review` and `refine`, {question}, {options} and {solution} are replaced, and {scored} becomes the solution with
    its step scores. In `refine`, {review} becomes the review. `lead` has the first words of a review. {step} in it is
    the number of the first step whose score is below one half. Without such a step the words are left out.

    Controls: `route` says which problems are refined, `keep: new` has the refined solutions replace the old ones
    whatever their scores, and `shuffled` deals scores out at random among a problem's solutions. `max_tokens` limits
    each solution and review; None: the policy's limit.

    Metadata has each solution's `weight`, `outcome` and `steps` as the method saw them, and `hard`: how the problem was
    routed before this stage (of drafts: after they were scored). Raises ValueError if a prompt does not fit the
    model's window.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}

    async def scored(found: Sequence[list[Sample]], stage: int) -> list[Solution]:
        trajectories = [Trajectory(problem.id, samples, {"stage": stage}) for samples in found]
        solutions = await _scored(problem, trajectories, judge)
        if shuffled:
            solutions = dealt(solutions, shuffled, seeds.derive(policy.seed, *policy.scope, "dealt", stage))
        return solutions

    async def refined(number: int, stage: int, solution: Solution) -> list[Sample]:
        alone = policy.for_problem(problem, "refine", stage, number)  # does not depend on how fast the others are
        shown = {"scored": solution.scored}
        ids = alone.render(fill(review, problem, solution.text, **shown))
        words = _led(lead, solution)
        (said,) = await alone.sample([*ids, *alone.encode(words)] if words else ids, **sampling)  # f
        feedback = words + after_reasoning(said.text)
        (new,) = await alone.sample(fill(refine, problem, solution.text, review=feedback, **shown), **sampling)  # y'
        samples = solution.trajectory.samples
        return [samples[0], *samples[1:][-1:], said, new]  # the draft, what was refined, its review, the solution

    drafts = await policy.sample(problem.prompt, n, **sampling)
    kept = new = await scored([[draft] for draft in drafts], 0)  # Y
    hard = is_hard(kept, prepared)
    found = [_noted(solution, hard) for solution in new]
    for stage in range(1, iterations + 1):
        if route != "all" and hard != (route == "hard"):
            break
        new = await scored(await asyncio.gather(*(refined(i, stage, y) for i, y in enumerate(kept))), stage)
        found += [_noted(solution, hard) for solution in new]
        kept = top([*kept, *new], n) if keep == "best" else new
        hard = is_hard(kept, prepared)
    return found


async def prepare(
    problems: Sequence[Problem],
    policy: Policy,
    *,
    dev: Sequence[Problem],
    judge: Judge,
    temperature: NonNegative = 0.8,
    top_p: Share = 0.95,
    max_tokens: Count | None = None,
    **options: Any,
) -> Scale:
    """mu and sigma of w, of one solution to each dev problem, or to each of `problems` if there is none."""

    async def one(problem: Problem) -> float:
        alone = policy.for_problem(problem)
        found = await alone.sample(problem.prompt, temperature=temperature, top_p=top_p, max_tokens=max_tokens)
        (solution,) = await _scored(problem, [Trajectory(problem.id, found)], judge)
        return solution.weight

    weights = await asyncio.gather(*map(one, dev or problems))
    return Scale(mean=statistics.fmean(weights), std=statistics.pstdev(weights))


async def _scored(problem: Problem, trajectories: list[Trajectory], judge: Judge) -> list[Solution]:
    """What the reward models say, by `verify/outcome_and_steps.py`; nothing of a solution that they cannot read."""
    found = []
    for trajectory, outcome in zip(trajectories, await judge(problem, trajectories), strict=True):
        answer = None if outcome.extracted is None else canonical(outcome.extracted)
        steps = tuple(outcome.step_rewards or ())
        found.append(Solution(trajectory, answer, outcome.reward - product(steps, answer), steps))
    return found


def _noted(solution: Solution, hard: bool) -> Trajectory:
    own = {"weight": solution.weight, "outcome": solution.outcome, "steps": list(solution.steps), "hard": hard}
    solution.trajectory.metadata |= own
    return solution.trajectory


def _led(lead: str, solution: Solution) -> str:
    """The first words of a review."""
    if "{step}" not in lead:
        return lead
    step = solution.first_doubted
    return "" if step is None else lead.replace("{step}", str(step))


# Routing


def is_hard(solutions: Sequence[Solution], scale: Scale) -> bool:
    """Whether both conditions fail. A problem without any answer is hard."""
    voters = [s for s in solutions if s.answer is not None]
    if not voters:
        return True
    unsure = min(confidence((s.answer, s.outcome) for s in voters), confidence((s.answer, s.product) for s in voters))
    return not supported(voters, scale) and unsure < 0.5


def supported(voters: Sequence[Solution], scale: Scale) -> bool:
    """Condition 1: the majority's solutions have a mean standardised w of at least 0. Of equally frequent answers the
    one that was there first is the majority's. Without spread, w is compared with the mean alone."""
    votes = Counter(s.answer for s in voters)
    majority = max(votes, key=lambda answer: votes[answer])
    w = statistics.fmean(s.weight for s in voters if s.answer == majority)
    return (w - scale["mean"]) / (scale["std"] or 1.0) >= 0


def confidence(votes: Iterable[tuple[str | None, float]]) -> float:
    """2 (1 - sigmoid(H)), H the entropy in nats of the answers' shares of all weights; in (0, 1], 1 for one answer.

    Where all weights are 0, each vote counts alike.
    """
    given = list(votes)
    even = not any(weight for _, weight in given)
    sums: dict[str | None, float] = defaultdict(float)
    for answer, weight in given:
        sums[answer] += 1.0 if even else weight
    total = math.fsum(sums.values())
    entropy = -math.fsum(p * math.log(p) for p in (value / total for value in sums.values()) if p)
    return 2 / (1 + math.exp(entropy))  # 1 - sigmoid(H) = 1 / (1 + e^H)


def top(solutions: Sequence[Solution], k: int) -> list[Solution]:
    """The k of highest w, in the order they were found; of equals the first."""
    best = sorted(range(len(solutions)), key=lambda i: -solutions[i].weight)[:k]
    return [solutions[i] for i in sorted(best)]


def dealt(solutions: Sequence[Solution], which: Sequence[str], seed: int) -> list[Solution]:
    """The solutions with the scores of all of them dealt out at random; each keeps as many step scores as it had."""
    rng = random.Random(seed)
    outcomes = [s.outcome for s in solutions]
    steps = [score for s in solutions for score in s.steps]
    for name, scores in (("outcome", outcomes), ("steps", steps)):
        if name in which:
            rng.shuffle(scores)
    left = iter(steps)
    return [
        Solution(s.trajectory, s.answer, outcome, tuple(next(left) for _ in s.steps))
        for s, outcome in zip(solutions, outcomes, strict=True)
    ]
