"""B-STaR: the balance score by hand, what it chooses, what is kept, and a whole small study."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from selfimprove import store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.bstar import Grid, Response, adapt, balance, distinct, rate_of_round, select, smallest_cap
from selfimprove.report.metrics import normalise
from selfimprove.report.runs import RunData
from selfimprove.studies import Claim, Lab, Result
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict

THRESHOLDS = Grid(-1.0, 1.0, 0.1)
SMALLER = ("dataset.levels=[2,3]", "dataset.train_size=16", "dataset.dev_size=6")


def attempt(
    problem: str, text: str, status: Any = "correct", steps: list[float] | None = None, **sample: Any
) -> Attempt:
    fields: dict[str, Any] = {"finish": "stop", "temperature": 1.0} | sample
    one = Sample([1, 2], [ord(c) for c in text], [-0.1] * len(text), text, seed=0, **fields)
    name = f"{problem}/{text}/{fields['temperature']}"
    verdict = Verdict(name, status, float(status == "correct"), step_rewards=steps)
    return Attempt(Problem(problem, "?"), Trajectory(problem, [one], id=name), verdict)


def responses(*pairs: tuple[float, bool]) -> list[Response]:
    return [Response(r, c, Example("p", [], [], [])) for r, c in sorted(pairs, reverse=True)]


PROBLEMS = [
    responses((1.2, True), (1.2, True), (1.0, True), (0.2, False)),
    responses((1.2, True), (0.0, False), (0.0, False), (0.0, False)),
    responses((0.0, False), (0.0, False)),
]


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-1.0, (3 / 4 * 3 / 4 + 1 / 4 * 1 / 4 + 0) / 3),  # everything is kept; the third has nothing correct
        (0.0, (3 / 4 * 3 / 4 + 1 / 4 * 1) / 3),  # the third keeps nothing: 0, and it counts
        (0.5, (3 / 4 * 1 + 1 / 4 * 1) / 3),
        (1.0, (2 / 4 * 1 + 1 / 4 * 1) / 3),  # above 1, not at it
        (1.2, 0.0),
    ],
)
def test_balance_score_by_hand(threshold: float, expected: float) -> None:
    assert balance(PROBLEMS, threshold, wanted=4) == pytest.approx(expected, abs=1e-12)


def test_more_than_wanted_correct_responses_count_no_more() -> None:
    assert balance([responses(*[(1.0, True)] * 5, (0.9, False))], 0.0, wanted=2) == pytest.approx(5 / 6)


def test_balance_score_of_the_best_few() -> None:
    assert smallest_cap([4, 1, 0], 3) == 2
    assert smallest_cap([4, 1, 0], 99) == 4
    assert balance(PROBLEMS, 0.0, wanted=4, target=3) == pytest.approx((2 / 4 + 1 / 4) / 3)


def test_every_temperature_is_scored() -> None:
    """The released scripts lose the eight of these that end in a zero between two spellings of their files' names."""
    grid = Grid(0.5, 1.2, 0.05)
    assert grid.values == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2]
    for good in grid.values:
        groups = [
            [
                attempt(p, f"{p} {t} {i}", "correct" if t == good else "wrong", temperature=t)
                for t in grid.values
                for i in range(3)
            ]
            for p in ("a", "b")
        ]
        found = adapt(groups, thresholds=THRESHOLDS, wanted=4, step_weight=0.2)
        assert found.overrides["generate"] == {"temperature": good}
        assert {row["temperature"] for row in found.surface} == set(grid.values)
        assert len(found.surface) == 15 * 21
        assert found.metrics == {
            "balance": pytest.approx(0.75),
            "distinct_solutions": 3,
            "distinct_correct": 3,
        }


def test_the_threshold_keeps_out_what_lowers_the_score() -> None:
    group = [attempt("a", f"right {i}", "correct", [1.0, 1.0]) for i in range(2)]
    group += [attempt("a", f"wrong {i}", "wrong", [1.0, 0.0]) for i in range(6)]
    found = adapt([group], thresholds=THRESHOLDS, wanted=2, step_weight=0.2)
    assert found.overrides["filter"] == {"threshold": 0.0}
    assert found.metrics["balance"] == 1
    assert adapt([group], thresholds=THRESHOLDS, wanted=2, step_weight=0.2, hand_over=False).overrides.keys() == {
        "generate"
    }


