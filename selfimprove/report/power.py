"""The true difference between two groups of runs that a comparison can show, now and with more problems or seeds.

The scores' paired differences form a table of shape (seeds, problems). It has three components of variance: by problem,
by seed, and the rest. They give the standard error for other numbers of problems and seeds. From it follows the
difference that 80 of 100 comparisons would find (Cohen 1988, Statistical Power Analysis).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from selfimprove.report.statistics import Z, student
from selfimprove.units import Scale

POWER = 0.8
Z_POWER = NormalDist().inv_cdf(POWER)


@dataclass(frozen=True, slots=True)
class Components:
    """Variances of paired differences, in squared units of the score."""

    problems: float
    seeds: float
    rest: float
    span: float  # the largest distance of two scores; 0 if the scale has no ends

    @classmethod
    def of(cls, table: np.ndarray, scale: Scale | None) -> Components:
        """From differences of shape (seeds, problems), by mean squares. With one seed the variance by seed is 0."""
        seeds, problems = table.shape
        span = scale[1] - scale[0] if scale else 0.0
        by_problem = table.mean(axis=0)
        spread = float(by_problem.var(ddof=1)) if problems > 1 else 0.0
        if seeds == 1:
            return cls(spread, 0.0, 0.0, span)
        by_seed = table.mean(axis=1, keepdims=True)
        residual = table - by_seed - by_problem + table.mean()
        rest = float((residual**2).sum()) / max(1, (seeds - 1) * (problems - 1))
        ms_seeds = problems * float(by_seed.var(ddof=1))
        return cls(max(0.0, spread - rest / seeds), max(0.0, ms_seeds - rest) / problems, rest, span)

    def shows(self, problems: int, seeds: int) -> float:
        """The true difference whose interval excludes 0 in 80 of 100 comparisons of this size.

        The interval is that of `statistics.over_seeds`, with half a problem at each end of the scale.
        """
        ends = self.span**2 / seeds / (problems + 1)
        over_problems = (self.problems + self.rest / seeds + ends) / problems
        over_seeds = self.seeds / seeds
        t = student(seeds - 1) if seeds > 1 else Z
        widening = over_seeds + self.rest / 2 / seeds / problems  # with half of the rest, as in `over_seeds`
        interval = math.hypot(Z * math.sqrt(over_problems), t * math.sqrt(widening))
        return interval + Z_POWER * math.sqrt(over_problems + over_seeds)
