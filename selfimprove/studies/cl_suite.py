"""Baselines of continual learning: who keeps the old tasks, and what it costs on new ones.

The learning rate of each arm that a claim is about is the better of two on dev pictures of a seed that no comparison
uses. A-GEM has that of replay; adapters and tasks alone have that of fine-tuning; prototypes learn by none.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from selfimprove.report import continual
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result, advantage, claim_sign, measured
from selfimprove.studies.arms import arms_table
from selfimprove.studies.continual import RATES, chosen, forgets, matrix

JOINT = ("method.train.family=finetune", "+method.problems.before=true", "method.start=base")
ALONE = ("method.train.family=finetune", "method.start=base")
ARMS = {
    "joint": JOINT,
    **{name: (f"method.train.family={name}",) for name in ("replay", "lwf", "ewc", "finetune")},
    **{name: (f"method.train.family={name}",) for name in ("agem", "prototypes", "adapters")},
    "each task alone": ALONE,
}
LIKE = {"agem": "replay", "adapters": "finetune", "prototypes": "finetune", "each task alone": "finetune"}
MARGIN = 0.05  # of "about as good": fixed before any run


def study(lab: Lab) -> Iterator[Claim]:
    train, heldout, epochs = (60, 50, 2) if lab.quick else (300, 200, 10)
    size = ("method=cl_suite", f"dataset.train_size={train}", f"dataset.heldout_size={heldout}",
            f"method.train.epochs={epochs}")  # fmt: skip
    arms, rates = dict[str, list[Result]](), dict[str, float]()
    for name, words in ARMS.items():
        same = rates.get(LIKE.get(name, name))
        rates[name] = same or (RATES[-1] if lab.quick else chosen(lab, (*size, *words)))
        arms[name] = lab.over_seeds(*size, *words, f"method.train.learning_rate={rates[name]}")
    yield from orders(arms)
    lab.note(figures_table(arms))


def orders(arms: dict[str, list[Result]]) -> Iterator[Claim]:
    """joint > replay > LwF >= EWC ~ fine-tuning in AA, and the reverse in forgetting."""
    for better, worse in (("joint", "replay"), ("replay", "lwf"), ("lwf", "finetune"), ("lwf", "ewc")):
        change = advantage(arms[better], arms[worse])
        yield claim_sign(f"AA: {better} above {worse}", change, worse, arms[better][0].command)
    change = advantage(arms["ewc"], arms["finetune"])
    text = f"AA: ewc is within {100 * MARGIN:.0f} points of finetune"
    yield measured(text, within(change), change, "finetune", arms["ewc"][0].command)
    for less, more in (("joint", "replay"), ("replay", "lwf"), ("lwf", "finetune")):
        yield forgets(f"FM: {more} forgets more than {less}", arms[less], arms[more], less)


def within(change: Estimate) -> bool | None:
    """Equivalence by the whole interval; None where it reaches over an end of the margin."""
    if change.low > -MARGIN and change.high < MARGIN:
        return True
    return False if change.low > MARGIN or change.high < -MARGIN else None


def figures_table(arms: dict[str, list[Result]]) -> object:
    """Means over seeds of all figures, for each arm but the reference of FWT."""
    every = {name: [matrix(result) for result in results] for name, results in arms.items()}
    joint, alone = ([np.diag(a[1:]) for a in every[name]] for name in ("joint", "each task alone"))

    def mean(of: object, digits: int = 3) -> str:
        return f"{np.mean(list(of)):.{digits}f}"  # type: ignore[call-overload]

    def row(name: str) -> list[np.ndarray]:
        return every[name]

    return arms_table(
        "Means over seeds, class-incremental",
        {name: name for name in arms if name != "each task alone"},
        {
            "AA": lambda name: mean(continual.average(a) for a in row(name)),
            "AIA": lambda name: mean(np.mean([continual.average(a[: k + 1]) for k in range(1, len(a))])
                                     for a in row(name)),
            "FM": lambda name: mean(continual.forgetting(a) for a in row(name)),
            "BWT": lambda name: mean(continual.backward(a) for a in row(name)),
            "FWT": lambda name: mean(continual.forward(a, b) for a, b in zip(row(name), alone, strict=True)),
            "FWT_GEM": lambda name: mean(continual.forward_gem(a) for a in row(name)),
            "IM": lambda name: mean(continual.intransigence(a, b)[-1] for a, b in zip(row(name), joint, strict=True)),
            "rate": lambda name: arms[name][0].overrides[-2].rpartition("=")[2],
        },
    )  # fmt: skip
