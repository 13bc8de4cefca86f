"""The examples of a task in a stream: its own labelled problems, and a memory of earlier ones.

    filter   every problem of the pass with its label, then the memory's examples, which have metadata["replay"]
    remember a reservoir: it has each example so far with the same probability (Vitter 1985, algorithm R)

Labels come after the prediction (test, then train). So the example of a problem with an array has its gold class. The
example of a text has the attempt's answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from selfimprove.filter.distinct import answered
from selfimprove.types import Attempt, Count, Example, Memory

_KEPT = ("problem_id", "prompt_ids", "completion_ids", "metadata")  # of an example in memory


def labelled(groups: Iterable[list[Attempt]], *, memory: Sequence[Memory]) -> Iterator[Example]:
    """An example for each problem, then each example of the memory."""
    for attempts in groups:
        yield example(attempts[0])
    for kept in memory:
        own = dict(kept.metadata["example"])
        yield Example(**own | {"trajectory_ids": [], "metadata": own["metadata"] | {"replay": True}})


def reservoir(groups: Iterable[list[Attempt]], *, memory: Sequence[Memory], seed: int, size: Count) -> Iterator[Memory]:
    """`size` examples, drawn evenly from all that the run has seen so far."""
    rng, kept = random.Random(seed), list(memory)
    seen = kept[0].metadata["seen"] if kept else 0
    for attempts in groups:
        own = asdict(example(attempts[0]))
        new = Memory(own["problem_id"], metadata={"example": {name: own[name] for name in _KEPT}})
        place = len(kept) if len(kept) < size else rng.randrange(seen + 1)
        kept[place : place + 1] = [new] if place < size else kept[place : place + 1]
        seen += 1
    for one in kept:
        one.metadata["seen"] = seen
        yield one


def example(attempt: Attempt) -> Example:
    """The example of an attempt: an array's gold class, with the array as metadata["input"], or a text's answer."""
    problem, trajectory = attempt.problem, attempt.trajectory
    if problem.array is None:
        found = Example(problem.id, [trajectory.id], *answered(trajectory))
    else:
        assert problem.gold is not None
        found = Example(problem.id, [trajectory.id], [], [int(problem.gold)])
        found.metadata["input"] = asdict(problem.array)
    return with_task(found, problem.metadata)


def with_task(example: Example, metadata: dict[str, Any]) -> Example:
    example.metadata["task"] = metadata.get("task")
    return example
