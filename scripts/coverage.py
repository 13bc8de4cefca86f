"""The two tables in docs/compare.md, by simulations.

    python scripts/coverage.py [--simulations 2000]

The first table has the share of 95 % intervals of selfimprove/report/statistics.py that hold the true value. The second
has the share of comparisons that see a true difference of the size that selfimprove/report/power.py gives. It has a
quarter as many simulations.

Simulated problems differ in difficulty (a normal logit). The true value is the mean over all problems and seeds that
could have been drawn, by quadrature. For "difference: none" the last column is the share in which two equal methods
come out as different; it should be 5 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from selfimprove.report.power import Components
from selfimprove.report.statistics import (
    Estimate,
    accuracy,
    mean,
    mean_over_problems,
    over_seeds,
    paired_difference,
    ratio,
)

Draw = Callable[[np.random.Generator, int], Estimate]
SIZES = (50, 200, 1000)
SPREAD = 2.0  # standard deviation of the problems' logits
CHANCE = 0.7  # and of what a seed changes in one problem's


def expected(centre: float, spread: float) -> float:
    """Mean of the logistic of a normal variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    return float((weights / weights.sum()) @ (1 / (1 + np.exp(-(centre + spread * nodes)))))


def single(p: float) -> tuple[Draw, float]:
    """One answer a problem, right with probability p."""
    return lambda rng, n: accuracy(rng.random(n) < p), p


def paired(worse: float, better: float) -> tuple[Draw, float]:
    """Shares of problems that one policy loses and gains against another."""

    def draw(rng: np.random.Generator, n: int) -> Estimate:
        lot = rng.random(n)
        return paired_difference(lot < worse, lot < better)  # of the smaller share both are solved

    return draw, better - worse


def changed(worse: float, better: float) -> tuple[Draw, float]:
    """As `paired`, where lost and gained problems are different ones."""

    def draw(rng: np.random.Generator, n: int) -> Estimate:
        lot = rng.random(n)
        return paired_difference(lot < worse, (lot >= worse) & (lot < worse + better))

    return draw, better - worse


def clustered(centre: float, samples: int) -> tuple[Draw, float]:
    """Mean over problems of several samples each."""

    def draw(rng: np.random.Generator, n: int) -> Estimate:
        chance = 1 / (1 + np.exp(-rng.normal(centre, SPREAD, n)))
        return mean_over_problems(rng.binomial(samples, chance) / samples)

    return draw, expected(centre, SPREAD)


def seeded(seeds: int, between: float, gain: float = 0.7) -> tuple[Draw, float]:
    """Difference between `seeds` trained policies and their base, whose seeds differ by `between` in logits."""

    def draw(rng: np.random.Generator, n: int) -> Estimate:
        theta, luck = rng.normal(0, SPREAD, n), rng.logistic(size=n)  # greedy answers of one problem go together
        before = theta + rng.normal(0, CHANCE, n) > luck
        shift = gain + rng.normal(0, between, (seeds, 1))
        after = theta + shift + rng.normal(0, CHANCE, (seeds, n)) > luck
        return over_seeds(after.astype(float) - before, (-1.0, 1.0))

    spread = np.sqrt(SPREAD**2 + CHANCE**2)
    return draw, expected(gain, float(np.hypot(spread, between))) - expected(0, float(spread))


def same(seeds: int, between: float) -> tuple[Draw, float]:
    """Difference between two methods that are the same, each with seeds of its own luck."""

    def draw(rng: np.random.Generator, n: int) -> Estimate:
        theta, luck = rng.normal(0, SPREAD, n), rng.logistic(size=n)
        both = [theta + rng.normal(0, between, (seeds, 1)) + rng.normal(0, CHANCE, (seeds, n)) > luck for _ in range(2)]
        return over_seeds(both[0].astype(float) - both[1], (-1.0, 1.0))

    return draw, 0.0


