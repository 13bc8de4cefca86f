from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from selfimprove.report import metrics
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict


def verdicts(*answers: str | None, gold: str = "A") -> list[Verdict]:
    status = {None: "unparseable", gold: "correct"}
    return [Verdict(f"t{i}", status.get(a, "wrong"), float(a == gold), a) for i, a in enumerate(answers)]  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- intervals
def test_wilson_closed_form() -> None:
    hits, n, z = 37, 120, 1.959963984540054
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    estimate = metrics.accuracy([True] * hits + [False] * (n - hits))
    assert estimate.value == p
    assert estimate.n == n
    assert estimate.low == pytest.approx(centre - half, abs=1e-12)
    assert estimate.high == pytest.approx(centre + half, abs=1e-12)


def test_accuracy_stays_honest_at_the_edge() -> None:
    perfect = metrics.accuracy([True] * 10)
    assert (perfect.value, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(10 / (10 + 1.96**2), abs=1e-3)  # not the zero width of a normal interval
    with pytest.raises(ValueError, match="no problems"):
        metrics.accuracy([])


@pytest.mark.parametrize(("n", "p"), [(30, 0.5), (100, 0.3), (200, 0.9)])
def test_accuracy_interval_covers(n: int, p: float) -> None:
    rng = np.random.default_rng(0)
    estimates = [metrics.accuracy(rng.random(n) < p) for _ in range(400)]
    assert 0.93 <= np.mean([e.low <= p <= e.high for e in estimates]) <= 0.975


def test_clustered_interval_covers_where_pooling_samples_does_not() -> None:
    """100 problems of very different difficulty x 8 samples; the target is the mean over the population."""
    rng = np.random.default_rng(1)
    truth = beta.mean(0.5, 0.5)
    clustered, pooled = [], []
    for _ in range(400):
        drawn = rng.random((100, 8)) < rng.beta(0.5, 0.5, size=(100, 1))
        mean = metrics.mean_at_k([verdicts(*("A" if hit else "B" for hit in row)) for row in drawn])
        clustered.append(mean.low <= truth <= mean.high)
        naive = metrics.accuracy(drawn.ravel())
        pooled.append(naive.low <= truth <= naive.high)
    assert 0.93 <= np.mean(clustered) <= 0.975
    assert np.mean(pooled) < 0.75


def test_paired_difference_covers_and_is_narrower_than_unpaired() -> None:
    rng = np.random.default_rng(2)
    cover, width, unpaired = [], [], []
    for seed in range(400):
        before = rng.random(150) < 0.4
        after = np.where(before, rng.random(150) < 0.9, rng.random(150) < 0.2)  # truth: 0.4*0.9 + 0.6*0.2 - 0.4
        difference = metrics.paired_difference(before, after, seed)
        cover.append(difference.low <= 0.08 <= difference.high)
        width.append(difference.high - difference.low)
        a, b = metrics.accuracy(before), metrics.accuracy(after)
        unpaired.append(math.hypot(a.high - a.low, b.high - b.low))
    assert 0.93 <= np.mean(cover) <= 0.975
    assert np.mean(width) < 0.8 * np.mean(unpaired)


def test_paired_difference_by_hand() -> None:
    difference = metrics.paired_difference([0, 0, 1, 1], [1, 0, 1, 0.5])
    assert difference.value == pytest.approx(0.125)
    assert difference.n == 4
    assert difference == metrics.paired_difference([0, 0, 1, 1], [1, 0, 1, 0.5])  # seeded
    same = metrics.paired_difference([0, 1, 1], [0, 1, 1])
    assert same.value == 0
    assert same.low < -0.3
    assert same.high > 0.3
    assert metrics.paired_difference([0] * 1000, [0] * 1000).high < 0.005
    with pytest.raises(ValueError, match="3 problems before and 2 after"):
        metrics.paired_difference([0, 1, 1], [0, 1])
    with pytest.raises(ValueError, match="no problems"):
        metrics.paired_difference([], [])


# ------------------------------------------------------------------------------------------------------------- pass@k
def test_pass_at_k_equals_enumeration() -> None:
    for n in range(1, 9):
        for c in range(n + 1):
            samples = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = [any(subset) for subset in itertools.combinations(samples, k)]
                assert metrics.pass_at_k(n, c, k) == pytest.approx(np.mean(subsets), abs=1e-12), (n, c, k)


def test_pass_at_k_is_stable() -> None:
    exact = 1 - math.comb(10**4 - 37, 5000) / math.comb(10**4, 5000)  # whole numbers of 3000 digits
    assert metrics.pass_at_k(10**4, 37, 5000) == pytest.approx(exact, rel=1e-12)
    assert metrics.pass_at_k(10**9, 1, 1) == pytest.approx(1e-9, rel=1e-12)
    assert metrics.pass_at_k(10**6, 500_000, 1000) == 1.0
    assert metrics.pass_at_k(4, 0, 4) == 0.0
    for bad in [(4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)]:
        with pytest.raises(ValueError, match="pass@k"):
            metrics.pass_at_k(*bad)


def test_pass_and_mean_over_problems_by_hand() -> None:
    problems = [verdicts("A", "B", "C", "B"), verdicts("B", "B", "B", "B"), verdicts("A", "A", None, "B")]
    assert metrics.pass_at_k_over(problems, 2).value == pytest.approx((0.5 + 0 + 5 / 6) / 3)
    assert metrics.pass_at_k_over(problems, 4).value == pytest.approx(2 / 3)
    assert metrics.mean_at_k(problems).value == pytest.approx((1 / 4 + 0 + 2 / 4) / 3)
    full = metrics.pass_at_k_over([verdicts("A", "B")] * 20, 2)
    assert full.low < 0.9
    assert full.high == 1.0


# -------------------------------------------------------------------------------------------------------------- maj@k
@pytest.mark.parametrize(
    ("answers", "value"),
    [
        (("A", "A", "B"), 1.0),
        (("A", "B", "B"), 0.0),
        (("A", "A", "B", "B"), 1 / 2),
        (("A", "B", "C"), 1 / 3),
        (("A", None, None, None), 1.0),
        ((None, None), 0.0),
        (("A", " A ", "B", "B", "C\n"), 1 / 2),
    ],
)
def test_maj_at_k_by_hand(answers: tuple[str | None, ...], value: float) -> None:
    status = [None if a is None else a.strip() for a in answers]
    group = verdicts(*status)
    for verdict, answer in zip(group, answers, strict=True):
        verdict.extracted = answer
    assert metrics.maj_at_k([group], len(group)).value == pytest.approx(value)


def test_maj_of_fewer_samples_is_unbiased() -> None:
    group = verdicts("A", "A", "A", "B", "B", "C", None)

    def one(subset: tuple[Verdict, ...]) -> float:
        return metrics.maj_at_k([subset], 3).value

    exact = np.mean([one(subset) for subset in itertools.combinations(group, 3)])
    assert metrics.maj_at_k([group] * 100, 3).value == pytest.approx(exact, abs=0.01)
    assert metrics.maj_at_k([group], 1, seed=3).value == pytest.approx(3 / 7, abs=0.12)
    with pytest.raises(ValueError, match="maj@k"):
        metrics.maj_at_k([group], 8)


# --------------------------------------------------------------------------------------------------- flat dictionaries
def attempt(problem: str, index: int, verdict: Verdict, text: str = "", tokens: int = 1, **other: Any) -> Attempt:
    """`steps` is the number of samples, of which all but the last are shared by a problem's attempts."""
    shared = [Sample([1, 2], [9], [0.0], "step", "stop", seed=7)] * (other.get("steps", 1) - 1)
    last = Sample([1, 2, 3], [5] * tokens, [0.0] * tokens, text, other.get("finish", "stop"), seed=100 + index)
    trajectory = Trajectory(problem, [*shared, last], other.get("metadata", {}), id=f"{problem}/{index}")
    return Attempt(Problem(problem, "?"), trajectory, verdict)


def evaluated(problem: str, greedy: str | None, *sampled: str | None) -> list[Attempt]:
    how = ["greedy", *["sampled"] * len(sampled)]
    pairs = zip(verdicts(greedy, *sampled), how, strict=True)
    return [attempt(problem, i, v, metadata={"decoding": decoding}) for i, (v, decoding) in enumerate(pairs)]


def test_evaluation_of_greedy_answers() -> None:
    result = metrics.evaluation(iter([evaluated(str(i), a) for i, a in enumerate(["A", "B", None, "A"])]))
    interval = metrics.accuracy([True, True, False, False])
    assert result == {"accuracy": 0.5, "accuracy_low": interval.low, "accuracy_high": interval.high, "n": 4}


def test_evaluation_with_samples() -> None:
    result = metrics.evaluation([evaluated("p", "B", "A", "A", "B"), evaluated("q", "A", "A", "B", "B")])
    assert result["accuracy"] == 0.5  # the greedy answers alone
    named = {name: value for name, value in result.items() if "@" in name and not name.endswith(("_low", "_high"))}
    expected = {"mean@3": 1 / 2, "pass@1": 1 / 2, "pass@2": (1 + 2 / 3) / 2, "pass@3": 1, "maj@3": 1 / 2}
    assert named == pytest.approx(expected)
    assert result["pass@2_low"] < result["pass@2"] < result["pass@2_high"]


def test_change_pairs_by_problem() -> None:
    before = [evaluated("p", "A"), evaluated("q", "B"), evaluated("r", "B"), evaluated("s", "B")]
    after = [evaluated("s", "B"), evaluated("r", "A"), evaluated("q", "A"), evaluated("p", "A")]  # another order
    assert metrics.change(before, after) == metrics.paired_difference([1, 0, 0, 0], [1, 1, 1, 0])
    with pytest.raises(ValueError, match="not the same"):
        metrics.change(before, after[:3])


def test_cost_counts_a_shared_step_once() -> None:
    first = [
        attempt("p", i, v, tokens=2 + i, finish="length" if i else "stop") for i, v in enumerate(verdicts("A", "B"))
    ]
    second = [attempt("q", i, v, tokens=4, steps=2) for i, v in enumerate(verdicts("A", "B"))]
    expected = {
        "trajectories": 4,
        "tokens/prompt": 4 * 3 + 2,
        "tokens/sampled": 2 + 3 + 4 + 4 + 1,
        "completion/mean_tokens": 14 / 5,
        "completion/truncated": 1 / 5,
    }
    assert metrics.cost(a.trajectory for a in first + second) == pytest.approx(expected)
    assert metrics.cost(iter([]))["tokens/sampled"] == 0


def test_round_metrics_by_hand() -> None:
    texts = ["x = 1", "x  =\n1", "x = 2", "no"]
    problems = [
        [attempt("p", i, v, texts[i]) for i, v in enumerate(verdicts("A", "A", "B", None))],
        [attempt("q", i, v, texts[i], steps=2) for i, v in enumerate(verdicts("A", "B"))],
    ]
    expected = {
        "explore/pass@1": 1 / 2,
        "explore/pass@2": ((1 - 1 / 6) + 1) / 2,
        "explore/pass@4": 1,  # of the one problem with four attempts
        "explore/distinct_answers": 2,
        "explore/distinct_solutions": (3 + 1) / 2,  # "x = 1" comes twice in each
        "explore/distinct_correct": 1,
        "exploit/available_reward": 3 / 6,
        "exploit/best_reward": 1,
        "exploit/kept_reward": 2 / 3,
        "exploit/keep_rate": 3 / 6,
    }
    assert metrics.round_metrics(iter(problems), kept={"p/0", "q/0", "q/1"}) == pytest.approx(expected)
    assert "exploit/kept_reward" not in metrics.round_metrics(problems, kept=())
    assert metrics.round_metrics(iter([]), kept=()) == {}


def test_round_metrics_holds_one_group_at_a_time() -> None:
    alive: weakref.WeakSet[Group] = weakref.WeakSet()
    most = 0

    def groups() -> Iterator[list[Attempt]]:
        nonlocal most
        for number in range(20):
            group = Group(attempt(str(number), i, v) for i, v in enumerate(verdicts("A", "B")))
            alive.add(group)
            yield group
            del group
            most = max(most, len(alive))

    metrics.round_metrics(groups(), kept=())
    assert most <= 1


class Group(list[Attempt]):
    """A list that can be referred to weakly."""

    __hash__ = object.__hash__  # type: ignore[assignment]
