"""Limits on the number of words of a text: how one is asked for, which lengths it allows, and how well a text keeps it.

The four kinds, the lengths that they allow and the score are those of the LonGen benchmark (Quan et al. 2024, arXiv
2410.23933). The constraint is a sentence behind the instruction, where the paper has a model weave it in.
"""

from __future__ import annotations

import math
import random
from typing import Literal, TypedDict

Kind = Literal["about", "range", "above", "below"]

_ASKED = {
    "about": "Use about {} words.",
    "range": "Use {} to {} words.",
    "above": "Use more than {} words.",
    "below": "Use less than {} words.",
}


class Limit(TypedDict):
    """`words` has two numbers for a range, else one."""

    kind: Kind
    words: list[int]


def asked(limit: Limit) -> str:
    """The sentence that asks for it."""
    return _ASKED[limit["kind"]].format(*limit["words"])


def allowed(limit: Limit) -> tuple[float, float]:
    """The least and the greatest number of words that have the full score."""
    first, last = limit["words"][0], limit["words"][-1]
    return {
        "about": (0.8 * first, 1.2 * first),
        "range": (float(first), float(last)),
        "above": (float(first), 1.5 * first),
        "below": (0.5 * first, float(first)),
    }[limit["kind"]]


def score(words: int, limit: Limit) -> float:
    """1 within [a, b] = `allowed`; below it max(2 L / a - 1, 0), above it max(3 - 2 L / b, 0)."""
    a, b = allowed(limit)
    if words < a:
        return max(2 * words / a - 1, 0.0)
    return 1.0 if words <= b else max(3 - 2 * words / b, 0.0)


def drawn(rng: random.Random, words: int, unit: int) -> Limit:
    """A limit that a text of so many words keeps, or nearly so: in multiples of `unit`, and now and then of twice that.

    Kinds come in the shares of the paper's add_length_control.py: .4 about, .25 range, .1 above, .25 below.
    """
    unit *= 2 if rng.random() < 0.2 else 1
    low, high = max(unit, words // unit * unit), max(unit, math.ceil(words / unit) * unit)
    share = rng.random()
    if share < 0.4:
        return {"kind": "about", "words": [max(unit, round(words / unit) * unit)]}
    if share < 0.65:
        return {"kind": "range", "words": [low, high if high > low else low + unit]}
    return {"kind": "above", "words": [low]} if share < 0.75 else {"kind": "below", "words": [high]}
