"""The shipped model with most of its skill of refining unlearnt: asked to improve an answer, it answers much as before.

The shipped model's second answers are far better than its first ones, so it has little to learn of correcting.
"""

from __future__ import annotations

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
LEVELS = (3, 4, 5)
TUNING: dict[str, Any] = {"epochs": 1, "learning_rate": 5e-4, "batch_size": 32, "warmup_ratio": 0.05}
SEED = 200  # of the problems: no run of a study uses it


def make(folder: Path, count: int = 1000) -> Path:
    """The folder of the model that was tuned on dialogues about `count` problems."""
    return tiny.trained(folder / f"anew_{store.digest([count, TUNING, ASK])[:8]}", partial(dialogues, count), **TUNING)


def dialogues(count: int) -> list[Example]:
    """Two first answers to each problem, drawn from the shipped model, as two rows: a first turn, and a second one."""
    engine = tiny.shipped()
    problems = [p for p in data.load(levels=LEVELS, train_size=count, heldout_size=1, seed=SEED) if p.split == "train"]
    found = solve(partial(best_of_n, n=2, temperature=1.0), engine, problems, max_tokens=96)
    rows = list[Example]()
    for problem, trajectories in zip(problems, found, strict=True):
        first, second = (t.samples[0] for t in trajectories)
        if first.finish == second.finish == "stop":
            shown = [*first.prompt_ids, *first.completion_ids, *engine.turn(ASK, True)]
            rows.append(Example(problem.id, [], first.prompt_ids, first.completion_ids))
            rows.append(Example(problem.id, [], shown, second.completion_ids))
    return rows