def test_reward_is_the_outcome_plus_the_worst_step() -> None:
    group = [
        attempt("a", "all right", "correct", [1.0, 1.0]),
        attempt("a", "lucky", "correct", [0.0, 1.0]),
        attempt("a", "no steps", "correct"),
        attempt("a", "half", "wrong", [0.5, 1.0]),
    ]
    assert [r.reward for r in distinct(group, 0.2)] == pytest.approx([1.2, 1.0, 1.0, 0.1])
    assert [r.reward for r in distinct(group, 0.0)] == [1, 1, 1, 0]


def test_repetitions_cut_off_and_unjudged_responses_are_left_out() -> None:
    group = [
        attempt("a", "1 + 2 = 3"),
        attempt("a", "1 + 2  = 3\n"),
        attempt("a", "2 + 1 = 3"),
        attempt("a", "cut", finish="length"),
        attempt("a", "slow", "timeout"),
    ]
    assert [r.example.trajectory_ids[0] for r in distinct(group, 0.2)] == ["a/1 + 2 = 3/1.0", "a/2 + 1 = 3/1.0"]


GROUPS = [
    [attempt("a", f"a{i}", "correct", [1.0 - i / 10]) for i in range(5)] + [attempt("a", "aw", "wrong", [0.0])],
    [attempt("b", f"b{i}", "correct", [1.0]) for i in range(2)],
    [attempt("c", "cw", "wrong", [0.0])],
]


def test_the_best_few_of_each_problem_make_the_target() -> None:
    kept = list(select(GROUPS, threshold=0.5, target_size=4, step_weight=0.2, seed=1))
    assert [(e.problem_id, e.trajectory_ids[0]) for e in kept[:2]] == [("a", "a/a0/1.0"), ("a", "a/a1/1.0")]
    assert sorted(e.trajectory_ids[0] for e in kept[2:]) == ["b/b0/1.0", "b/b1/1.0"]
    everything = list(select(GROUPS, threshold=0.5, target_size=99, step_weight=0.2, seed=1))
    assert len(everything) == 7
    orders = {tuple(e.completion_ids for e in kept_by(seed) if e.problem_id == "b") for seed in map(str, range(8))}
    assert len(orders) == 2  # equals are drawn, by the seed


def kept_by(seed: str) -> list[Any]:
    kept = list(select(GROUPS, threshold=0.5, target_size=4, step_weight=0.2, seed=int(seed)))
    assert kept == list(select(GROUPS, threshold=0.5, target_size=4, step_weight=0.2, seed=int(seed)))
    return [Example(e.problem_id, e.trajectory_ids, e.prompt_ids, tuple(e.completion_ids)) for e in kept]  # type: ignore[arg-type]


def test_without_a_threshold_the_filter_finds_its_own() -> None:
    kept = list(
        select(GROUPS, threshold=None, thresholds=THRESHOLDS, wanted=8, target_size=99, step_weight=0.2, seed=1)
    )
    assert len(kept) == 7  # all that are correct: a lower threshold lets wrong ones in, a higher one loses right ones
    with pytest.raises(ConfigError, match=r"filter\.threshold is null"):
        list(select(GROUPS, threshold=None, target_size=9, step_weight=0.2, seed=1))


def test_the_rate_falls_over_the_rounds_on_one_cosine() -> None:
    rates = [rate_of_round(i, 4, 1.0, 0.2) for i in range(4)]
    assert rates == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * x)) for x in (1 / 8, 3 / 8, 5 / 8, 7 / 8)])


def test_a_grid_must_have_numbers() -> None:
    with pytest.raises(ConfigError, match="step > 0"):
        Grid(0.0, 1.0, 0.0)
    with pytest.raises(ConfigError, match="low <= high"):
        compose(["method=bstar", "method.probe.temperatures.high=0.1"])


@pytest.mark.parametrize("method", ["bstar", "bstar_released"])
def test_settings_can_be_fixed(method: str) -> None:
    config = compose([f"method={method}", "method.probe=null", "method.adapt=null", "method.filter.threshold=0.5"])
    assert config.method.adapt is None


