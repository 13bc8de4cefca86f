"""How an answer changes from one turn to the next: what is corrected, what is spoilt, and how much is written anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selfimprove.types import Attempt

Pair = tuple[Attempt, Attempt]  # one problem's candidates of a turn and of the turn after it


def revisions(pairs: Sequence[Pair], turn: int) -> dict[str, float]:
    """Figures of what `turn` made of the turn before, each a mean over all problems.

    `i_to_c@tK`: wrong before and right at turn K. `c_to_i@tK`: right before and wrong at turn K. Accuracy at K is that
    before it plus the first minus the second. `same@tK`: both answers have the same words. `edit@tK`: their edit
    distance.
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
    """Levenshtein's distance in characters over the length of the longer text: 0 for equal texts, 1 at most."""
    if not first or not second:
        return float(first != second)
    a, b = np.array([ord(c) for c in first]), np.array([ord(c) for c in second])
    places = np.arange(len(b) + 1)
    row = places
    for i, letter in enumerate(a, start=1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (b != letter))  # a letter is deleted, or kept or exchanged
        row = np.minimum.accumulate(np.concatenate([[i], kept]) - places) + places  # or letters are inserted
    return float(row[-1]) / max(len(a), len(b))
