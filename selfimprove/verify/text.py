"""Checks a short answer in words, as SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv 1606.05250),
except that numbers keep their sign and point.

The answer is what the completion states last (`selfimprove.verify.stated`), or all of it where it states nothing. Where
several gold answers are right, `metadata["answers"]` lists them, and the one that fits best counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Any

from selfimprove.verify import Outcome, stated

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# All punctuation but a number's sign and point: without them SQuAD's own normalisation takes 1.3 for 13 and -3 for 3.
_PUNCTUATION = re.compile(rf"((?<![^\s$(])-(?=\$?\.?\d)|(?<![a-z])\.(?=\d))|[{re.escape(string.punctuation)}]")


def exact(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Whether answer and gold are the same words."""
    read = _read(text, gold, metadata)
    if isinstance(read, Outcome):
        return read
    answer, golds = read
    return Outcome("correct", 1.0, answer) if answer in golds else Outcome("wrong", 0.0, answer)


def f1(text: str, gold: str | None, metadata: dict[str, Any], *, threshold: float = 0.5) -> Outcome:
    """The reward is the F1 of the words of answer and gold, in any order; from `threshold` on it is `correct`."""
    read = _read(text, gold, metadata)
    if isinstance(read, Outcome):
        return read
    answer, golds = read
    score = max(word_f1(answer.split(), one.split()) for one in golds)
    return Outcome("correct" if score >= threshold else "wrong", score, answer)


def reference(gold: str, metadata: dict[str, Any], **options: Any) -> str:
    return f"#### {gold}"


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and spare spaces; punctuation alone stays as it is."""
    words = _ARTICLES.sub(" ", _PUNCTUATION.sub(r"\1", text.lower())).split()
    return " ".join(words) or "".join(text.lower().split())


def word_f1(answer: list[str], gold: list[str]) -> float:
    """Harmonic mean of precision and recall over words with their counts, in [0, 1]."""
    common = (Counter(answer) & Counter(gold)).total()
    return 2 * common / (len(answer) + len(gold))


def _read(text: str, gold: str | None, metadata: dict[str, Any]) -> tuple[str, list[str]] | Outcome:
    """The answer and the gold answers, normalised; or why there is nothing to compare."""
    golds = metadata.get("answers") or [gold]
    if not all(isinstance(one, str) and normalise(one) for one in golds):
        return Outcome("error", 0.0, reason=f"gold answers {golds!r} include one without a word")
    answer = stated(text)
    answer = normalise(text if answer is None else answer)
    if not answer:
        return Outcome("unparseable", 0.0, reason="no answer is stated")
    return answer, [normalise(one) for one in golds]