def test_without_dev_problems_it_says_so_before_anything_is_loaded(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"set dataset\.dev_size"):
        Lab(True, tmp_path).run("method=bstar", "dataset.train_size=5", "dataset.heldout_size=5")


# A whole study in its small form


@pytest.mark.slow
def test_the_study_measures_its_claims(done: tuple[list[Claim], Lab]) -> None:
    claims, lab = done
    assert len(claims) == 7
    assert all(claim.command.startswith("selfimprove run method=bstar") for claim in claims)
    runs = [RunData(path.parent) for path in lab.folder.glob("*/summary.json")]
    chosen, fixed, plain = sorted(runs, key=lambda run: (run.method, not run.config["method"]["adapt"]))

    def solved(run: RunData, which: int) -> float:
        return float(np.mean([right > 0 for _, right in run.sampled[which].values()]))

    def unique(run: RunData, folder: str) -> float:
        groups: dict[str, list[str]] = {}
        for t in store.read_records(run.path / folder / "evaluation/trajectories.parquet", Trajectory):
            if t.metadata["decoding"] == "sampled":
                groups.setdefault(t.problem_id, []).append(normalise(t.text))
        return float(np.mean([len(set(texts)) / len(texts) for texts in groups.values()]))

    def greedy(run: RunData) -> float:
        return float(np.mean(list(run.heldout[-1].values())))

    last = "rounds/001"
    expected = {
        "with fixed T pass@8 falls": solved(fixed, 0) - solved(fixed, -1),
        "with fixed T the share of unique solutions falls": unique(fixed, "base") - unique(fixed, last),
        "final pass@8 is above": solved(chosen, -1) - solved(fixed, -1),
        "final share of unique solutions is above": unique(chosen, last) - unique(fixed, last),
        "final pass@1 (greedy) is no lower": greedy(chosen) - greedy(fixed),
        "final pass@1 is above rejection sampling": greedy(chosen) - greedy(plain),
    }
    assert any(abs(value) > 0.01 for value in expected.values())
    for said, value in expected.items():
        (claim,) = [claim for claim in claims if claim.claim.startswith(said)]
        assert claim.value == pytest.approx(value), said
        assert claim.interval
        low, high = claim.interval
        assert low <= claim.value <= high
        above = low >= 0 if "no lower" in said else low > 0
        assert claim.holds is (True if above else False if high < 0 else None)
    assert [claim.claim[:8] for claim in claims if claim.check] == ["(T, tau)"]


@pytest.mark.slow
def test_a_round_samples_and_filters_by_what_was_chosen(done: tuple[list[Claim], Lab]) -> None:
    _, lab = done
    results = [Result(path.parent, store.read_json(path), ()) for path in lab.folder.glob("*/summary.json")]
    (ours,) = (r for r in results if (r.path / "rounds/000/adapt").exists())
    for number in ("000", "001"):
        folder = ours.path / "rounds" / number
        surface = pq.read_table(folder / "adapt" / "surface.parquet").to_pylist()
        assert {row["temperature"] for row in surface} == {0.5, 1.1}
        assert len(surface) == 2 * 21
        best = max(surface, key=lambda row: row["balance"])
        metrics = store.read_json(folder / "metrics.json")
        assert metrics["adapt/generate.temperature"] == best["temperature"]
        assert metrics["adapt/filter.threshold"] == best["threshold"]
        assert metrics["adapt/balance"] == best["balance"]
        trajectories = {t.id: t for t in store.read_records(folder / "trajectories.parquet", Trajectory)}
        assert {t.samples[0].temperature for t in trajectories.values()} == {best["temperature"]}
        verdicts = {v.trajectory_id: v for v in store.read_records(folder / "verdicts.parquet", Verdict)}
        for example in store.read_records(folder / "examples.parquet", Example):
            verdict = verdicts[example.trajectory_ids[0]]
            assert verdict.reward + 0.2 * min(verdict.step_rewards or [0.0]) > best["threshold"]
    assert "temperature \\ threshold" in (ours.path / "run.log").read_text()
