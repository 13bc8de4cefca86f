"""Checks a short answer in words, as SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv 1606.05250).

There are two differences: numbers keep their sign and point, and characters typed in several ways (composed or not,
curly or straight, full-width or not) are the same.

The answer is the completion's last statement (`selfimprove.verify.statements`), or all of it if it states nothing. A
remark on the answer is no statement, nor is "The answer is not ...". If several gold answers are right,
`metadata["answers"]` has them, as a list or as SQuAD's {"text": [...]}, and the one that fits best counts.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from selfimprove.types import Share
from selfimprove.verify import Outcome
from selfimprove.verify.characters import fold
from selfimprove.verify.statements import is_idle, passages, statements

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SENTENCE = re.compile(r"[^.!?\n]*$")  # the last one, perhaps unfinished
# All punctuation but a number's sign and point. SQuAD's own normalisation drops them and takes 1.3 for 13, -3 for 3.
_PUNCTUATION = re.compile(rf"((?<![^\s$(])-(?=\$?\.?\d)|(?<![a-z])\.(?=\d))|[{re.escape(string.punctuation)}]")


def exact(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Check whether answer and gold are the same words."""
    read = _read(text, gold, metadata)
    if isinstance(read, Outcome):
        return read
    answer, golds = read
    return Outcome("correct", 1.0, answer) if answer in golds else Outcome("wrong", 0.0, answer)


def f1(text: str, gold: str | None, metadata: dict[str, Any], *, threshold: Share = 0.5) -> Outcome:
    """The reward is the F1 of the words of answer and gold, in any order. From `threshold` on it is `correct`."""
    read = _read(text, gold, metadata)
    if isinstance(read, Outcome):
        return read
    answer, golds = read
    score = max(word_f1(answer.split(), one.split()) for one in golds)
    return Outcome("correct" if score >= threshold else "wrong", score, answer)


def reference(gold: str, metadata: dict[str, Any], **options: Any) -> str:
    return f"#### {gold}"


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces. A text of punctuation alone keeps it."""
    text = fold(text).lower()
    words = _ARTICLES.sub(" ", _unpunctuated(_PUNCTUATION.sub(r"\1", text))).split()
    return " ".join(words) or "".join(text.split())


def _unpunctuated(text: str) -> str:
    return text if text.isascii() else "".join("" if _is_punctuation(character) else character for character in text)


@lru_cache(maxsize=4096)
def _is_punctuation(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character).startswith("P")


def word_f1(answer: list[str], gold: list[str]) -> float:
    """The harmonic mean of precision and recall over words with their counts, in [0, 1]."""
    common = (Counter(answer) & Counter(gold)).total()
    return 2 * common / (len(answer) + len(gold))


def _read(text: str, gold: str | None, metadata: dict[str, Any]) -> tuple[str, list[str]] | Outcome:
    """The answer and the gold answers, normalised; or an Outcome if there is nothing to compare."""
    golds = gold_texts(metadata.get("answers")) or [gold]
    if not all(isinstance(one, str) and normalise(one) for one in golds):
        return Outcome("error", 0.0, reason=f"gold answers {golds!r} include one without a word")
    if any(normalise(one) == "nan" for one in golds):
        return Outcome("error", 0.0, reason="the gold answer is NaN, which a table writes where it has none")
    answer = normalise(answer_of(text))
    if not answer:
        return Outcome("unparseable", 0.0, reason="no answer is stated")
    return answer, [normalise(one) for one in golds]


def gold_texts(answers: Any) -> list[Any]:
    """The gold answers in a row's `answers`: one text, a list of texts, or a dict whose `text` is either."""
    if isinstance(answers, dict):
        answers = answers.get("text")
    return [answers] if isinstance(answers, str) else list(answers or [])


def answer_of(text: str) -> str:
    """The answer that a completion states, verbatim; or its first passage with text, without a remark at its end."""
    for passage in passages(text):
        remark = None
        found = statements(passage)
        for statement in reversed(found):
            if not is_idle(statement):
                return statement.text
            remark = statement.start
        if any(statement.denied for statement in found):
            return ""
        before = passage if remark is None else _SENTENCE.sub("", passage[:remark])
        if before.strip():
            return before
    return ""
