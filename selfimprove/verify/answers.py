"""Rules that choose one of a problem's candidates as its answer, without asking whether it is right.

A rule gets a problem's attempts in the order they were found, and returns the index of the chosen one, or None. What a
reward means depends on the verifier: with one that reads gold answers, `best` is an oracle's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfimprove.types import Attempt, Count
from selfimprove.verify.equality import canonical


def stage(attempt: Attempt) -> int:
    """The round of thinking in which a candidate was found: 0 unless its solver says otherwise."""
    return int(attempt.trajectory.metadata.get("stage", 0))


def vote(group: Sequence[Attempt], *, window: Count | None = None) -> int | None:
    """The first candidate with the most frequent answer in the last `window` stages (None: in all stages).

    Of equally frequent answers, the first found wins. Candidates without an answer do not vote. Answers are equal by
    `equality.canonical`.
    """
    stages = sorted({stage(attempt) for attempt in group})
    counted = set(stages if window is None else stages[-window:])
    answers = {
        i: form
        for i, attempt in enumerate(group)
        if stage(attempt) in counted and (form := canonical(attempt.verdict.extracted or "")) is not None
    }
    if not answers:
        return None
    votes = Counter(answers.values())
    return max(answers, key=lambda i: (votes[answers[i]], -i))


def weighted(group: Sequence[Attempt], *, heaviest: Count | None = None, window: Count | None = None) -> int | None:
    """The first candidate with the answer whose candidates weigh most together, by the `weight` that their solver gave
    each (in the metadata; 0 if it gave none). Only the `heaviest` candidates vote, of those of the last `window`
    stages; None for either: all. Of equals, what was there first.
    """
    stages = sorted({stage(attempt) for attempt in group})
    counted = set(stages if window is None else stages[-window:])
    weights = {i: float(a.trajectory.metadata.get("weight", 0.0)) for i, a in enumerate(group) if stage(a) in counted}
    voters = sorted(sorted(weights, key=lambda i: (-weights[i], i))[:heaviest])
    sums, first = dict[str, float](), dict[str, int]()
    for i in voters:
        if (form := canonical(group[i].verdict.extracted or "")) is not None:
            sums[form] = sums.get(form, 0.0) + weights[i]
            first.setdefault(form, i)
    return first[max(sums, key=lambda form: (sums[form], -first[form]))] if sums else None


def best(group: Sequence[Attempt]) -> int | None:
    """The candidate with the highest reward; the first one if several are equal."""
    return max(range(len(group)), key=lambda i: (group[i].verdict.reward, -i), default=None)


def last(group: Sequence[Attempt]) -> int | None:
    """The first candidate of the last stage."""
    final = max(map(stage, group), default=0)
    return next((i for i, attempt in enumerate(group) if stage(attempt) == final), None)
