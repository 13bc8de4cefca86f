"""View batches: do a longer rest and several views side by side keep old tasks, in as many steps?

Each arm is replay with a memory of 200. It has the learning rate, of the same three, with which it is best on dev
pictures of a seed that no comparison uses. iCaRL, the paper's base, is not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from selfimprove.report import continual
from selfimprove.studies import Claim, Lab, advantage, claim_sign
from selfimprove.studies.arms import arms_table
from selfimprove.studies.staged import over_rounds
from selfimprove.studies.streams import forgets, matrix, tuned_arms

RATES = (1e-3, 3e-3, 1e-2)
ARMS = {
    "V = 4": (),
    "V = 4, no KL": ("method.train.views.alpha=0",),
    "V = 1": ("method.train.views=null",),
}


def study(lab: Lab) -> Iterator[Claim]:
    train, heldout, epochs = (60, 50, 8) if lab.quick else (300, 200, 12)
    size = ("method=view_batch", f"dataset.train_size={train}", f"dataset.heldout_size={heldout}",
            f"method.train.epochs={epochs}")  # fmt: skip
    arms, rates = tuned_arms(lab, size, ARMS, RATES, 100)
    views, silent, plain = arms.values()
    yield claim_sign("AA: V = 4 above V = 1", advantage(views, plain), "V = 1", views[0].command)
    yield claim_sign("AA: with the KL term above without", advantage(views, silent), "V = 4, no KL", views[0].command)
    yield forgets("FM: V = 1 forgets more than V = 4", views, plain, "V = 4")
    yield forgets("FM: without the KL term more than with it", views, silent, "V = 4")

    def mean(name: str, figure: Callable[[np.ndarray], float]) -> str:
        return f"{np.mean([figure(matrix(result)) for result in arms[name]]):.3f}"

    columns = {
        "AA": lambda name: mean(name, continual.average),
        "FM": lambda name: mean(name, continual.forgetting),
        "steps": lambda name: f"{np.mean([over_rounds(result, 'steps') for result in arms[name]]):.0f}",
        "rate": lambda name: f"{rates[name]}",
    }
    lab.note(arms_table("Replay, means over seeds", {name: name for name in arms}, columns))
