"""What studies of plain rounds share: sample, verify, train, three times over, against shuffled verdicts and votes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from selfimprove.generate.best_of_n import best_of_n
from selfimprove.studies import Claim, Lab, Result, difference, gain, overall
from selfimprove.studies.arms import Arms, arms_table, rate_of, run_arms, tuned
from selfimprove.studies.online import MARGIN, SHUFFLED, answers_worth, base_answers
from selfimprove.studies.solving import solved
from selfimprove.studies.staged import below, bounded, chosen_rates
from selfimprove.verify.answers import last, vote


@dataclass(frozen=True)
class Plan:
    """The arms of a study: the first is the method as it is. `rates`: the grid that each chooses from on dev."""

    arms: Arms
    rates: Sequence[float]


def run_iterated(lab: Lab, plan: Plan) -> dict[str, list[Result]]:
    """The finished runs of all arms, three rounds each, and of the method with shuffled verdicts."""
    train, dev, heldout, rounds = (24, 20, 30, 2) if lab.quick else (200, 150, 250, 3)
    common = [f"rounds={rounds}", f"dataset.train_size={train}"]
    rates = plan.rates[2:3] if lab.quick else plan.rates
    chosen = chosen_rates(lab, common, plan.arms, rates, partial(best_of_n, n=1, temperature=0.0), last, dev)
    all_arms = tuned(plan.arms, chosen)
    all_arms[SHUFFLED] = [*next(iter(all_arms.values())), "control=shuffled_verdicts"]
    return run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], all_arms)


def after(result: Result, rounds: int) -> dict[str, float]:
    """Which held-out problems the policy of the first `rounds` rounds solves greedily."""
    folder = sorted(result.path.glob("rounds/*/evaluation"))[rounds - 1]
    return {g[0].problem.id: float(g[0].verdict.status == "correct") for g in result.attempts(folder)}


def common_claims(lab: Lab, plan: Plan, runs: Mapping[str, Sequence[Result]], command: str) -> Iterator[Claim]:
    """What is claimed of every such method; the table of all arms is noted first."""
    mine = runs[next(iter(plan.arms))]
    n = max(3, round(answers_worth(mine)))
    votes = [solved(base_answers(result, n, seed), vote) for seed, result in enumerate(mine)]
    rows: dict[str, tuple[float, Sequence[Result]]] = {
        "start": (overall([r.heldout("base") for r in mine]), ()),
        f"start, majority of {n}": (overall(votes), ()),
        **{arm: (overall([r.heldout() for r in found]), found) for arm, found in runs.items()},
    }
    lab.note(
        arms_table(
            "Held-out accuracy, one greedy answer where not said otherwise, means over seeds",
            rows,
            {
                "accuracy": lambda row: f"{100 * row[0]:.1f} %",
                "learning rate": lambda row: f"{rate_of(row[1][0]):g}" if row[1] else "",
                "examples a round": lambda row: _mean([x["examples"] for r in row[1] for x in r.summary["rounds"]]),
                "sampled tokens": lambda row: _mean([r.sampled_tokens for r in row[1]]),
            },
        )
    )
    yield bounded("held-out accuracy rises", gain(mine), 0.0, "the policy it starts from", command)
    more = difference([r.heldout() for r in mine], [after(r, 1) for r in mine])
    yield bounded("later rounds add to the first", more, 0.0, "the policy after one round", command)
    text = f"with shuffled verdicts it gains less than {100 * MARGIN:.0f} points"
    yield below(text, gain(runs[SHUFFLED]), MARGIN, "the policy it starts from", command)
    text = f"one greedy answer is right more often than the majority of {n} answers of the start"
    ahead = difference([r.heldout() for r in mine], votes)
    yield bounded(text, ahead, 0.0, "as many tokens as learning sampled", command)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):,.0f}" if values else ""
