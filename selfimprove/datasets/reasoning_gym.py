"""Generated problems of any reasoning-gym task, or a mixture of tasks (Stojanovski et al. 2025, arXiv 2505.24760).

The three sides have different seeds. Held-out and dev problems are generated first. No question occurs twice, on one
side or on two.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Unpack

from selfimprove import seeds
from selfimprove.datasets import Generated, Row, Side, finish, sizes_of
from selfimprove.errors import ConfigError
from selfimprove.types import Problem
from selfimprove.verify.reasoning_gym import library, pack

# If a task has no answer, its record may show one under these keys.
_EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")
_NONSENSE = "no such answer"
_TRIES = 20  # after this many seeds in a row without a new question, the search ends


@dataclass(frozen=True)
class Task:
    """A task with its weight in the mixture and its options. A bare name has weight 1 and no options."""

    name: str
    weight: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)


def load(
    *,
    tasks: list[str | Task],
    seed: int,
    **options: Unpack[Generated],
) -> list[Problem]:
    """Problems with the ids "<task>-<hash of the question>". Tasks are drawn by their weights.

    The seed chooses the train problems; dev and held-out ones are the same for every seed. The gold answer is the
    task's, or one that its record shows; `boxnet` and `rush_hour` have none. Raises ConfigError if the package is not
    installed or has no such task or option. It also does so if a task's scorer accepts nonsense, or if the tasks do not
    give enough different problems.
    """
    mixture = {task.name: task for task in (Task(task) if isinstance(task, str) else task for task in tasks)}
    if not tasks or len(mixture) < len(tasks):
        raise ConfigError(f"dataset.tasks: {list(tasks)} should be different tasks of reasoning-gym", "dataset.tasks")
    _require(mixture)
    rows: list[Row] = []
    seen: set[str] = set()
    for side, size in reversed(sizes_of(options).items()):
        misses = count = drawn = 0
        while count < size and misses < _TRIES:
            start = seeds.derive(seed if side == "train" else 0, "reasoning_gym", side, drawn) % 2**32
            before, drawn = count, drawn + 1
            for row in _draw(mixture, start, size - count, side):
                if row.question not in seen:
                    seen.add(row.question)
                    rows.append(row)
                    count += 1
            misses = 0 if count > before else misses + 1
        if count < size:
            key = f"dataset.{'heldout' if side == 'test' else side}_size"
            raise ConfigError(f"{key}={size}: {', '.join(mixture)} gave only {count} problems not given before", key)
    return finish(rows, name="reasoning_gym", seed=seed, **options)


def _require(mixture: dict[str, Task]) -> None:
    known: Sequence[str] = [name for name in library().factory.DATASETS if name != "composite"]
    for name, task in mixture.items():
        key = f"dataset.tasks: {name}"
        if name not in known:
            close = difflib.get_close_matches(name, known) or sorted(known)
            raise ConfigError(f"{key}: reasoning-gym has no such task; it has {', '.join(close)}", "dataset.tasks")
        if not task.weight > 0:
            raise ConfigError(f"{key}: weight={task.weight} should be above 0", "dataset.tasks")
        if reserved := {"seed", "size"} & task.config.keys():
            raise ConfigError(f"{key}: config.{min(reserved)} is given by the data set; leave it out", "dataset.tasks")
        try:
            made = library().create_dataset(name, size=1, seed=0, **task.config)
            entry = made[0]
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"{key}: config: {error or 'not valid'}", "dataset.tasks") from None
        with suppress(ValueError):  # some scorers raise on an answer they cannot read, which is fine
            if made.score_answer(_NONSENSE, entry) >= 1.0:
                fault = f"its scorer calls {_NONSENSE!r} right, so its verdicts mean nothing"
                raise ConfigError(f"{key}: {fault}", "dataset.tasks")


def _draw(mixture: dict[str, Task], seed: int, size: int, side: Side) -> list[Row]:
    """`size` problems from one seed."""
    specs = [
        library().composite.DatasetSpec(name=name, weight=task.weight, config=task.config)
        for name, task in mixture.items()
    ]
    rows = []
    for entry in library().create_dataset("composite", size=size, seed=seed, datasets=specs):
        record = entry["metadata"]
        task, question = record["source_dataset"], entry["question"]
        name = f"{task}-{seeds.derive(0, question):016x}"
        metadata = {"task": task, "config": mixture[task].config, "entry": pack(record)}
        rows.append(Row(name, question, _gold(entry), name, side, metadata))
    return rows


def _gold(entry: dict[str, Any]) -> str | None:
    if entry["answer"] is not None:
        return str(entry["answer"])
    for key in _EXAMPLES:
        if key in entry["metadata"]:
            shown = entry["metadata"][key]
            return shown if isinstance(shown, str) else json.dumps(shown)
    return None
