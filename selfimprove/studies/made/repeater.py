"""The shipped model, taught to answer a second time as large models do that are asked to: mostly with the same words.

It has no skill of correcting: a second answer is the first one again, or another first answer of its own.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove import store
from selfimprove.datasets import arithmetic as data
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.studies import tiny
from selfimprove.studies.solving import solve
from selfimprove.types import Example

ASK = "Improve this solution."
REPEATS = 0.7  # how often a second answer is the first one again
TUNING: dict[str, Any] = {"epochs": 2, "learning_rate": 1.5e-3, "batch_size": 32, "warmup_ratio": 0.05}
SEED = 200  # of the problems: no run of the study uses it


def make(folder: Path, count: int) -> Path:
    """The folder of the model that was tuned on dialogues about `count` problems."""
    name = store.digest([count, TUNING, REPEATS, ASK])[:8]
    return tiny.trained(folder / f"repeating_{name}", partial(dialogues, count), **TUNING)


def dialogues(count: int) -> list[Example]:
    """Two first answers to each problem, drawn from the shipped model, as two rows: a first turn, and a second one."""
    engine, rng = tiny.shipped(), random.Random(0)
    problems = [
        p for p in data.load(levels=(3, 4, 5), train_size=count, heldout_size=1, seed=SEED) if p.split == "train"
    ]
    found = solve(partial(best_of_n, n=2, temperature=1.0), engine, problems, max_tokens=96)
    rows = list[Example]()
    for problem, trajectories in zip(problems, found, strict=True):
        first, other = (t.samples[0] for t in trajectories)
        if first.finish == other.finish == "stop":
            shown = [*first.prompt_ids, *first.completion_ids, *engine.turn(ASK, True)]
            second = first if rng.random() < REPEATS else other
            rows.append(Example(problem.id, [], first.prompt_ids, first.completion_ids))
            rows.append(Example(problem.id, [], shown, second.completion_ids))
    return rows
