"""What studies of continual learning share: the matrix of a run, and the choice of a learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfimprove import scores
from selfimprove.report import continual
from selfimprove.studies import Claim, Lab, Result
from selfimprove.studies.draws import spread

RATES = (1e-3, 3e-3)


def chosen(lab: Lab, words: Sequence[str]) -> float:
    """The learning rate after which the tasks' mean accuracy is best on dev pictures."""
    dev = ("eval.side=dev", "dataset.dev_size=100", "seed=100")
    runs = {rate: lab.run(*words, *dev, f"method.train.learning_rate={rate}") for rate in RATES}
    return max(runs, key=lambda rate: continual.average(matrix(runs[rate])))


def forgets(text: str, less: list[Result], more: list[Result], control: str) -> Claim:
    """A claim that forgetting is greater in some runs than in others, seed by seed; not clear where 0 is inside."""
    pairs = zip(less, more, strict=True)
    change = np.array([continual.forgetting(matrix(b)) - continual.forgetting(matrix(a)) for a, b in pairs])
    interval = spread(change)
    apart = interval and (interval[0] > 0 or interval[1] < 0)
    return Claim(text, bool(change.mean() > 0) if apart else None, float(change.mean()), interval, control,
                 more[0].command)  # fmt: skip


def matrix(result: Result) -> np.ndarray:
    """Accuracy by task of the base policy and after each round, shape (rounds + 1, tasks)."""
    folders = [result.path / "base", *sorted(result.path.glob("rounds/*"))]
    return continual.matrix([scores.read(folder / "evaluation" / scores.FILE) for folder in folders])
