"""Checks a set of answers by its recall: r = |A & G| / |G|. A has the answers in `finish(...)`, and G the gold answers.

It is the outcome reward of SymAgent (Liu et al. 2025, arXiv 2502.03283). `metadata["answers"]` has the gold answers if
there are several.
"""

from __future__ import annotations

import re
from typing import Any

from selfimprove.verify import Outcome
from selfimprove.verify.text import gold_texts, normalise

_FINISH = re.compile(r"finish\(([^()]*)\)")


def recall(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """The recall of the last `finish(...)`. The status is `correct` if it names all gold answers."""
    found = _FINISH.findall(text)
    golds = {normalise(str(one)) for one in gold_texts(metadata.get("answers")) or [gold] if one}
    if not golds:
        return Outcome("error", 0.0, reason="there is no gold answer")
    if not found:
        return Outcome("unparseable", 0.0, reason="no finish(...)")
    named = {normalise(one) for one in found[-1].split(",")}
    share = len(named & golds) / len(golds)
    return Outcome("correct" if share == 1 else "wrong", share, found[-1].strip())


def reference(gold: str, metadata: dict[str, Any]) -> str:
    """A text that states the gold answers."""
    return f"finish({', '.join(map(str, gold_texts(metadata.get('answers')) or [gold]))})"
