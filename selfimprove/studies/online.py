"""What studies of policy gradients share: arms that learn online from as many answers, and the claims that each has.

An arm takes 10 passes over parts of the problems, with 8 answers to each problem and one optimizer step a pass. Arms
differ in what they learn from the answers. Each has the learning rate that is best on dev.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.generate.best_of_n import best_of_n
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result, advantage, claim_within, difference, gain, overall
from selfimprove.studies.arms import arms_table, rate_of, run_arms, tuned
from selfimprove.studies.solving import Groups, right, solved
from selfimprove.studies.staged import (
    answers_of,
    below,
    bounded,
    chosen_rates,
    heldout_attempts,
    heldout_problems,
    votes,
)
from selfimprove.studies.tiny import SHIPPED
from selfimprove.verify.answers import last, vote

IMITATION, SHUFFLED = "imitating right answers", "shuffled verdicts"
IMITATE = [  # rejection sampling with as many answers and optimizer steps
    "method=rejection_sampling",
    "method.generate.n=8",
    "method.filter.per_problem=8",
    "method.keep=10",
    "method.train.batch_size=128",
    "method.train.schedule=constant",
    "+method.train.carry=true",
]
RATES = (1e-4, 3e-4, 1e-3)
MARGIN = 0.05  # above it is a gain from verdicts that say nothing; two arms within it are as good as each other

Runs = Mapping[str, Sequence[Result]]


def run_online(lab: Lab, name: str, others: Mapping[str, Sequence[str]]) -> dict[str, list[Result]]:
    """The finished runs of a method, of `others`, of rejection sampling, and of the method with shuffled verdicts."""
    passes, dev, heldout = (2, 20, 30) if lab.quick else (10, 150, 250)
    common = ["rounds=1", f"method.parts={passes}", f"dataset.train_size={16 * passes}"]
    arms = {name: [f"method={name}"], **others, IMITATION: IMITATE}
    greedy = partial(best_of_n, n=1, temperature=0.0)
    chosen = chosen_rates(lab, common, arms, RATES[1:2] if lab.quick else RATES, greedy, last, dev)
    all_arms = tuned(arms, chosen)
    all_arms[SHUFFLED] = [*all_arms[name], "control=shuffled_verdicts"]
    return run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], all_arms)


def common_claims(lab: Lab, name: str, runs: Runs, command: str) -> Iterator[Claim]:
    """What is claimed of every such method; the table of all arms is noted first."""
    mine = runs[name]
    n = max(3, round(answers_worth(mine)))
    samples = [base_answers(result, n, seed) for seed, result in enumerate(mine)]
    lab.note(table(runs, samples, n))
    yield bounded("held-out accuracy rises", gain(mine), 0.0, "the policy it starts from", command)
    text = f"with shuffled verdicts it gains less than {100 * MARGIN:.0f} points"
    yield below(text, gain(runs[SHUFFLED]), MARGIN, "the policy it starts from", command)
    text = f"it gains more than by {IMITATION}"
    yield bounded(text, advantage(mine, runs[IMITATION]), 0.0, "rejection sampling, as many answers and steps", command)
    text = f"one greedy answer is right more often than the majority of {n} answers of the start"
    ahead = difference([r.heldout() for r in mine], [solved(groups, vote) for groups in samples])
    yield bounded(text, ahead, 0.0, "as many tokens as learning sampled", command)


def alike(claim: str, estimate: Estimate, control: str, command: str) -> Claim:
    """A claim that two arms are as good as each other, within MARGIN."""
    return claim_within(claim, estimate, MARGIN, control, command)


def answers_worth(results: Sequence[Result]) -> float:
    """How many greedy answers of the start to each held-out problem have as many tokens as learning sampled."""
    answer = sum(group[0].trajectory.sampled_tokens for group in heldout_attempts(results[0], "base"))
    return float(np.mean([result.sampled_tokens for result in results])) / answer


def base_answers(result: Result, n: int, seed: int) -> Groups:
    """n answers of the shipped policy to each of a run's held-out problems, at temperature 1."""
    return answers_of(SHIPPED, heldout_problems(result), votes(n), seed)


def table(runs: Runs, samples: Sequence[Groups], n: int) -> Table:
    """The start, what it does with as many tokens, and each arm after training."""
    first = next(iter(runs.values()))
    share = {
        f"start, majority of {n}": overall([solved(groups, vote) for groups in samples]),
        f"start, any of {n} right": float(np.mean([any(right(group)) for groups in samples for group in groups])),
    }
    rows: dict[str, tuple[float, Sequence[Result]]] = {
        "start": (overall([r.heldout("base") for r in first]), ()),
        **{name: (value, ()) for name, value in share.items()},
        **{name: (overall([r.heldout() for r in results]), results) for name, results in runs.items()},
    }

    def mean(values: Sequence[float]) -> str:
        return f"{np.mean(values):,.0f}" if values else ""

    return arms_table(
        "Held-out accuracy, one greedy answer where not said otherwise, means over seeds",
        rows,
        {
            "accuracy": lambda row: f"{100 * row[0]:.1f} %",
            "learning rate": lambda row: f"{rate_of(row[1][0]):g}" if row[1] else "",
            "rows": lambda row: mean([r.summary["rounds"][-1]["examples"] for r in row[1]]),
            "sampled tokens": lambda row: mean([r.sampled_tokens for r in row[1]]),
        },
    )
