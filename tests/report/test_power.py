"""What a comparison can show: against simulated comparisons, by hand, and in the tables."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from folders import write_run

from selfimprove.report import statistics as st
from selfimprove.report.compare import compare
from selfimprove.report.planning import with_plan
from selfimprove.report.power import Components

_spec = importlib.util.spec_from_file_location("coverage_script", Path(__file__).parents[2] / "scripts" / "coverage.py")
coverage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage)

WIDE = (-1.0, 1.0)  # of differences of scores from 0 to 1


def drawn(rng, problems, seeds, parts, shift):
    """Differences of a true mean `shift`, with these standard deviations of problems, seeds and the rest."""
    of_problems, of_seeds, of_rest = parts
    noise = rng.normal(0, of_rest, (seeds, problems))
    return shift + rng.normal(0, of_problems, problems) + rng.normal(0, of_seeds, (seeds, 1)) + noise


@pytest.mark.parametrize("case", ["1 seed", "3 seeds that do not differ", "5 seeds that differ"])
def test_a_difference_of_that_size_is_seen_about_four_times_in_five(case):
    share, _ = coverage.power(case, 150, 300)
    assert 0.7 <= share <= 0.88
    assert coverage.power(case, 150, 300, part=0.5)[0] < 0.5


def test_components_are_found_again():
    parts = (0.3, 0.1, 0.2)
    rng = np.random.default_rng(2)
    found = [Components.of(drawn(rng, 300, 4, parts, 0.1), (0.0, 1.0)) for _ in range(200)]
    assert np.mean([c.problems for c in found]) == pytest.approx(0.09, rel=0.05)
    assert np.mean([c.seeds for c in found]) == pytest.approx(0.01, rel=0.15)
    assert np.mean([c.rest for c in found]) == pytest.approx(0.04, rel=0.05)


def test_by_hand():
    of_one_seed = Components.of(np.array([[0.0, 1.0, 0.0, 1.0]]), None)
    assert (of_one_seed.problems, of_one_seed.seeds) == (pytest.approx(1 / 3), 0.0)
    assert of_one_seed.shows(100, 1) == pytest.approx((1.959964 + 0.841621) * (1 / 3 / 100) ** 0.5)
    assert of_one_seed.shows(400, 1) == pytest.approx(of_one_seed.shows(100, 1) / 2)


def test_equal_scores_do_not_show_every_difference():
    same = Components.of(np.zeros((1, 300)), (0.0, 1.0))
    seen = st.mean(np.repeat([1.0, 0.0], [4, 296]), WIDE)
    assert 0.005 < same.shows(300, 1) < 0.015
    assert seen.apart, "4 of 300 is seen"


def test_a_null_says_what_would_have_been_seen_and_the_plan_what_more_would_show(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(60) < 0.5
    for seed in (0, 1):
        flipped = base ^ (rng.random((2, 60)) < 0.1)
        write_run(tmp_path / f"rs{seed}", [base, flipped[0]], seed=seed)
        write_run(tmp_path / f"dpo{seed}", [base, flipped[1]], seed=seed, method__name="iterative_dpo")
    found = with_plan(compare([tmp_path]))
    note = next(t for t in found.tables if t.title == "Held-out accuracy").note
    assert "No difference from the baseline is seen for iterative_dpo (a true one of " in note
    plan = found.tables[-1]
    assert {row[0] for row in plan.rows} == {"iterative_dpo"}
    assert {(row[1], row[2]) for row in plan.rows} == {(n, k) for n in (60, 120, 240) for k in (2, 3, 5, 10)}
    points = {(row[1], row[2]): float(row[3].split()[0]) for row in plan.rows}
    assert points[240, 10] < points[60, 10] < points[60, 3] < points[60, 2]
