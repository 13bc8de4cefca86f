"""B-STaR: before each round, choose the temperature and the reward threshold that balance exploring and exploiting.

B-STaR: Monitoring and Balancing Exploration and Exploitation in Self-Taught Reasoners (Zeng et al. 2024, arXiv
2412.17256). A self-taught reasoner loses its variety as it trains, and with it what there is to select from.

    probe      y_1..y_n ~ pi_v(. | x) for every dev problem x, at every temperature T of a grid
    adapt      r(x, y) = 1[answer right] + w min_step r_step; of each dev problem i keep the distinct y with r > tau:
               n_i of them, n'_i of those correct. Take the (T, tau) of the greatest mean balance score
                   bs_i = min(n'_i / n*, 1) n'_i / n_i,      0 if nothing is kept
    generate   y_1..y_n ~ pi_v(. | x) for every training problem, at that T
    filter     D = the distinct y with r > tau, the best few of each problem: as few as still make `target_size`
    train      pi_{v+1} = argmax_pi  sum_D log pi(y | x), from pi_v on; one learning-rate schedule over all rounds

Settings make it the paper's or the released code's: conf/method/bstar.yaml, bstar_released.yaml. With
`method.probe=null method.adapt=null` T and tau stay as generate and filter have them: online rejection sampling.

*Wrong when* fixed settings lose no variety: the choice then costs its probes and changes nothing. It also decides by
chance where the dev problems are so few that the scores of neighbouring settings differ by less than their noise.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.filter.distinct import answered
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.policy import Policy
from selfimprove.report.metrics import normalise
from selfimprove.report.surface import log_surface
from selfimprove.train import TrainContext
from selfimprove.train.sft import sft
from selfimprove.types import (
    CLOSED,
    Adaptation,
    Attempt,
    Batch,
    Count,
    Example,
    NonNegative,
    Problem,
    Rate,
    Samples,
    Share,
    Trajectory,
)

log = logging.getLogger("selfimprove")

generate = best_of_n


@dataclass(frozen=True)
class Grid:
    """Evenly spaced numbers from `low` to `high`, both among them. Raises ConfigError if there are none."""

    __pydantic_config__ = CLOSED

    low: float
    high: float
    step: float

    def __post_init__(self) -> None:
        if self.step <= 0 or self.high < self.low:
            raise ConfigError(f"grid {self.low} to {self.high} by {self.step}: it needs low <= high and step > 0")

    @property
    def values(self) -> list[float]:
        steps = math.floor((self.high - self.low) / self.step + 1e-6)
        return [round(self.low + i * self.step, 9) for i in range(steps + 1)]


async def probe(
    problem: Problem, policy: Policy, *, n: Samples, temperatures: Grid, max_tokens: Count | None = None
) -> list[Trajectory]:
    """n samples at every temperature of the grid."""
    by_temperature = await asyncio.gather(
        *(
            best_of_n(problem, policy, n=n, temperature=temperature, max_tokens=max_tokens)
            for temperature in temperatures.values
        )
    )
    return [trajectory for trajectories in by_temperature for trajectory in trajectories]


def adapt(
    groups: Iterable[list[Attempt]],
    *,
    thresholds: Grid,
    wanted: Count,
    step_weight: NonNegative,
    per_problem: float | None = None,
    hand_over: bool = True,
) -> Adaptation:
    """The temperature and threshold of the greatest balance score over the dev problems, and the score of every pair.

    `wanted` is n*, `step_weight` w. With `per_problem`, only the subset is scored that a filter keeps whose target is
    so many responses a problem. With `hand_over` False the filter finds its own threshold. Of equal scores the first
    counts: that of the lowest temperature, then of the lowest threshold.
    """
    responses: dict[float, list[list[Response]]] = {}  # temperature -> one list a problem
    for attempts in groups:
        by_temperature: dict[float, list[Attempt]] = {}
        for attempt in attempts:
            by_temperature.setdefault(attempt.trajectory.samples[-1].temperature, []).append(attempt)
        for temperature, answers in by_temperature.items():
            responses.setdefault(temperature, []).append(distinct(answers, step_weight))
    surface: list[dict[str, Any]] = []
    for temperature, problems in sorted(responses.items()):
        target = None if per_problem is None else math.ceil(per_problem * len(problems))
        for threshold in thresholds.values:
            score = balance(problems, threshold, wanted, target)
            surface.append({"temperature": temperature, "threshold": threshold, "balance": score})
    best = max(surface, key=lambda row: row["balance"])
    log_surface(surface, "temperature", "threshold", "balance")
    overrides: dict[str, dict[str, Any]] = {"generate": {"temperature": best["temperature"]}}
    if hand_over:
        overrides["filter"] = {"threshold": best["threshold"]}
    chosen = responses[best["temperature"]]
    metrics = {
        "balance": best["balance"],
        "distinct_solutions": sum(map(len, chosen)) / len(chosen),
        "distinct_correct": sum(response.correct for answers in chosen for response in answers) / len(chosen),
    }
    return Adaptation(overrides, metrics, surface)


def select(
    groups: Iterable[list[Attempt]],
    *,
    threshold: float | None,
    target_size: Count,
    step_weight: NonNegative,
    thresholds: Grid | None = None,
    wanted: Count = 8,
    seed: int,
) -> Iterator[Example]:
    """Distinct responses with a reward above `threshold`, the best of each problem, at random among equals.

    At most k of a problem are kept, with the smallest k that makes `target_size` in all; all of them where there are
    fewer. `threshold` None: the one of `thresholds` with the greatest balance score on these very problems. Raises
    ConfigError where neither is given.
    """
    if threshold is None and thresholds is None:
        raise ConfigError("filter.threshold is null: give a number, or filter.thresholds a grid to choose from")
    problems = [distinct(attempts, step_weight) for attempts in groups]
    if threshold is None:
        assert thresholds is not None
        threshold = max(thresholds.values, key=lambda tau: balance(problems, tau, wanted, target_size))
        log.info("filter: threshold %g has the greatest balance score on the training problems", threshold)
    kept = above(problems, threshold)
    most = smallest_cap([len(responses) for responses in kept], target_size)
    for responses in filter(None, kept):
        random.Random(f"{seed}/{responses[0].example.problem_id}").shuffle(responses)
        responses.sort(key=lambda response: -response.reward)
        yield from (response.example for response in responses[:most])


def train(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    steps: Count,
    learning_rate: Rate,
    final_learning_rate: Share,
    batch_size: Batch,
    weight_decay: Share = 0.0,
    max_grad_norm: NonNegative = 1.0,
) -> dict[str, float]:
    """SFT for `steps` optimizer steps at this round's learning rate. Returns what `sft` does."""
    return sft(
        rows,
        context,
        epochs=steps * batch_size / len(rows),
        learning_rate=rate_of_round(context.round, context.rounds, learning_rate, final_learning_rate),
        batch_size=batch_size,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
    )


