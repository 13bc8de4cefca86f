"""Checks of a text that know nothing of what it says: how long it is, how it ends, and whether it repeats itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

from selfimprove.types import Count
from selfimprove.verify import Outcome

NEEDS_GOLD = False

ENDS = ".!?,;:-\"')]}>`"  # what a whole text may end with, as the released code of Self-Lengthen has it


def count_words(text: str) -> int:
    """The number of words between white space."""
    return len(text.split())


def repetition(text: str, n: int) -> float:
    """The share of a text's word n-grams that stood in it before; 0 where it has none."""
    words = text.split()
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0


def fault(text: str, ngram: int) -> str | None:
    """Why a text is no whole one: it is empty, ends in the middle, or has some `ngram` words in a row twice."""
    if not text.strip():
        return "no words"
    if text.rstrip()[-1] not in ENDS:
        return f"ends with {text.rstrip()[-1]!r}, in the middle of a sentence"
    return f"repeats {ngram} words in a row" if repetition(text, ngram) else None


def whole(text: str, gold: str | None, metadata: dict[str, Any], *, ngram: Count) -> Outcome:
    """Correct where a text has no `fault`; the reward is its number of words, or 0."""
    reason = fault(text, ngram)
    if reason:
        return Outcome("wrong" if text.strip() else "unparseable", 0.0, reason=reason)
    return Outcome("correct", float(count_words(text)), str(count_words(text)))
