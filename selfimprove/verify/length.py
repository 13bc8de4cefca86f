"""Checks how well a text keeps a word limit, `metadata["limit"]` (selfimprove.datasets.lengths). Rewards are 0 to 100.

`check` is for any text. `outline` is for texts of selfimprove.datasets.outline: each line must follow its grammar.
"""

from __future__ import annotations

from typing import Any

from selfimprove.datasets import lengths
from selfimprove.datasets.outline import valid
from selfimprove.verify import Outcome
from selfimprove.verify.text_checks import count_words

NEEDS_GOLD = False


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """The reward is 100 times the score; with a full score it is `correct`. A text without words is `unparseable`."""
    words = count_words(text)
    if not words:
        return Outcome("unparseable", 0.0, reason="no words")
    try:
        score = lengths.score(words, metadata["limit"])
    except (KeyError, TypeError, IndexError) as error:
        return Outcome("error", 0.0, reason=f"metadata needs `limit`, a kind and words: {error!r}")
    low, high = lengths.allowed(metadata["limit"])
    reason = None if score == 1 else f"{words} words where {low:g} to {high:g} are asked for"
    return Outcome("correct" if score == 1 else "wrong", 100 * score, str(words), reason=reason)


def outline(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """As `check`, but `wrong` if a line is not a sentence of the grammar. The reward depends on the length alone."""
    length = check(text, gold, metadata)
    if length.status != "correct":
        return length
    lines = valid(text, str(metadata.get("question")))
    if all(lines):
        return length
    return Outcome("wrong", length.reward, length.extracted, reason=f"line {lines.index(False) + 1} breaks the grammar")
