"""Do blocks grow on tasks that look new and on no others, and is a mixture that grows as good as an adapter a task?

Claims of Wang et al. 2024 (arXiv 2403.18886), on handwritten digits in five tasks of two classes: the third is turned,
the fourth is inverted, the others are upright. Each arm has the learning rate with which it is best on dev pictures of
a seed that no comparison uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from selfimprove.studies import Claim, Lab, Result, claim_sign, claim_within, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.staged import metrics
from selfimprove.studies.streams import final, forgotten, tuned_arms

OWN, SHARED, EACH = "threshold 2", "one shared adapter", "threshold 0, an adapter a task"
ARMS = {
    EACH: ["method.train.threshold=0"],
    "threshold 1": ["method.train.threshold=1"],
    OWN: [],
    "threshold 4": ["method.train.threshold=4"],
    SHARED: ["method.train.shared=true"],
}
RISING = (EACH, "threshold 1", OWN, "threshold 4")
FAMILIAR, CHANGED = (1, 4), (2, 3)  # tasks of dataset=digit_changes after the first
TASKS = 5
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
MARGIN = 0.03  # of "as good as": fixed before any run


def study(lab: Lab) -> Iterator[Claim]:
    train, heldout, epochs = (60, 40, 5) if lab.quick else (600, 400, 20)
    common = ["method=sema", f"dataset.train_size={train}", f"dataset.heldout_size={heldout}"]
    common += [f"method.train.epochs={epochs}"]
    runs, rates = tuned_arms(lab, common, ARMS, RATES, 100)
    yield from growth(runs)
    yield from accuracy(runs)
    lab.note(table(runs, rates))


def modules(result: Result) -> list[int]:
    """Modules of each block that can grow, at the end."""
    return [int(value) for name, value in metrics(result)[-1].items() if name.startswith("modules/")]


def grew(results: list[Result], rounds: tuple[int, ...]) -> float:
    """How many blocks grew a round, mean over these rounds and seeds."""
    return float(np.mean([metrics(result)[number]["grown"] for result in results for number in rounds]))


def growth(runs: Mapping[str, list[Result]]) -> Iterator[Claim]:
    own = runs[OWN]
    changed, familiar = grew(own, CHANGED), grew(own, FAMILIAR)
    yield Claim(
        "blocks grow on the turned and inverted tasks and not on familiar ones",
        changed > 0 and familiar == 0,
        f"{changed:.2f} blocks a changed task, {familiar:.2f} a familiar one, of {len(modules(own[0]))}",
        None,
        "upright tasks after the first",
        own[0].command,
    )
    most = max(max(modules(result)) for result in own)
    text = "each block has fewer adapters than there are tasks"
    yield Claim(text, most < TASKS, f"at most {most} of {TASKS}", None, "an adapter a task", own[0].command)
    counts = [np.mean([sum(modules(result)) for result in runs[arm]]) for arm in RISING]
    yield Claim(
        "the number of adapters never rises with the threshold",
        bool(np.all(np.diff(counts) <= 0)),
        ", ".join(f"{count:.1f}" for count in counts),
        None,
        "thresholds 0, 1, 2, 4; adapters of all blocks, means over seeds",
        own[0].command,
    )


def accuracy(runs: Mapping[str, list[Result]]) -> Iterator[Claim]:
    own = runs[OWN]
    scores = {arm: [final(result) for result in results] for arm, results in runs.items()}
    change = difference(scores[OWN], scores[SHARED])
    yield claim_sign("accuracy at the end: above one shared adapter", change, SHARED, own[0].command)
    less = difference([forgotten(r) for r in runs[SHARED]], [forgotten(r) for r in own])
    yield claim_sign("forgets less than one shared adapter", less, SHARED, own[0].command)
    change = difference(scores[OWN], scores[EACH])
    text = f"accuracy at the end: within {100 * MARGIN:.0f} points of an adapter a task"
    yield claim_within(text, change, MARGIN, EACH, own[0].command)


def table(runs: Mapping[str, list[Result]], rates: Mapping[str, float]) -> object:
    return arms_table(
        "Means over seeds",
        {f"{arm}, rate {rates[arm]:g}": results for arm, results in runs.items()},
        {
            "accuracy at the end": lambda rs: f"{100 * overall([final(r) for r in rs]):.1f} %",
            "forgotten": lambda rs: f"{100 * overall([forgotten(r) for r in rs]):.1f} %",
            "adapters": lambda rs: f"{np.mean([sum(modules(r)) for r in rs]):.1f}",
            "grew on changed tasks": lambda rs: f"{grew(rs, CHANGED):.2f}",
            "grew on familiar tasks": lambda rs: f"{grew(rs, FAMILIAR):.2f}",
        },
    )
