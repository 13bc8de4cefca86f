"""Does a reward model that learns from the programs that fooled it rank better?

Claims of Sorokin et al. 2025 (arXiv 2504.09643), on programs of one line that are run in the sandbox. Three reward
models rank the same programs of held-out problems: the first one, and two that are trained again on as many pairs, of
which the new ones have hard negatives, or any that fail.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from selfimprove import store
from selfimprove.attempt import pair
from selfimprove.made import Made
from selfimprove.methods.reward_ranker import enlarged, fails, passes
from selfimprove.studies import Claim, Lab, Result, claim_sign, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.rewards import by_problem, over, pooled, rated
from selfimprove.studies.solving import ByProblem, Groups
from selfimprove.studies.staged import best_rate, bounded, pass_folder, percent
from selfimprove.studies.tiny import SHIPPED
from selfimprove.train import TrainContext
from selfimprove.train.reward import reward
from selfimprove.types import Attempt, Example, Problem

COMMAND = "selfimprove study reward_ranker"
RATES = (1e-4, 3e-4, 1e-3)
GATE = 20  # held-out problems with a hard negative and a program that passes: with fewer nothing can show
ARMS = ("first", "hard negatives", "any negatives")
Scores = dict[int, float]  # of attempts, by id()


def study(lab: Lab) -> Iterator[Claim]:
    train, heldout = (24, 24) if lab.quick else (50, 60)
    common = ["method=reward_ranker", "dataset=programs", "rounds=1", f"dataset.train_size={train}"]
    runs = lab.over_seeds(*common, f"dataset.heldout_size={heldout}")
    rates = RATES[1:2] if lab.quick else RATES
    rate = {arm: chosen_rate(lab, arm, rows_of(runs[0], arm), rates) for arm in ARMS}
    base: dict[str, list[Scores]] = {arm: [] for arm in ARMS}  # on programs of the SFT policy,
    tuned: dict[str, list[Scores]] = {arm: [] for arm in ARMS}  # and of the tuned one
    ranked = [list(r.attempts(r.evaluation("base"), "")) for r in runs]
    mined = [list(r.attempts(r.evaluation("last"), "")) for r in runs]
    for arm in ARMS:
        for result, own, others in zip(runs, ranked, mined, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                fit(rows_of(result, arm), rate[arm], Path(folder))
                base[arm].append(scored(folder, own))
                tuned[arm].append(scored(folder, others))
    lab.note(table(ranked, base, mined, tuned, rate))
    hard = {arm: pooled(over(pair_accuracy, mined, tuned[arm], tuned["first"], True)) for arm in ARMS}
    plain = {arm: pooled(over(pair_accuracy, mined, tuned[arm], tuned["first"], False)) for arm in ARMS}
    top = {arm: over(reranked, ranked, base[arm]) for arm in ARMS}
    chance = [by_problem(found, lambda group: float(np.mean([passes(a) for a in group]))) for found in ranked]
    first, any_ = "first reward model", "negatives=any"
    claims = [
        ("on hard negatives of held-out problems it ranks better than one trained on any negatives", any_),
        ("and better than the first reward model", first),
    ]
    for (claim, other), before in zip(claims, (hard["any negatives"], hard["first"]), strict=True):
        if len(hard["first"][0]) < GATE:
            why = f"cannot be tested here: {len(hard['first'][0])} problems have a hard negative, of {GATE} needed"
            yield Claim(f"{claim}: {why}", None, "-", None, other, COMMAND)
        else:
            yield claim_sign(claim, difference(hard["hard negatives"], before), other, COMMAND)
    lost = difference(plain["hard negatives"], plain["first"])
    yield bounded("on other pairs it is not more than 2 points below", lost, -0.02, first, COMMAND)
    for claim, after, before, other in (
        ("its first of 10 passes more often than the first model's", top["hard negatives"], top["first"], first),
        ("and than that of one trained on any negatives", top["hard negatives"], top["any negatives"], any_),
        ("the first model's first of 10 passes more often than a random one", top["first"], chance, "random pick"),
    ):
        yield claim_sign(claim, difference(after, before), other, COMMAND)


# Training


def rows_of(result: Result, arm: str) -> list[Example]:
    """The pairs of a run's first reward model, or of one of those that follow."""
    first = pass_folder(result, "rank")
    made = Made()
    made.add("rank", first, {"examples.parquet": ""})
    if arm == "first":
        return list(made.examples("rank"))
    folder = pass_folder(result, "mine")
    problems = list(store.read_records(result.path / "problems.parquet", Problem))
    return list(
        enlarged(
            pair(folder, problems),
            per_problem=2,
            negatives="hard" if arm == "hard negatives" else "any",
            made=made,
            seed=0,
        )
    )


