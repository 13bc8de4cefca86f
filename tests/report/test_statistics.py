"""Intervals cover, differences are found where they are, and two equal methods rarely differ."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from selfimprove.report import statistics as st
from selfimprove.report.metrics import pass_at_k

_spec = importlib.util.spec_from_file_location("coverage_script", Path(__file__).parents[2] / "scripts" / "coverage.py")
coverage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage)


@pytest.mark.parametrize(
    ("case", "n", "simulations"),
    [
        ("accuracy: 46 %", 50, 1500),
        ("difference: +15 points (20 % gained, 5 % lost)", 50, 1500),
        ("difference: +4 points (6 % gained, 2 % lost)", 200, 1500),
        ("8 samples a problem, mean 65 %", 50, 1500),
        ("8 samples a problem, mean 88 %", 200, 600),
        ("difference, 3 seeds that differ", 50, 1500),
        ("difference, 5 seeds that differ much", 200, 600),
        ("nats a token", 50, 600),
    ],
)
def test_intervals_cover_93_to_97_percent(case, n, simulations):
    """To two standard errors of the simulated share; that the levels are 95 % exactly, tests below say."""
    error = 2 * math.sqrt(0.05 * 0.95 / simulations)
    share, _ = coverage.coverage(case, n, simulations, seed=1)
    assert 0.93 - error <= share <= 0.97 + error


def test_resampling_three_seeds_covers_far_less_than_is_claimed():
    """Why `over_seeds` does not: the percentile bootstrap over both, as it was here before."""
    draw, truth = coverage.seeded(3, 0.5)
    kept = []

    def bootstrap(table, scale):
        rng = np.random.default_rng(0)
        s, n = table.shape
        some = rng.multinomial(s, np.full(s, 1 / s), size=150) / s @ table
        means = (some * rng.multinomial(n, np.full(n, 1 / n), size=150) / n).sum(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        kept.append(st.over_seeds(table, scale))
        return st.Estimate(table.mean(), low, high, n)

    original, coverage.over_seeds = coverage.over_seeds, bootstrap
    try:
        rng = np.random.default_rng(2)
        naive = [draw(rng, 600) for _ in range(150)]
    finally:
        coverage.over_seeds = original
    assert np.mean([e.low <= truth <= e.high for e in naive]) < 0.88
    assert np.mean([e.low <= truth <= e.high for e in kept]) > 0.92


@pytest.mark.parametrize(("seeds", "n"), [(1, 200), (3, 200)])
def test_two_identical_methods_rarely_differ(seeds, n):
    draw, _ = coverage.same(seeds, 0.1 if seeds > 1 else 0.0)
    rng = np.random.default_rng(3)
    assert np.mean([draw(rng, n).apart for _ in range(200)]) <= 0.07


def test_a_known_difference_is_found():
    rng = np.random.default_rng(4)
    before = [{f"p{i}": float(hit) for i, hit in enumerate(rng.random(300) < 0.4)} for _ in range(3)]
    after = [{p: max(v, float(rng.random() < 0.2)) for p, v in run.items()} for run in before]
    found = st.difference(after, before)
    assert found.low < 0.6 * 0.2 < found.high
    assert found.apart
    assert found.value == pytest.approx(np.mean([a[p] - b[p] for a, b in zip(after, before, strict=True) for p in a]))


def test_means_of_zeros_and_ones_have_jeffreys_interval(monkeypatch):
    monkeypatch.setattr(st, "RESAMPLES", 400_000)  # ends to a hundredth of the interval's width
    n, hits = 60, 21
    found = st.mean(np.array([1.0] * hits + [0.0] * (n - hits)), (0.0, 1.0))
    exact = beta.ppf([0.025, 0.975], hits + 0.5, n - hits + 0.5)
    assert [found.low, found.high] == pytest.approx(exact, abs=0.001)


def test_accuracy_has_wilsons_interval_of_95_percent():
    n, p, z = 60, 21 / 60, 1.959964
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    found = st.accuracy([True] * 21 + [False] * 39)
    assert [found.low, found.high] == pytest.approx(
        [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
    )


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.7062), (3, 4.30265), (5, 2.77645)])
def test_where_seeds_alone_differ_the_interval_is_students_of_95_percent(seeds, quantile):
    """Every problem has the same value in a seed, so that problems add nothing. The quantiles are from a table."""
    each = np.linspace(0.2, 0.8, seeds)
    found = st.over_seeds(np.repeat(each[:, None], 40, axis=1))
    half = quantile * each.std(ddof=1) / math.sqrt(seeds)
    assert [found.low, found.value, found.high] == pytest.approx([0.5 - half, 0.5, 0.5 + half], rel=1e-4)


def test_pass_at_k_is_the_chance_of_a_correct_one_among_k_drawn():
    rng = np.random.default_rng(5)
    right = np.arange(16) < 3
    drawn = rng.permuted(np.tile(right, (20_000, 1)), axis=1)[:, :4].any(axis=1)
    assert pass_at_k(16, 3, 4) == pytest.approx(1 - math.comb(13, 4) / math.comb(16, 4))
    assert pass_at_k(16, 3, 4) == pytest.approx(drawn.mean(), abs=0.01)


def test_equal_seeds_say_no_more_than_one():
    one = np.array([[1.0, 0.0, 1.0, 1.0, 0.0]])
    assert st.over_seeds(np.repeat(one, 3, axis=0), (0.0, 1.0)) == st.accuracy(one[0] == 1)


def test_a_seed_that_went_otherwise_widens_the_interval():
    rng = np.random.default_rng(6)
    table = (rng.random((3, 100)) < 0.5) - 0.5
    narrow = st.over_seeds(table, (-1.0, 1.0))
    table[0] = 0.5
    wide = st.over_seeds(table, (-1.0, 1.0))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert -1 <= wide.low <= wide.high <= 1


def test_an_estimate_lies_in_its_interval_at_the_edge_of_the_scale():
    for values in ([1.0] * 8, [-1.0] * 8, [0.0] * 8):
        found = st.mean(np.array(values), (-1.0, 1.0))
        assert found.low <= found.value <= found.high
        assert found.high - found.low > 0.05


def test_a_ratio_is_of_sums_and_not_the_mean_of_ratios():
    found = st.ratio(np.array([1.0, 9.0]), np.array([10.0, 30.0]))
    assert found.value == pytest.approx(0.25)
    assert 0.1 <= found.low < found.value < found.high <= 0.3


@pytest.mark.parametrize(
    "call",
    [lambda: st.mean(np.array([]), None), lambda: st.ratio(np.array([]), np.array([])), lambda: st.accuracy([])],
)
def test_nothing_has_no_mean(call):
    with pytest.raises(ValueError, match="no problems"):
        call()
