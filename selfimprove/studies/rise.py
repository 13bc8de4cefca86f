"""Do answers get better from turn to turn after training on turns, and more than by training on right answers?

Claims of Qu et al. 2024 (arXiv 2407.18219), on chains of arithmetic. The arms differ in their rows alone: all turns
with weights, right turns, and right answers without the turns before them. Each has the learning rate that is best on
dev.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.generate.turns import by_turn
from selfimprove.studies import Claim, Lab, Result, difference, overall
from selfimprove.studies.arms import arms_table, run_arms, tuned
from selfimprove.studies.solving import ByProblem, solved, waiting
from selfimprove.studies.staged import (
    GRADE,
    answered,
    answers_of,
    at_stage,
    bounded,
    chosen_rates,
    heldout_problems,
    minus,
    policy_of,
    votes,
)
from selfimprove.studies.tiny import SHIPPED
from selfimprove.verify.answers import vote

COMMAND = "selfimprove study rise"
TURNS = 5
ARMS = {
    "all, weighted": [],
    "success": ["method.filter.keep=success"],
    "one turn": ["method.filter._target_=selfimprove.methods.rise.first_turns", "~method.filter.keep"],
}
RATES = (1e-4, 3e-4, 1e-3)


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout = (40, 20, 40) if lab.quick else (100, 80, 120)
    rates = RATES[1:2] if lab.quick else RATES
    common = ["method=rise", f"rounds={1 if lab.quick else 2}", f"dataset.train_size={train}"]
    solver = partial(by_turn, turns=TURNS, ask="Improve this solution.", shown=1, temperature=1.0, check=waiting(GRADE))
    chosen = chosen_rates(lab, common, ARMS, rates, solver, vote, dev)
    runs = run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], tuned(ARMS, chosen))
    lab.note(table(runs))
    mine = runs["all, weighted"]
    first = {arm: [at_stage(r, 1) for r in found] for arm, found in runs.items()}
    whole = {arm: [answered(r) for r in found] for arm, found in runs.items()}
    gains = {arm: [minus(w, f) for w, f in zip(whole[arm], first[arm], strict=True)] for arm in ARMS}
    base = [parallel(r, str(SHIPPED), seed) for seed, r in enumerate(mine)]
    own = [parallel(r, policy_of(r), seed) for seed, r in enumerate(mine)]
    name = "all, weighted"
    for claim, estimate, least, control in (
        (
            "the majority of five turns is at least 8 points above the first turn",
            difference(whole[name], first[name]),
            0.08,
            "first turn",
        ),
        (
            "this gain is larger than after fine-tuning on right answers in one turn",
            difference(gains[name], gains["one turn"]),
            0.0,
            "first_turns",
        ),
        (
            "five turns are better than five separate answers of the base policy, by majority",
            difference(whole[name], base),
            0.0,
            "base policy, majority of 5",
        ),
        (
            "five turns are better than five separate answers of the same policy, by majority",
            difference(whole[name], own),
            0.0,
            "same policy, majority of 5",
        ),
        (
            "the first turn is not more than 1 point below the base policy's",
            difference(first[name], [at_stage(r, 1, "base") for r in mine]),
            -0.01,
            "base policy, turn 1",
        ),
        (
            "all turns with weights are not more than 1 point below right turns alone",
            difference(whole[name], whole["success"]),
            -0.01,
            "keep=success",
        ),
    ):
        yield bounded(claim, estimate, least, control, COMMAND)


def parallel(result: Result, path: str, seed: int) -> ByProblem:
    """Which of a run's held-out problems the majority of five separate answers solves, of the policy in `path`."""
    return solved(answers_of(path, heldout_problems(result), votes(TURNS), seed), vote)


def mended(results: Sequence[Result], folder: str = "last") -> tuple[float, float]:
    """Of wrong answers the share that the next turn mends, and of right ones the share that it spoils."""
    right = np.array(
        [[list(at_stage(r, turn, folder).values()) for turn in range(1, TURNS + 1)] for r in results], dtype=bool
    )
    before, after = right[:, :-1], right[:, 1:]
    return float((after & ~before).sum() / max(1, (~before).sum())), float(
        (before & ~after).sum() / max(1, before.sum())
    )


def table(runs: dict[str, list[Result]]) -> Table:
    def turn(number: int) -> Callable[[tuple[list[Result], str]], str]:
        return lambda row: f"{100 * overall([at_stage(r, number, row[1]) for r in row[0]]):.1f} %"

    def trained(row: tuple[list[Result], str], cell: str) -> str:
        return "" if row[1] == "base" else cell

    rows = {"shipped policy": (next(iter(runs.values())), "base")} | {arm: (rs, "last") for arm, rs in runs.items()}
    return arms_table(
        "Held-out, means over seeds",
        rows,
        {f"turn {number}": turn(number) for number in range(1, TURNS + 1)}
        | {
            "majority": lambda row: f"{100 * overall([answered(r, row[1]) for r in row[0]]):.1f} %",
            "mended": lambda row: f"{mended(*row)[0]:.3f}",
            "spoilt": lambda row: f"{mended(*row)[1]:.3f}",
            "rows a round": lambda row: trained(
                row, f"{np.mean([one['examples'] for r in row[0] for one in r.summary['rounds']]):.0f}"
            ),
            "sampled tokens": lambda row: trained(row, f"{np.mean([r.sampled_tokens for r in row[0]]):,.0f}"),
        },
    )
