"""Baselines of continual learning: who keeps the old tasks, and what it costs on new ones.

Each arm has the learning rate, of the same three, with which it is best on dev pictures of a seed that no comparison
uses. Prototypes learn by none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from selfimprove.report import continual
from selfimprove.studies import Claim, Lab, Result, advantage, claim_sign, claim_within
from selfimprove.studies.arms import arms_table
from selfimprove.studies.streams import forgets, matrix, tuned_arms

JOINT = ("method.train.family=finetune", "+method.problems.before=true", "method.start=base")
ALONE = ("method.train.family=finetune", "method.start=base")
ARMS = {
    "joint": JOINT,
    **{name: (f"method.train.family={name}",) for name in ("replay", "lwf", "ewc", "finetune")},
    **{name: (f"method.train.family={name}",) for name in ("agem", "prototypes", "adapters")},
    "each task alone": ALONE,
}
RATES = (1e-3, 3e-3, 1e-2)
MARGIN = 0.05  # of "about as good": fixed before any run


def study(lab: Lab) -> Iterator[Claim]:
    train, heldout, epochs = (60, 50, 8) if lab.quick else (300, 200, 10)
    size = ("method=cl_suite", f"dataset.train_size={train}", f"dataset.heldout_size={heldout}",
            f"method.train.epochs={epochs}")  # fmt: skip
    arms, rates = tuned_arms(lab, size, ARMS, RATES, 100)
    yield from orders(arms)
    lab.note(figures_table(arms, rates))


def orders(arms: dict[str, list[Result]]) -> Iterator[Claim]:
    """joint > replay > LwF >= EWC ~ fine-tuning in AA, and the reverse in forgetting."""
    for better, worse in (("joint", "replay"), ("replay", "lwf"), ("lwf", "finetune"), ("lwf", "ewc")):
        change = advantage(arms[better], arms[worse])
        yield claim_sign(f"AA: {better} above {worse}", change, worse, arms[better][0].command)
    change = advantage(arms["ewc"], arms["finetune"])
    text = f"AA: ewc is within {100 * MARGIN:.0f} points of finetune"
    yield claim_within(text, change, MARGIN, "finetune", arms["ewc"][0].command)
    for less, more in (("joint", "replay"), ("replay", "lwf"), ("lwf", "finetune")):
        yield forgets(f"FM: {more} forgets more than {less}", arms[less], arms[more], less)


def figures_table(arms: Mapping[str, list[Result]], rates: Mapping[str, float]) -> object:
    """Means over seeds of all figures, for each arm but the reference of FWT."""
    every = {name: [matrix(result) for result in results] for name, results in arms.items()}
    joint, alone = ([np.diag(a[1:]) for a in every[name]] for name in ("joint", "each task alone"))

    def mean(values: Iterable[float]) -> str:
        return f"{np.mean(list(values)):.3f}"

    def incremental(a: np.ndarray) -> float:
        return float(np.mean([continual.average(a[: k + 1]) for k in range(1, len(a))]))

    return arms_table(
        "Means over seeds, class-incremental",
        {name: name for name in arms if name != "each task alone"},
        {
            "AA": lambda name: mean(continual.average(a) for a in every[name]),
            "AIA": lambda name: mean(incremental(a) for a in every[name]),
            "FM": lambda name: mean(continual.forgetting(a) for a in every[name]),
            "BWT": lambda name: mean(continual.backward(a) for a in every[name]),
            "FWT": lambda name: mean(continual.forward(a, b) for a, b in zip(every[name], alone, strict=True)),
            "FWT_GEM": lambda name: mean(continual.forward_gem(a) for a in every[name]),
            "IM": lambda name: mean(continual.intransigence(a, b)[-1] for a, b in zip(every[name], joint, strict=True)),
            "rate": lambda name: "" if name == "prototypes" else f"{rates[name]:g}",
        },
    )  # fmt: skip