def lengths() -> tuple[Draw, float]:
    """Nats a token: answers of different length, each token with the same mean."""

    def draw(rng: np.random.Generator, n: int) -> Estimate:
        tokens = 20 + rng.poisson(40, n)
        return ratio(rng.normal(0.05 * tokens, 0.3 * np.sqrt(tokens)), tokens.astype(float))

    return draw, 0.05


def nats() -> tuple[Draw, float]:
    """Nats an answer, on no scale, and skewed."""
    return lambda rng, n: mean(rng.gamma(4.0, 0.5, n), None), 2.0


CASES: dict[str, tuple[Draw, float]] = {
    "accuracy: 46 %": single(0.46),
    "accuracy: 90 %": single(0.9),
    "difference: +15 points (20 % gained, 5 % lost)": changed(0.05, 0.2),
    "difference: +4 points (6 % gained, 2 % lost)": changed(0.02, 0.06),
    "difference: +10 points, nothing lost": paired(0.0, 0.1),
    "difference: none (10 % gained, 10 % lost)": changed(0.1, 0.1),
    "8 samples a problem, mean 65 %": clustered(1.0, 8),
    "8 samples a problem, mean 88 %": clustered(3.0, 8),
    "difference, 2 seeds that hardly differ": seeded(2, 0.05),
    "difference, 3 seeds that hardly differ": seeded(3, 0.05),
    "difference, 3 seeds that differ": seeded(3, 0.2),
    "difference, 3 seeds that differ much": seeded(3, 0.5),
    "difference, 5 seeds that differ much": seeded(5, 0.5),
    "difference: none, 3 seeds that hardly differ": same(3, 0.05),
    "difference: none, 3 seeds that differ": same(3, 0.2),
    "nats a token": lengths(),
    "nats an answer, skewed": nats(),
}


def coverage(case: str, n: int, simulations: int, seed: int = 0) -> tuple[float, float]:
    """Share of simulated intervals that hold the truth, and their mean width."""
    draw, truth = CASES[case]
    rng = np.random.default_rng(seed)
    found = [draw(rng, n) for _ in range(simulations)]
    return float(np.mean([e.low <= truth <= e.high for e in found])), float(np.mean([e.high - e.low for e in found]))


POWERS = {  # standard deviations of problems, of seeds and of the rest; seeds
    "1 seed": ((0.3, 0.0, 0.0), 1),
    "2 seeds that do not differ": ((0.2, 0.0, 0.3), 2),
    "3 seeds that do not differ": ((0.2, 0.0, 0.3), 3),
    "3 seeds that differ": ((0.2, 0.05, 0.3), 3),
    "5 seeds that differ": ((0.2, 0.05, 0.3), 5),
    "10 seeds that differ": ((0.2, 0.05, 0.3), 10),
}


def power(case: str, n: int, simulations: int, part: float = 1.0, seed: int = 0) -> tuple[float, float]:
    """The share of simulated comparisons that see a true difference of `part` of the stated size, and that size."""
    (problems, between, rest), seeds = POWERS[case]
    said = Components(problems**2, between**2, rest**2, span=0.0).shows(n, seeds)
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        lots = rng.normal(0, between, (seeds, 1)) + rng.normal(0, rest, (seeds, n))
        return part * said + rng.normal(0, problems, n) + lots

    return float(np.mean([over_seeds(draw()).apart for _ in range(simulations)])), said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    print("| covers, % (mean width) | " + " | ".join(f"{n:,} problems" for n in SIZES) + " |")
    print("| --- |" + " --- |" * len(SIZES))
    for case in CASES:
        row = (coverage(case, n, simulations) for n in SIZES)
        print(
            f"| {case} | " + " | ".join(f"{100 * share:.1f} ({width:.3f})" for share, width in row) + " |", flush=True
        )
    print("\n| seen, % (size) | " + " | ".join(f"{n:,} problems" for n in SIZES) + " |")
    print("| --- |" + " --- |" * len(SIZES))
    for case in POWERS:
        row = (power(case, n, simulations // 4) for n in SIZES)
        print(f"| {case} | " + " | ".join(f"{100 * share:.0f} ({size:.3f})" for share, size in row) + " |", flush=True)


if __name__ == "__main__":
    main()
