"""A warning when training has made sampled held-out answers more alike without a gain.

Training on a policy's own best answers can raise pass@1 and lower pass@k (Yue et al. 2025, arXiv 2504.13837). Only
several sampled answers can show it (`eval.samples`). The run goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from selfimprove.report.metrics import decoding, pass_at_k
from selfimprove.report.statistics import Estimate, mean
from selfimprove.types import Attempt
from selfimprove.verify.equality import canonical


@dataclass(frozen=True, slots=True)
class Variety:
    """Counts of one problem's sampled answers."""

    correct: int
    n: int
    distinct: int  # different extracted answers


def variety(groups: Iterable[Sequence[Attempt]]) -> dict[str, Variety]:
    """Problem id -> counts of its sampled answers, from an evaluation's attempts by problem, without greedy answers."""
    found = {}
    for group in groups:
        verdicts = [a.verdict for a in group if decoding(a) == "sampled"]
        if len(verdicts) > 1:
            answers = {canonical(v.extracted or "") for v in verdicts} - {None}
            correct = sum(v.status == "correct" for v in verdicts)
            found[group[0].problem.id] = Variety(correct, len(verdicts), len(answers))
    return found


def alarm(before: dict[str, Variety], after: dict[str, Variety]) -> str | None:
    """A warning about two evaluations of the same problems, by the 95 % intervals of the change; None: no warning.

    Either pass@k has fallen: at least one of k answers is right less often. Or the answers to a problem differ less,
    and a single one is right no more often. There is no warning if there are no samples, or if the problems differ.
    """
    if not before or before.keys() != after.keys():
        return None
    k = min(v.n for v in [*before.values(), *after.values()])
    pairs = [(before[name], after[name]) for name in before]

    def change(values: list[tuple[float, float]], span: float | None) -> Estimate:
        differences = np.array([second - first for first, second in values])
        return mean(differences, None if span is None else (-span, span))

    single = change([(a.correct / a.n, b.correct / b.n) for a, b in pairs], 1.0)
    several = change([(pass_at_k(a.n, a.correct, k), pass_at_k(b.n, b.correct, k)) for a, b in pairs], 1.0)
    distinct = change([(a.distinct, b.distinct) for a, b in pairs], None)
    if several.high < 0:
        return (
            f"variety is lost: pass@{k} is {_points(several)} below the base policy's, while a single sampled answer "
            f"is right {_points(single)} {'more' if single.value > 0 else 'less'} often"
        )
    if distinct.high < 0 and single.low <= 0:
        had, has = (np.mean([v.distinct for v in side.values()]) for side in (before, after))
        return (
            f"variety is lost: {k} sampled answers to a problem have {has:.1f} different ones, the base policy's had "
            f"{had:.1f} (change [{distinct.low:+.2f}, {distinct.high:+.2f}]); a single one is right no more often"
        )
    return None


def _points(estimate: Estimate) -> str:
    """The size of a difference, with its interval, both in the direction of the difference."""
    sign = 1 if estimate.value > 0 else -1
    ends = sorted(100 * sign * end for end in (estimate.low, estimate.high))
    return f"{abs(100 * estimate.value):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}]"