def rate_of_round(number: int, rounds: int, first: float, last: float) -> float:
    """The value, in the middle of a round, of one cosine that falls from `first` to `last` over all rounds."""
    return last + (first - last) * (1 + math.cos(math.pi * (number + 0.5) / rounds)) / 2


# Rewards, what counts as distinct, and the score


@dataclass(frozen=True, slots=True)
class Response:
    """One of a problem's distinct responses."""

    reward: float
    correct: bool
    example: Example


def reward(attempt: Attempt, step_weight: float) -> float:
    """1 for a right answer, plus `step_weight` times the worst step's reward where the verifier rewards steps."""
    steps = attempt.verdict.step_rewards or [0.0]
    return float(attempt.verdict.status == "correct") + step_weight * min(steps)


def distinct(attempts: Sequence[Attempt], step_weight: float) -> list[Response]:
    """A problem's responses without repetitions, best first. Two are the same when their text is, up to white space.

    A response that was cut off at the token limit is left out: it would teach the policy not to end. So is one whose
    check ended as `timeout` or `error`: nothing is known of it.
    """
    by_text: dict[str, Response] = {}
    for a in attempts:
        sample = a.trajectory.samples[-1]
        if sample.finish != "stop" or a.verdict.status in ("timeout", "error"):
            continue
        example = Example(a.problem.id, [a.trajectory.id], *answered(a.trajectory))
        response = Response(reward(a, step_weight), a.verdict.status == "correct", example)
        by_text.setdefault(normalise(sample.text), response)
    return sorted(by_text.values(), key=lambda response: -response.reward)


def above(problems: Sequence[list[Response]], threshold: float) -> list[list[Response]]:
    return [[response for response in responses if response.reward > threshold] for responses in problems]


def smallest_cap(sizes: Sequence[int], target: int) -> int:
    """The smallest k for which the sum of min(size, k) is at least `target`; the largest size where none is."""
    cap = 1
    while cap < max(sizes, default=1) and sum(min(size, cap) for size in sizes) < target:
        cap += 1
    return cap


def balance(problems: Sequence[list[Response]], threshold: float, wanted: int, target: int | None = None) -> float:
    """Mean over problems of min(n'/n*, 1) n'/n: n responses are kept, n' of them correct; 0 if n is 0.

    With `target`, the kept ones are the best few of each problem, as `select` has them.
    """
    kept = above(problems, threshold)
    if target is not None:
        most = smallest_cap([len(responses) for responses in kept], target)
        kept = [responses[:most] for responses in kept]
    total = 0.0
    for responses in filter(None, kept):
        right = sum(response.correct for response in responses)
        total += min(right / wanted, 1.0) * right / len(responses)
    return total / len(problems)
