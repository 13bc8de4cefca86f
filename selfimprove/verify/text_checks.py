"""Checks of a text's form, not of its content: how long it is, how it ends, and whether it repeats itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfimprove.types import Count
from selfimprove.verify import Outcome

NEEDS_GOLD = False

ENDS = ".!?,;:-\"')]}>`"  # a whole text ends with one of these, as in the released code of Self-Lengthen


def count_words(text: str) -> int:
    """The number of words between white space."""
    return len(text.split())


def repetition(text: str, n: int) -> float:
    """The share of a text's word n-grams that occurred in it before; 0 if it has no n-grams."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0


def fault(text: str, ngram: int) -> str | None:
    """Why a text is not whole: it is empty, ends in the middle, or repeats `ngram` words in a row. None if it is."""
    if not text.strip():
        return "no words"
    if text.rstrip()[-1] not in ENDS:
        return f"ends with {text.rstrip()[-1]!r}, in the middle of a sentence"
    return f"repeats {ngram} words in a row" if repetition(text, ngram) else None


def whole(text: str, gold: str | None, metadata: dict[str, Any], *, ngram: Count) -> Outcome:
    """`correct` if a text has no `fault`. The reward is then its number of words, else 0."""
    reason = fault(text, ngram)
    if reason:
        return Outcome("wrong" if text.strip() else "unparseable", 0.0, reason=reason)
    return Outcome("correct", float(count_words(text)), str(count_words(text)))