def chosen_rate(lab: Lab, arm: str, rows: Sequence[Example], rates: Sequence[float]) -> float:
    """The learning rate at which training on four fifths of the problems ranks the pairs of the others best."""
    names = sorted({row.problem_id for row in rows})
    random.Random(0).shuffle(names)
    dev = set(names[: len(names) // 5])
    held = [row for row in rows if row.problem_id in dev]

    def accuracy(rate: float) -> float:
        with tempfile.TemporaryDirectory() as folder:
            fit([row for row in rows if row.problem_id not in dev], rate, Path(folder))
            won = rated(folder, [[*r.prompt_ids, *r.completion_ids] for r in held])
            lost = rated(folder, [[*r.prompt_ids, *(r.rejected_ids or [])] for r in held])
            return float(np.mean([a > b for a, b in zip(won, lost, strict=True)]))

    return best_rate(lab, f"{arm}, {len(rows)} pairs", rates, accuracy, "pair accuracy", percent)


def fit(rows: Sequence[Example], rate: float, out: Path) -> None:
    context = TrainContext(str(SHIPPED), str(SHIPPED), out, 0, "cpu", "float32", 32, False, None, lambda figures: None)
    reward(rows, context, learning_rate=rate, epochs=3, batch_size=32, schedule="cosine", warmup_ratio=0.1)


def scored(folder: str, groups: Groups) -> Scores:
    found = [a for group in groups for a in group]
    samples = [a.trajectory.samples[-1] for a in found]
    values = rated(folder, [[*s.prompt_ids, *s.completion_ids] for s in samples])
    return {id(a): value for a, value in zip(found, values, strict=True)}


# Measures: each a value a problem, of the problems that have one


def pair_accuracy(groups: Groups, scores: Scores, first: Scores, hard: bool) -> ByProblem:
    """The share of a problem's pairs of a program that passes and one that fails which are ranked rightly: of those
    whose negative the `first` reward model puts above the median of programs that pass, or of the others."""
    limit = float(np.median([first[id(a)] for group in groups for a in group if passes(a)] or [0.0]))

    def measure(group: list[Attempt]) -> float | None:
        wrong = [a for a in group if fails(a) and (first[id(a)] > limit) == hard]
        won = [scores[id(a)] > scores[id(b)] for a in group if passes(a) for b in wrong]
        return float(np.mean(won)) if won else None

    return by_problem(groups, measure)


def reranked(groups: Groups, scores: Scores) -> ByProblem:
    """Whether the program of highest score passes."""
    return by_problem(groups, lambda group: float(passes(max(group, key=lambda a: scores[id(a)]))))


def failing_at_the_top(groups: Groups, scores: Scores) -> float:
    """The share of programs that fail in the tenth of all that score highest."""
    found = sorted((a for group in groups for a in group), key=lambda a: -scores[id(a)])
    return float(np.mean([not passes(a) for a in found[: max(1, len(found) // 10)]]))


def table(
    ranked: Sequence[Groups],
    base: Mapping[str, list[Scores]],
    mined: Sequence[Groups],
    tuned: Mapping[str, list[Scores]],
    rate: Mapping[str, float],
) -> Any:
    def mean(found: Sequence[ByProblem]) -> float:
        return float(np.mean([value for run in found for value in run.values()]))

    chance = [by_problem(found, lambda group: float(np.mean([passes(a) for a in group]))) for found in ranked]
    oracle = [by_problem(found, lambda group: float(any(passes(a) for a in group))) for found in ranked]
    rows: dict[str, str | None] = {"random pick": None, **dict.fromkeys(ARMS, ""), "oracle": None}

    def first_of_ten(name: str) -> str:
        found = {"random pick": chance, "oracle": oracle}.get(name) or over(reranked, ranked, base[name])
        return f"{100 * overall(found):.1f} %"

    def accuracy(hard: bool, name: str) -> str:
        return f"{mean(over(pair_accuracy, mined, tuned[name], tuned['first'], hard)):.3f}" if name in base else ""

    def top(name: str) -> str:
        values = [failing_at_the_top(g, s) for g, s in zip(mined, tuned.get(name, ()), strict=False)]
        return f"{np.mean(values):.1%}" if values else ""

    return arms_table(
        "Held-out programs, means over seeds: 10 of the SFT policy to rank, 10 of the tuned one in pairs",
        {name: name for name in rows},
        {
            "first of 10 passes": first_of_ten,
            "hard pairs": partial(accuracy, True),
            "other pairs": partial(accuracy, False),
            "failing in the top tenth": top,
            "learning rate": lambda name: f"{rate[name]:g}" if name in rate else "",
        },
        "reward model",
    )
