"""Estimates with 95 % intervals: of accuracies, paired differences and ratios, over problems and over seeds.

Problems are drawn at random, so intervals are over problems. The samples of one problem count as their mean, and two
policies are compared problem by problem (Miller 2024, arXiv 2411.00640). No interval uses a normal approximation over
problems, which covers badly below a few hundred of them (Bowyer et al. 2025, arXiv 2503.01747):

- one 0 or 1 for each problem: Wilson's interval;
- any other mean over problems: the Bayesian bootstrap (Rubin 1981, Annals of Statistics 9:130), with half a problem
  added at each end of the scale. For values of 0 or 1 this is Jeffreys' interval; for paired ones, a Dirichlet
  posterior. Without those halves, or as a percentile bootstrap, it covers too little at 50 problems;
- several seeds: that interval for the mean over seeds, widened by Student's t for the seeds. Resampling the seeds
  instead (Agarwal et al. 2021, arXiv 2108.13264) covers far too little if three seeds differ much, since three values
  hardly show how far off a fourth would be. A test makes that comparison.

`python scripts/coverage.py` measures how often each covers; its table is in docs/compare.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from selfimprove.units import Scale

Z = NormalDist().inv_cdf(0.975)
RESAMPLES = 2000  # with these, the ends of an interval vary by a few per cent of its width


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` problems with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def named(self, name: str) -> dict[str, float]:
        """{name, name_low, name_high}: the form in which an estimate is logged and stored."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

    @property
    def apart(self) -> bool:
        """Whether the interval excludes 0: whether a difference is significant."""
        return self.low > 0 or self.high < 0


def accuracy(correct: Sequence[bool] | np.ndarray) -> Estimate:
    """The share of problems solved, one answer each, with Wilson's interval. Raises ValueError without problems."""
    if not (n := len(correct)):
        raise ValueError("no problems to average over")
    hits = int(np.count_nonzero(correct))
    middle = hits + Z * Z / 2
    half = Z * math.sqrt(hits * (n - hits) / n + Z * Z / 4)
    low = (middle - half) / (n + Z * Z) if hits else 0.0
    high = (middle + half) / (n + Z * Z) if hits < n else 1.0
    return Estimate(hits / n, low, high, n)


def mean_over_problems(values: Sequence[float] | np.ndarray, seed: int = 0) -> Estimate:
    """The mean of one value in [0, 1] for each problem.

    The interval is Wilson's if all values are 0 or 1, else the Bayesian bootstrap's. Raises ValueError if there are
    no problems.
    """
    array = np.asarray(values, dtype=float)
    if np.isin(array, (0.0, 1.0)).all():
        return accuracy(array == 1)
    return mean(array, (0.0, 1.0), seed)


