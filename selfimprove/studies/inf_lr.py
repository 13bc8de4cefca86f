"""Does a rate that stays constant forget less over three corpora than a cosine that is warmed up again for each?

Claims of Singh et al. 2025 (arXiv 2503.02844), on small texts that every Python has. All arms take as many steps on the
same texts, and carry the optimizer's moments from corpus to corpus. Each arm has the rate with which its last policy is
best on dev texts of a seed that no comparison uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from selfimprove import scores
from selfimprove.studies import Claim, Lab, Result, claim_above, claim_sign, difference, gated, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.staged import minus, over_rounds
from selfimprove.studies.streams import tuned_arms

COSINE = [
    "~method.stages.anneal",
    "~method.train.infinite",
    "method.train.epochs=1.05",
    "+method.train.warmup_ratio=0.1",
]
ARMS = {
    "infinite, annealed": [],
    "repeated cosine": [*COSINE, "method.train.schedule=cosine_with_restarts"],
    "planned cosine": [*COSINE, "method.train.schedule=cosine"],
}
OWN, REPEATED, PLANNED = ARMS
RATES = (1e-3, 3e-3)
FIRST, LAST = "code", "names"
MARGIN = 1.02  # of the loss: how near to a planned cosine an annealing has to come


def study(lab: Lab) -> Iterator[Claim]:
    common, arms = ["method=inf_lr"], dict(ARMS)
    if lab.quick:
        common += ["dataset.train_size=192", "dataset.heldout_size=30"]
        arms[OWN] = ["method.train.infinite.warmup=1", "method.train.infinite.cooldown=5"]
    runs, rates = tuned_arms(lab, common, arms, RATES, 90)
    yield from claims(runs)
    lab.note(table(runs, rates))


def read(result: Result, round: int = -1, corpus: str = "") -> dict[str, float]:
    """Held-out text -> its mean log-likelihood (nats a token) after a round: of one corpus, or of all."""
    folder = sorted(result.path.glob("rounds/*/evaluation"))[round]
    return {
        name: value for name, value in scores.read(folder / scores.FILE).by_problem.items() if name.startswith(corpus)
    }


def forgotten(result: Result) -> dict[str, float]:
    """Held-out text of the first corpus -> how much less likely it is at the end than after its own round."""
    return minus(read(result, 0, FIRST), read(result, -1, FIRST))


def claims(runs: Mapping[str, list[Result]]) -> Iterator[Claim]:
    own, repeated, planned = runs[OWN], runs[REPEATED], runs[PLANNED]
    lost = [forgotten(r) for r in repeated]
    premise = claim_above(
        "premise: a repeated cosine forgets the first corpus, nats",
        difference(lost, [dict.fromkeys(one, 0.0) for one in lost]),
        "its loss after the first corpus",
        repeated[0].command,
    )
    yield premise
    yield claim_sign(
        "mean loss over all corpora at the end is lower, nats",
        difference([read(r) for r in own], [read(r) for r in repeated]),
        REPEATED,
        own[0].command,
    )
    less = claim_sign(
        "less of the first corpus is forgotten, nats",
        difference(lost, [forgotten(r) for r in own]),
        f"{REPEATED}; each from where it stood after the first corpus, the infinite rate before any annealing",
        own[0].command,
    )
    yield from gated([less], premise.holds is True, "a repeated cosine does not clearly forget")
    yield claim_sign(
        "loss on the first corpus at the end is lower, nats",
        difference([read(r, -1, FIRST) for r in own], [read(r, -1, FIRST) for r in repeated]),
        REPEATED,
        own[0].command,
    )
    yield claim_sign(
        "annealed, the loss over all corpora is within 2 % of a planned cosine's, nats to spare",
        difference([read(r) for r in own], [{k: MARGIN * v for k, v in read(r).items()} for r in planned]),
        f"1.02 times the loss of {PLANNED}",
        own[0].command,
    )


def table(runs: Mapping[str, list[Result]], rates: Mapping[str, float]) -> object:
    def loss(results: list[Result], round: int, corpus: str = "") -> str:
        return f"{-overall([read(r, round, corpus) for r in results]):.3f}"

    return arms_table(
        "Loss on held-out texts, nats a token, means over seeds",
        {f"{arm}, rate {rates[arm]:g}": results for arm, results in runs.items()},
        {
            f"{FIRST}, after round 0": lambda r: loss(r, 0, FIRST),
            f"{FIRST}, end": lambda r: loss(r, -1, FIRST),
            f"{LAST}, end": lambda r: loss(r, -1, LAST),
            "all, end": lambda r: loss(r, -1),
            "steps": lambda r: f"{np.mean([over_rounds(one, 'steps') for one in r]):.0f}",
        },
    )
