"""How well a text keeps a limit of words: `metadata["limit"]`, of selfimprove.datasets.lengths. The reward is 0 to 100.

`check` is for any text. `outline` is for texts of selfimprove.datasets.outline, whose every sentence has to be one.
"""

from __future__ import annotations

from typing import Any

from selfimprove.datasets import lengths
from selfimprove.datasets.outline import valid
from selfimprove.verify import Outcome
from selfimprove.verify.text_checks import count_words

NEEDS_GOLD = False


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Correct with a full score. A text without words cannot be read."""
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
    """The same, and wrong where a line is no sentence of the grammar; the reward is of the length alone."""
    found = check(text, gold, metadata)
    if found.status != "correct":
        return found
    lines = valid(text, str(metadata.get("question")))
    if all(lines):
        return found
    return Outcome("wrong", found.reward, found.extracted, reason=f"line {lines.index(False) + 1} breaks the grammar")
