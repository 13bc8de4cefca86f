"""Does a model learn to see that its answer is wrong, and does masking that answer keep the first one good?

Claims of Han et al. 2024 (arXiv 2401.07301), on chains of arithmetic. The arms are the same samples as three kinds of
rows: partial answer masking, no masking, and right answers alone. Each has the learning rate that is best on dev.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.methods.isc import respond
from selfimprove.report.statistics import Estimate, ratio
from selfimprove.studies import Claim, Lab, Result, difference, gated, overall
from selfimprove.studies.arms import arms_table, rows_of, run_arms, tuned
from selfimprove.studies.solving import Groups
from selfimprove.studies.staged import (
    answered,
    answers_of,
    at_stage,
    bounded,
    chosen_rates,
    heldout_attempts,
    heldout_problems,
    over_rounds,
    percent_of,
    policy_of,
)
from selfimprove.verify.answers import last, stage

COMMAND = "selfimprove study isc"
ARMS = {rows: [f"method.filter.rows={rows}"] for rows in ("masked", "unmasked", "plain")}
RATES = (1e-3, 3e-3)
CHECK, INCORRECT = "\nVerdict:", " incorrect\n"  # as in conf/method/isc.yaml
RESPOND = partial(respond, check_words=CHECK, incorrect=INCORRECT)
GATE = 0.9  # share of responses that have to hold a check, else the policy has not learnt the form


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout = (40, 20, 40) if lab.quick else (250, 200, 300)
    rates = RATES[:1] if lab.quick else RATES
    common = ["method=isc", "rounds=1", f"dataset.train_size={train}"]
    chosen = chosen_rates(lab, common, ARMS, rates, RESPOND, last, dev)
    runs = run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], tuned(ARMS, chosen))
    lab.note(table(runs))
    first = {arm: [at_stage(r, 1) for r in found] for arm, found in runs.items()}
    final = {arm: [answered(r) for r in found] for arm, found in runs.items()}
    written = float(np.mean([checked(r) for r in runs["masked"]]))
    masked = first["masked"]
    claims = (
        (
            "the whole response is right more often than its first answer",
            difference(final["masked"], masked),
            0.0,
            "first answer of the same response",
        ),
        (
            "wrong first answers are called wrong more often than right ones, by at least .3",
            gap([heldout_attempts(r) for r in runs["masked"]]),
            0.3,
            "right first answers",
        ),
        (
            "masking keeps first answers at least 5 points better",
            difference(masked, first["unmasked"]),
            0.05,
            "rows=unmasked",
        ),
        (
            "first answers are not more than 1 point below those of plain fine-tuning",
            difference(masked, first["plain"]),
            -0.01,
            "rows=plain, as many rows",
        ),
        (
            "the whole response is better than one greedy answer of plain fine-tuning, which costs less",
            difference(final["masked"], final["plain"]),
            0.0,
            "rows=plain, as many rows",
        ),
    )
    for claim, estimate, least, control in claims:
        line = bounded(claim, estimate, least, control, COMMAND)
        yield from gated(
            [line], written >= GATE, f"{written:.0%} of responses hold a check, of {GATE:.0%} that have to"
        )


def sampled(result: Result) -> Groups:
    """Responses to the same problems at temperature 1, as first answers were in training."""
    return answers_of(policy_of(result), heldout_problems(result), partial(RESPOND, temperature=1.0))


def checked(result: Result) -> float:
    """The share of held-out responses that hold a check."""
    return float(np.mean([CHECK.strip() in group[0].trajectory.text for group in heldout_attempts(result)]))


def triggers(responses: Sequence[Groups], right: bool) -> Estimate | None:
    """How often first answers that are right (or wrong) are called wrong, over problems of all seeds."""
    called, asked = dict[str, int](), dict[str, int]()
    for groups in responses:
        for group in groups:
            first = next(a for a in group if stage(a) == 1)
            if (first.verdict.status == "correct") == right:
                name = first.problem.id
                asked[name] = asked.get(name, 0) + 1
                called[name] = called.get(name, 0) + bool(first.trajectory.metadata["triggered"])
    return ratio(np.array(list(called.values())), np.array(list(asked.values()))) if asked else None


def gap(responses: Sequence[Groups]) -> Estimate:
    """The rate on wrong first answers minus that on right ones; its ends are those of both intervals at their worst."""
    wrong, right = triggers(responses, False), triggers(responses, True)
    if wrong is None or right is None:
        return Estimate(0.0, -1.0, 1.0, 0)
    return Estimate(wrong.value - right.value, wrong.low - right.high, wrong.high - right.low, wrong.n)


def table(runs: dict[str, list[Result]]) -> Table:
    base = overall([at_stage(r, 1, "base") for r in runs["masked"]])

    def called_wrong(results: Sequence[Result], respond: Callable[[Result], Groups]) -> str:
        responses = [respond(r) for r in results]
        found = [triggers(responses, right) for right in (False, True)]
        return ", ".join("none" if one is None else f"{one.value:.3f}" for one in found)

    return arms_table(
        f"Held-out, means over seeds; the shipped policy's first answers: {100 * base:.1f} %",
        runs,
        {
            "first answer": percent_of(partial(at_stage, number=1)),
            "whole response": percent_of(answered),
            "called wrong: wrong, right": lambda rs: called_wrong(rs, heldout_attempts),
            "the same, sampled": lambda rs: called_wrong(rs, sampled),
            "hold a check": lambda rs: f"{np.mean([checked(r) for r in rs]):.2f}",
            "rows": lambda rs: f"{rows_of(rs):.0f}",
            "loss tokens": lambda rs: f"{np.mean([over_rounds(r, 'loss_tokens') for r in rs]):,.0f}",
        },
    )
