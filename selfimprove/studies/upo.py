"""Does an estimator with dropout find the pairs that a reward model got the wrong way round, and does it pay?

Claims of Wang et al. 2024 (arXiv 2409.11212), on chains of arithmetic. The reward model is a right check of which a
share of the problems is reversed, so that it is known which pairs are wrong. The arms are trained from one policy on as
many pairs of the same answers, each at the learning rate that is best on dev.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove.datasets.arithmetic import load
from selfimprove.made import Made
from selfimprove.methods import upo
from selfimprove.report.statistics import mean_over_problems
from selfimprove.studies import Claim, Lab, Result, claim_sign, difference, measured, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.rewards import auroc, doubt, flat, grouped, is_reversed, p_of, pairs_of, rated, vote
from selfimprove.studies.solving import ByProblem, solved
from selfimprove.studies.staged import answers_of, best_rate, bounded, on_dev, pass_folder, votes
from selfimprove.studies.tiny import SHIPPED, shipped
from selfimprove.train import TrainContext
from selfimprove.train.dpo import dpo
from selfimprove.types import Attempt, Example
from selfimprove.verify.doubt import bald
from selfimprove.verify.reward_model import sigmoid

COMMAND = "selfimprove study upo"
REVERSED = 0.3  # share of the problems whose pairs are the wrong way round
GATE = 0.6  # share of pairs that the estimator has to see rightly, for anything to show
LEVELS = [3, 4, 5]
WORDS = "Another answer."  # as conf/method/upo.yaml has them
RATES = (1e-5, 3e-5, 1e-4)
SETTINGS: dict[str, Any] = {"rate": 0.5, "labelled": 0.0, "widest": 0.0, "hard": 0.2}
ARMS = ("uncertainty", "no dropout", "chance")


def study(lab: Lab) -> Iterator[Claim]:
    size, heldout, dev = (45, 40, 20) if lab.quick else (180, 200, 80)
    verifier = "method.stages.prefer.verifier."
    common = ["method=upo", "rounds=1", f"dataset.levels={LEVELS}", f"dataset.train_size={size}"]
    common += ["dataset.heldout_size=10", "~method.stages.reward", "method.stages.label.filter.per_problem=2"]
    common += ["method.stages.estimator.filter.per_problem=2", "method.stages.prefer.generate.share=0.5"]
    common += [f"{verifier}_target_=selfimprove.studies.rewards.corrupted", f"+{verifier}share={REVERSED}"]
    runs = lab.over_seeds(*common)
    pairs = [pairs_of(result) for result in runs]
    lab.note(pairs_table(pairs))
    seen = mean_over_problems([float(vote(a) != is_reversed(a)) for a in flat(pairs)])
    rows = {arm: [rows_of(r, p, arm) for r, p in zip(runs, pairs, strict=True)] for arm in ARMS}
    for per_seed in zip(*rows.values(), strict=True):
        least = min(map(len, per_seed))
        for found in per_seed:
            del found[least:]
    easy = mean_over_problems([value for r, p in zip(runs, pairs, strict=True) for value in easy_of(r, p)])
    few = True if easy.high <= 0.15 else False if easy.low > 0.15 else None
    rates = RATES[1:2] if lab.quick else RATES
    scores, rate = trained(lab, runs, rows, rates, heldout, dev)
    arms = {arm: (rows[arm], scores[arm], rate[arm]) for arm in ARMS}
    lab.note(arms_table("Held-out, means over seeds", arms, COLUMNS))
    claims = [
        measured("of the easy pairs at most 15 % are reversed", few, easy, "30 % of all pairs", COMMAND),
        bounded(
            "disagreement and BALD tell reversed pairs: area under the ROC curve above .65",
            auroc([[(doubt(a), is_reversed(a)) for a in group] for found in pairs for group in grouped(found)]),
            *(0.65, ".5, chance", COMMAND),
        ),
    ]
    for text, other in (
        ("DPO on pairs that the estimator trusts is better than on as many pairs drawn by chance", "chance"),
        ("and better than where its dropout is off, so that the vote alone chooses", "no dropout"),
    ):
        claims.append(claim_sign(text, difference(scores["uncertainty"], scores[other]), other, COMMAND))
    said = f"{seen.value:.0%} [{seen.low:.0%}, {seen.high:.0%}]"
    why = f"cannot be tested here: the estimator sees {said} of the pairs rightly, and has to see {GATE:.0%} for sure"
    for claim in claims:
        yield claim if seen.low >= GATE else replace(claim, claim=f"{claim.claim}: {why}", holds=None)


# Pairs


def selection(found: Sequence[Attempt], seed: int, draw: str = "bald") -> list[Example]:
    return list(upo.selected([list(found)], **SETTINGS, draw=draw, made=Made(), seed=seed))  # type: ignore[arg-type]


def easy_of(result: Result, found: Sequence[Attempt]) -> Iterator[float]:
    """Of each easy pair, which are one a problem, whether it is reversed."""
    named = {a.trajectory.id: a for a in found}
    for row in selection(found, seed_of(result)):
        if row.metadata["set"] == "easy":
            yield float(is_reversed(named[row.trajectory_ids[0]]))


def rows_of(result: Result, found: list[Attempt], arm: str) -> list[Example]:
    if arm == "no dropout":
        found = without_dropout(result, found)
    return selection(found, seed_of(result), "chance" if arm == "chance" else "bald")


def without_dropout(result: Result, found: Sequence[Attempt]) -> list[Attempt]:
    """The same pairs as the same estimator sees them with its dropout off: every pass is the same."""
    folder = pass_folder(result, "estimator") / "policy"
    text: Any = shipped()
    scores = rated(str(folder), [upo.both(attempt.trajectory.samples, WORDS, text) for attempt in found])
    plain = []
    for attempt, p in zip(found, map(sigmoid, scores), strict=True):
        verdict = replace(attempt.verdict, status="correct" if p > 0.5 else "wrong", reward=p, step_rewards=[p])
        plain.append(replace(attempt, verdict=verdict))
    return plain


def seed_of(result: Result) -> int:
    return int(result.overrides[-1].partition("=")[2])


# Training


def trained(
    lab: Lab,
    runs: Sequence[Result],
    rows: Mapping[str, Sequence[list[Example]]],
    rates: Sequence[float],
    heldout: int,
    dev: int,
) -> tuple[dict[str, list[ByProblem]], dict[str, float]]:
    """Held-out accuracy of each arm, a mapping a seed, and its learning rate: the one of `rates` that is best on dev
    problems for the first seed."""
    scores: dict[str, list[ByProblem]] = {}
    chosen: dict[str, float] = {}
    problems = [p for p in load(levels=LEVELS, train_size=0, heldout_size=heldout, seed=0) if p.split == "test"]

    def accuracy(found: list[Example], rate: float) -> float:
        with tempfile.TemporaryDirectory() as folder:
            fit(runs[0], found, rate, Path(folder))
            return overall([solved(on_dev(votes(1), folder, dev), lambda group: 0)])

    for arm, found in rows.items():
        chosen[arm] = best_rate(lab, arm, rates, partial(accuracy, found[0]), "accuracy")
        scores[arm] = []
        for result, own in zip(runs, found, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                fit(result, own, chosen[arm], Path(folder))
                scores[arm].append(solved(answers_of(folder, problems, votes(1), seed=1), lambda group: 0))
    return scores, chosen


def fit(result: Result, rows: Sequence[Example], rate: float, out: Path) -> None:
    start = str(pass_folder(result, "label") / "policy")
    context = TrainContext(start, str(SHIPPED), out, 0, "cpu", "float32", 32, False, None, lambda figures: None)
    dpo(rows, context, learning_rate=rate, batch_size=16, epochs=2, schedule="cosine", warmup_ratio=0.1)


# Tables


def pairs_table(pairs: Sequence[Sequence[Attempt]]) -> Table:
    every = flat(pairs)
    groups = {
        "all": every,
        "the estimator agrees": [a for a in every if vote(a)],
        "it disagrees": [a for a in every if not vote(a)],
    }
    return arms_table(
        "Pairs of all seeds",
        groups,
        {
            "pairs": lambda found: str(len(found)),
            "reversed": lambda found: f"{np.mean([is_reversed(a) for a in found]):.1%}" if found else "-",
            "mean BALD": lambda found: f"{np.mean([bald(p_of(a)) for a in found]):.2g}" if found else "-",
        },
        "pairs",
    )


COLUMNS = {
    "learning rate": lambda arm: f"{arm[2]:g}",
    "pairs a run": lambda arm: f"{np.mean([len(rows) for rows in arm[0]]):.0f}",
    "accuracy at temperature 1": lambda arm: f"{100 * overall(arm[1]):.1f} %",
}
