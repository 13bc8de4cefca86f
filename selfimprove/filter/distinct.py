"""Accepted answers as examples for fine-tuning: each answer once, and not too many for one problem."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from selfimprove.types import Attempt, Example, Trajectory


def distinct(attempts: Sequence[Attempt], per_problem: int, seed: int) -> Iterator[Example]:
    """The answers to one problem that differ in their token ids. If there are more than `per_problem`, a random few.

    An answer that was cut off at the token limit is left out, whatever its verdict. It would teach the policy not to
    end its answers.
    """
    whole = [a for a in attempts if a.trajectory.samples[-1].finish == "stop"]
    kept = list({tuple(answered(a.trajectory)[1]): a for a in whole}.values())
    if len(kept) > per_problem:
        kept = random.Random(f"{seed}/{kept[0].problem.id}").sample(kept, per_problem)
    for attempt in kept:
        yield Example(attempt.problem.id, [attempt.trajectory.id], *answered(attempt.trajectory))


def answered(trajectory: Trajectory) -> tuple[list[int], list[int]]:
    """(prompt ids, completion ids) of an attempt as an answer to its problem's own prompt.

    In a longer dialogue the first sample has that prompt, and the last one has the answer. The turns in between are not
    imitated. If the assistant's turn was `continued`, the completion is all that stands behind the prompt. So it also
    has the text that was put into the turn.
    """
    first, last = trajectory.samples[0], trajectory.samples[-1]
    if trajectory.metadata.get("continued"):
        return first.prompt_ids, [*last.prompt_ids, *last.completion_ids][len(first.prompt_ids) :]
    return first.prompt_ids, last.completion_ids
