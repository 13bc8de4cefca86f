"""Measures how answers change from one turn to the next: what is corrected, what is spoilt, how much is rewritten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfimprove.types import Attempt

Pair = tuple[Attempt, Attempt]  # one problem's candidates of two successive turns


def revisions(pairs: Sequence[Pair], turn: int) -> dict[str, float]:
    """How turn K = `turn` changed the turn before it, as means over all problems.

    `i_to_c@tK`: wrong before and right at turn K. `c_to_i@tK`: right before and wrong at turn K. The first minus the
    second is the change of accuracy. `same@tK`: both texts are equal. `edit@tK`: their edit distance.
    """
    right = [(before.verdict.status == "correct", after.verdict.status == "correct") for before, after in pairs]
    texts = [(_text(before), _text(after)) for before, after in pairs]
    n = len(pairs)
    return {
        f"i_to_c@t{turn}": sum(after and not before for before, after in right) / n,
        f"c_to_i@t{turn}": sum(before and not after for before, after in right) / n,
        f"same@t{turn}": sum(before == after for before, after in texts) / n,
        f"edit@t{turn}": sum(edit_distance(before, after) for before, after in texts) / n,
    }


def _text(attempt: Attempt) -> str:
    return attempt.trajectory.text if attempt.trajectory.samples else ""


def edit_distance(first: str, second: str) -> float:
    """The Levenshtein distance in characters divided by the longer text's length: 0 for equal texts, at most 1."""
    if not first or not second:
        return float(first != second)
    a, b = np.array([ord(c) for c in first]), np.array([ord(c) for c in second])
    places = np.arange(len(b) + 1)
    row = places
    for i, letter in enumerate(a, start=1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (b != letter))  # delete a letter, or keep or replace it
        row = np.minimum.accumulate(np.concatenate([[i], kept]) - places) + places  # or insert letters
    return float(row[-1]) / max(len(a), len(b))