def paired_difference(
    before: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, seed: int = 0
) -> Estimate:
    """The mean of after - before, values in [0, 1], over the same problems in the same order.

    Raises ValueError if the two differ in length or are empty.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} problems before and {len(after)} after: not the same problems")
    return mean(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), (-1.0, 1.0), seed)


def mean(values: np.ndarray, scale: Scale | None, seed: int = 0) -> Estimate:
    """The mean of one value for each problem, with an interval by the Bayesian bootstrap.

    `scale` None: the least and the greatest value are used as the ends of the scale. Raises ValueError if there are
    no values.
    """
    if not len(values):
        raise ValueError("no problems to average over")
    ends = scale or (float(values.min()), float(values.max()))
    ones = np.ones(len(values))
    low, high = _interval(np.column_stack([values, ones]), np.array([[end, 1.0] for end in ends]), seed)
    value = float(values.mean())
    return Estimate(value, min(low, value), max(high, value), len(values))


def ratio(above: np.ndarray, below: np.ndarray, seed: int = 0) -> Estimate:
    """sum(above) / sum(below) over problems, e.g. nats and tokens; `below` is positive.

    The problems with the least and the greatest ratio are used as the ends of the scale. Raises ValueError if there
    are no problems.
    """
    if not len(above):
        raise ValueError("no problems to average over")
    rows, ratios = np.column_stack([above, below]), above / below
    low, high = _interval(rows, rows[[ratios.argmin(), ratios.argmax()]], seed)
    return Estimate(float(above.sum() / below.sum()), low, high, len(above))


def _interval(rows: np.ndarray, ends: np.ndarray, seed: int) -> tuple[float, float]:
    """The 95 % interval of sum(rows[:, 0]) / sum(rows[:, 1]) by the Bayesian bootstrap.

    Each row has a Gamma(1) weight, each of `ends` a Gamma(1/2) weight. Equal rows are drawn as one, since a sum of
    Gamma weights is Gamma again.
    """
    together, which = np.unique(np.concatenate([rows, ends]), axis=0, return_inverse=True)
    shape = np.bincount(which.ravel(), np.repeat([1.0, 0.5], [len(rows), len(ends)]))
    rng = np.random.default_rng(seed)
    drawn: list[np.ndarray] = []
    while (left := RESAMPLES - sum(map(len, drawn))) > 0:
        weights = rng.standard_gamma(shape, size=(min(left, max(1, 2_000_000 // len(shape))), len(shape)))  # 16 MB
        drawn.append((weights @ together[:, 0]) / (weights @ together[:, 1]))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return float(low), float(high)


def over_seeds(table: np.ndarray, scale: Scale | None = None, seed: int = 0) -> Estimate:
    """The mean of a table of shape (seeds, problems), with an interval over both seeds and problems.

    The interval over problems, of the mean over seeds, is widened for the seeds (MOVER: Zou and Donner 2008, Statistics
    in Medicine 27:1693). The squares of the two half-widths add up. The seeds' half-width is Student's t times the
    standard error of their component of variance in the two-way layout. With one seed, or seeds that are all equal, it
    is the interval over problems alone.

    The simulations of scripts/coverage.py decided two choices. The half problems at the ends of the scale are means
    over seeds too. So they are nearer to its middle, by the root of the number of seeds. And only half the residual
    mean square is subtracted from that of the seeds. With few seeds, the whole often leaves nothing although seeds
    matter.
    """
    table = np.asarray(table, dtype=float)
    seeds, problems = table.shape
    one = table.mean(axis=0)
    if seeds == 1 or (table == table[0]).all():  # every seed has the same answers of the base policy
        return mean_over_problems(one, seed) if scale == (0.0, 1.0) else mean(one, scale, seed)
    middle, half = (sum(scale) / 2, (scale[1] - scale[0]) / 2 / math.sqrt(seeds)) if scale else (0.0, 0.0)
    overall = mean(one, (middle - half, middle + half) if scale else None, seed)
    by_seed = table.mean(axis=1, keepdims=True)
    residual = table - by_seed - one + overall.value
    ms_seeds = problems * float(by_seed.var(ddof=1))
    ms_residual = float((residual**2).sum()) / max(1, (seeds - 1) * (problems - 1))
    widening = student(seeds - 1) * math.sqrt(max(0.0, ms_seeds - ms_residual / 2) / (seeds * problems))
    least, most = scale or (-math.inf, math.inf)
    low = overall.value - math.hypot(overall.value - overall.low, widening)
    high = overall.value + math.hypot(overall.high - overall.value, widening)
    return Estimate(overall.value, max(least, low), min(most, high), problems)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # the quantile alone: scipy.stats takes long to import

    return float(stdtrit(freedom, 0.975))


def p_value(estimate: Estimate) -> float:
    """Two-sided p of a difference of 0, read off its 95 % interval as if the estimate were normal (Altman and Bland
    2011, BMJ 343:d2304)."""
    half = estimate.value - estimate.low if estimate.value > 0 else estimate.high - estimate.value
    if half <= 0:
        return 0.0 if estimate.value else 1.0
    return 2 * NormalDist().cdf(-Z * abs(estimate.value) / half)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the same order (Holm 1979)."""
    corrected, least = [0.0] * len(ps), 0.0
    for done, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = max(least, min(1.0, (len(ps) - done) * ps[i]))
        corrected[i] = least
    return corrected


def matrix(runs: Sequence[Mapping[str, float]]) -> np.ndarray:
    """A table of shape (seeds, problems) from one mapping problem id -> value for each seed, problems sorted by id.

    Raises ValueError if the problems differ.
    """
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("the runs were evaluated on different held-out problems")
    names = sorted(runs[0])
    return np.array([[run[name] for name in names] for run in runs], dtype=float)


def difference(
    after: Sequence[Mapping[str, float]], before: Sequence[Mapping[str, float]], scale: Scale | None = (0.0, 1.0)
) -> Estimate:
    """The mean over seeds and problems of after - before, paired seed by seed and problem by problem.

    `scale` is the range of the values; None: unbounded. Raises ValueError if the problems differ.
    """
    both = matrix([*after, *before])
    span = scale and scale[1] - scale[0]
    return over_seeds(both[: len(after)] - both[len(after) :], None if span is None else (-span, span))
