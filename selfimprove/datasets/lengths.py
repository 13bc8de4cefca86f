"""Word limits of a text: the sentence that states one, the lengths it allows, and the score of keeping it.

The four kinds, the allowed lengths and the score are those of the LonGen benchmark (Quan et al. 2024, arXiv
2410.23933). Here the limit is a sentence after the instruction; in the paper a model weaves it in.
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
    """A limit of `kind`. `words` has two numbers for a range, else one."""

    kind: Kind
    words: list[int]


def asked(limit: Limit) -> str:
    """The sentence that states the limit."""
    return _ASKED[limit["kind"]].format(*limit["words"])


def allowed(limit: Limit) -> tuple[float, float]:
    """The least and the greatest number of words with the full score."""
    first, last = limit["words"][0], limit["words"][-1]
    return {
        "about": (0.8 * first, 1.2 * first),
        "range": (float(first), float(last)),
        "above": (float(first), 1.5 * first),
        "below": (0.5 * first, float(first)),
    }[limit["kind"]]


def score(words: int, limit: Limit) -> float:
    """The score of L = `words`: 1 within [a, b] = `allowed`, below max(2 L / a - 1, 0), above max(3 - 2 L / b, 0)."""
    a, b = allowed(limit)
    if words < a:
        return max(2 * words / a - 1, 0.0)
    return 1.0 if words <= b else max(3 - 2 * words / b, 0.0)


def drawn(rng: random.Random, words: int, unit: int) -> Limit:
    """A random limit that a text of `words` words keeps, or nearly, in multiples of `unit` or sometimes of 2 `unit`.

    Kinds have the shares of the paper's add_length_control.py: .4 about, .25 range, .1 above, .25 below.
    """
    unit *= 2 if rng.random() < 0.2 else 1
    low, high = max(unit, words // unit * unit), max(unit, math.ceil(words / unit) * unit)
    share = rng.random()
    if share < 0.4:
        return {"kind": "about", "words": [max(unit, round(words / unit) * unit)]}
    if share < 0.65:
        return {"kind": "range", "words": [low, high if high > low else low + unit]}
    return {"kind": "above", "words": [low]} if share < 0.75 else {"kind": "below", "words": [high]}
