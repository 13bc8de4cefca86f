"""Does a policy learn to propose and verify in one generation, and does RL with a reward for each message help both?

Claims of Zhao et al. 2025 (arXiv 2506.06923), on chains of arithmetic. Both arms of RL go on from PairSFT. They differ
in what a message is rewarded for: itself, or the last solution. Each has the learning rate of RL that is best on dev.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.config import compose
from selfimprove.methods.spoc import by_solution
from selfimprove.studies import Claim, Lab, Result, difference, gated, measured, overall
from selfimprove.studies.arms import arms_table, run_arms, tuned
from selfimprove.studies.solving import ByProblem, Figure, Groups, estimated, unweighted
from selfimprove.studies.staged import answers_of, bounded, chosen_rates, heldout_attempts, heldout_problems
from selfimprove.types import Attempt
from selfimprove.verify.answers import last

COMMAND = "selfimprove study spoc"
KEY = "method.stages.rl.train.learning_rate"
ARMS = {"each message": [], "outcome only": ["method.stages.rl.filter.per=trajectory"]}
SFT = "PairSFT"
RATES = (1e-4, 3e-4)
GATE = 0.9  # share of responses that have to hold a verdict, else the policy has not learnt the form


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout, parts = (60, 20, 40, 2) if lab.quick else (500, 200, 240, 10)
    common = ["method=spoc", "rounds=1", f"dataset.train_size={train}", f"method.stages.rl.parts={parts}"]
    common += ["method.stages.pair.problems.count=60"] if lab.quick else []
    evaluate = {k: v for k, v in (compose(common).method.evaluate or {}).items() if k != "_target_"}
    solver = partial(by_solution, **evaluate)
    chosen = dict.fromkeys(ARMS, RATES[-1])
    if not lab.quick:
        chosen = chosen_rates(lab, common, ARMS, RATES, solver, last, dev, key=KEY)
    runs = run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], tuned(ARMS, chosen, KEY))

    def after_pairs(result: Result) -> Groups:
        return answers_of(result.path / "rounds/000.0_pair/policy", heldout_problems(result), solver)

    own = {arm: [heldout_attempts(r) for r in found] for arm, found in runs.items()}
    own = {SFT: [after_pairs(r) for r in runs["each message"]], **own}
    lab.note(table(own, overall([r.heldout("base") for r in runs["each message"]])))
    mine = own["each message"]
    written = float(
        np.mean([group[0].trajectory.metadata["accepted"] is not None for groups in mine for group in groups])
    )
    for claim, estimate, least, control in (
        ("first verdicts have a balanced accuracy of at least .75", estimated(balanced, mine), 0.75, "a coin: .5"),
        (
            "RL raises the balanced accuracy of first verdicts",
            estimated(balanced, mine, own[SFT]),
            0.0,
            "PairSFT alone",
        ),
        (
            "a reward for each message gives better verdicts than one for the outcome",
            estimated(balanced, mine, own["outcome only"]),
            0.0,
            "outcome only: equal responses and steps",
        ),
        (
            "last solutions are right more often than first ones",
            difference([right(g, -1) for g in mine], [right(g, 0) for g in mine]),
            0.0,
            "first solutions of the same responses",
        ),
        (
            "last solutions are better than after PairSFT alone",
            difference([right(g, -1) for g in mine], [right(g, -1) for g in own[SFT]]),
            0.0,
            "PairSFT alone",
        ),
        (
            "last solutions are better than with a reward for the outcome",
            difference([right(g, -1) for g in mine], [right(g, -1) for g in own["outcome only"]]),
            0.0,
            "outcome only: equal responses and steps",
        ),
        (
            "responses have more solutions where the first one is wrong",
            estimated(more_solutions, mine),
            0.0,
            "where it is right",
        ),
    ):
        line = bounded(claim, estimate, least, control, COMMAND)
        yield from gated(
            [line], written >= GATE, f"{written:.0%} of responses hold a verdict, of {GATE:.0%} that have to"
        )
    share = estimated(rejected, mine)
    inside = True if share.low > 0.1 and share.high < 0.9 else False if not 0.1 <= share.value <= 0.9 else None
    yield measured("the share of first verdicts that say no is between .1 and .9", inside, share, "", COMMAND)


def right(groups: Groups, which: int) -> ByProblem:
    """Which problems the first (0) or last (-1) solution solves."""
    return {group[0].problem.id: float(group[which].verdict.status == "correct") for group in groups}


def balanced(groups: Groups, weights: np.ndarray) -> float:
    """The mean of two shares: right first solutions that are accepted, and wrong ones that are rejected."""
    is_right, says = _first(groups, lambda a: a.verdict.status == "correct"), _first(groups, _accepted)
    accepted = weights[is_right & (says == 1)].sum() / max(weights[is_right].sum(), 1e-9)
    refused = weights[~is_right & (says == 0)].sum() / max(weights[~is_right].sum(), 1e-9)
    return float(accepted + refused) / 2


def rejected(groups: Groups, weights: np.ndarray) -> float:
    """The share of first verdicts that reject."""
    says = _first(groups, _accepted)
    return float(weights[says == 0].sum() / max(weights[says >= 0].sum(), 1e-9))


def more_solutions(groups: Groups, weights: np.ndarray) -> float:
    """Solutions of a response whose first one is wrong, minus those of one whose first is right; means."""
    is_right = _first(groups, lambda a: a.verdict.status == "correct")
    count = np.array([len(group) for group in groups])
    means = [np.average(count[kind], weights=weights[kind]) if kind.any() else 0.0 for kind in (~is_right, is_right)]
    return float(means[0] - means[1])


def _accepted(attempt: Attempt) -> int:
    said = attempt.trajectory.metadata["accepted"]
    return -1 if said is None else int(said)


def _first(groups: Groups, of: Callable[[Attempt], int]) -> np.ndarray:
    return np.array([of(group[0]) for group in groups])


def table(arms: dict[str, list[Groups]], base: float) -> Table:
    def mean(figure: Figure[Groups]) -> Callable[[list[Groups]], str]:
        return lambda found: f"{unweighted(figure, found):.3f}"

    def tokens(group: list[Attempt]) -> int:
        return group[-1].trajectory.sampled_tokens

    return arms_table(
        f"Held-out, means over seeds; the shipped policy's answers: {100 * base:.1f} %",
        arms,
        {
            "first solution": lambda found: f"{100 * overall([right(g, 0) for g in found]):.1f} %",
            "last solution": lambda found: f"{100 * overall([right(g, -1) for g in found]):.1f} %",
            "balanced accuracy": mean(balanced),
            "say no": mean(rejected),
            "solutions": lambda found: f"{np.mean([len(group) for g in found for group in g]):.2f}",
            "more where wrong": mean(more_solutions),
            "tokens": lambda found: f"{np.mean([tokens(group) for g in found for group in g]):.0f}",
        },
    )
