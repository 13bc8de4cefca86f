"""Accuracy over tokens: of candidates that build on each other, and of plain samples for comparison.

A problem's candidates are its attempts; `right` says whether each is right. A rule of selfimprove.verify.answers
chooses one. Candidates may share a sample. It is identified by its role, seed and ids, and counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfimprove.report.metrics import mean_over_problems
from selfimprove.types import Attempt, Sample, Trajectory
from selfimprove.verify.answers import stage

Rule = Callable[[Sequence[Attempt]], int | None]  # of selfimprove.verify.answers, with its options


@dataclass(frozen=True, slots=True)
class Point:
    """Whether a problem's answer is correct after a number of sampled tokens."""

    tokens: int
    correct: bool


Trace = dict[int, Point]  # of one problem, by stage


def samples_of(trajectories: Iterable[Trajectory]) -> list[Sample]:
    """A problem's samples, each once, in order of appearance."""
    return list({_key(s): s for t in trajectories for s in t.samples}.values())


def sampled_tokens(group: Iterable[Attempt]) -> int:
    """The number of tokens sampled for a problem's attempts."""
    return sum(len(s.completion_ids) for s in samples_of(a.trajectory for a in group))


def _key(sample: Sample) -> tuple[str | int, ...]:
    return (sample.role, sample.seed, len(sample.prompt_ids), *sample.completion_ids)


def trace(group: Sequence[Attempt], right: Sequence[bool], rule: Rule) -> Trace:
    """The chosen answer at each stage, from all candidates found by then."""
    points: Trace = {}
    known: set[tuple[str | int, ...]] = set()
    tokens = 0
    for now in sorted({stage(attempt) for attempt in group}):
        for sample in samples_of(a.trajectory for a in group if stage(a) == now):
            if _key(sample) not in known:
                known.add(_key(sample))
                tokens += len(sample.completion_ids)
        so_far = [i for i, attempt in enumerate(group) if stage(attempt) <= now]
        chosen = rule([group[i] for i in so_far])
        points[now] = Point(tokens, chosen is not None and right[so_far[chosen]])
    return points


def worth(group: Sequence[Attempt], tokens: float) -> int:
    """The number of a problem's first plain samples that have `tokens` tokens together; all if they have fewer."""
    spent = np.cumsum([attempt.trajectory.sampled_tokens for attempt in group])
    return min(int(np.searchsorted(spent, tokens)) + 1, len(group))


def baselines(
    group: Sequence[Attempt], right: Sequence[bool], tokens: float, rules: Mapping[str, Rule]
) -> dict[str, bool]:
    """Whether plain samples worth `tokens` solve a problem: by each rule, and as `pass` if any of them is right.

    A perfect verifier would reach `pass`.
    """
    n = worth(group, tokens)
    chosen = {name: rule(group[:n]) for name, rule in rules.items()}
    return {name: i is not None and right[i] for name, i in chosen.items()} | {"pass": any(right[:n])}


def curve(traces: Sequence[Trace]) -> list[dict[str, float]]:
    """A row for each stage: mean sampled tokens a problem, and accuracy with its interval.

    A problem that ended before a stage keeps its answer.
    """
    rows = []
    for now in sorted({number for steps in traces for number in steps}):
        points = [at(steps, now) for steps in traces]
        rows.append({"stage": now, **row([p.tokens for p in points], [p.correct for p in points])})
    return rows


def at(steps: Trace, now: int) -> Point:
    """A problem's point at a stage: its last one until then."""
    return max(((number, p) for number, p in steps.items() if number <= now), default=(0, Point(0, False)))[1]


def final(steps: Trace) -> bool:
    """Whether a problem's last answer is right."""
    return bool(steps) and steps[max(steps)].correct


def row(tokens: Iterable[float], correct: Sequence[bool]) -> dict[str, float]:
    """One point of a curve over problems."""
    estimate = mean_over_problems(correct)
    mean = float(np.mean(list(tokens)))
    return {"tokens": mean, "accuracy": estimate.value, "low": estimate.low, "high": estimate.high}
