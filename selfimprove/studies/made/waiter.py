"""The shipped model, taught to correct itself behind "Wait."."""

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

WAIT = "\nWait.\n"  # the trigger here: the default's words are 60 tokens of the shipped model's
TRIGGERS = 3  # of a trace, at most
TUNING: dict[str, Any] = {"epochs": 3, "learning_rate": 1.5e-3, "batch_size": 32, "warmup_ratio": 0.05}


def make(folder: Path, count: int) -> Path:
    """The folder of the model that was tuned on traces of `count` problems."""
    name = store.digest([count, TUNING, TRIGGERS, WAIT])[:8]
    return tiny.trained(folder / f"waiting_{name}", partial(traces, count), **TUNING)


def traces(count: int) -> list[Example]:
    """Traces of the shipped model's own drafts, each with up to TRIGGERS triggers.

    A draft is cut anywhere. Behind each trigger stands the right solution step by step, of which all but the last may
    be cut too. What follows a trigger bears loss, the trigger does not. A quarter as many plain drafts are learnt, so
    that the model drafts on as before.
    """
    engine = tiny.shipped()
    problems = [
        p for p in data.load(levels=(3, 4, 5, 6), train_size=count, heldout_size=1, seed=0) if p.split == "train"
    ]
    drafts = solve(partial(best_of_n, n=1, temperature=1.0), engine, problems, max_tokens=96)
    rng, wait = random.Random(0), engine.encode(WAIT)
    rows = []
    for problem, (draft,) in zip(problems, drafts, strict=True):
        (sample,) = draft.samples
        if rng.random() < 0.25:
            rows.append(Example(problem.id, [], sample.prompt_ids, sample.completion_ids))
        ended = sample.finish == "stop"
        ids = cut(rng, sample.completion_ids[:-1] if ended else sample.completion_ids)
        mask = [0] * len(ids)
        right = engine.encode(data.solution(data.Chain.of(problem.metadata)))
        triggers = rng.randint(1, TRIGGERS)
        for i in range(triggers):
            again = cut(rng, right) if i + 1 < triggers else [*right, engine.tokenizer.eos_token_id]
            ids, mask = ids + wait + again, mask + [0] * len(wait) + [1] * len(again)
        rows.append(Example(problem.id, [], sample.prompt_ids, ids, mask=mask))
    return rows


def cut(rng: random.Random, ids: list[int]) -> list[int]:
    """The ids, or as often only a start of them."""
    return ids if rng.random() < 0.5 else ids[: rng.randint(1, len(ids))]
