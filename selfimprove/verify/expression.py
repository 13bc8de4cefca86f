"""Checks an answer that is one Python expression: run in the sandbox, it must give the gold value."""

from __future__ import annotations

import ast
from typing import Any

from selfimprove.types import Count, Seconds
from selfimprove.verify import Outcome, code
from selfimprove.verify.container import IMAGE

MAX_EXPRESSION = 2000  # characters
KEEPS_TIME = True  # the sandbox enforces the time limit


def require(*, sandbox: str = "bubblewrap", image: str = IMAGE, **options: Any) -> dict[str, str]:
    """As `code.require`."""
    return code.require(sandbox=sandbox, image=image)


def check(
    text: str,
    gold: str | None,
    metadata: dict[str, Any],
    *,
    sandbox: str = "bubblewrap",
    image: str = IMAGE,
    seconds: Seconds = 5.0,
    memory_mb: Count = 512,
) -> Outcome:
    """Check whether the value of the expression equals the gold number. The options are those of `code.check`.

    `unparseable` if the text is not an expression or is longer than MAX_EXPRESSION.
    """
    body = text.strip()
    if len(body) > MAX_EXPRESSION:
        return Outcome("unparseable", 0.0, reason=f"the answer has more than {MAX_EXPRESSION} characters")
    try:
        ast.parse(body, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return Outcome("unparseable", 0.0, reason=f"no expression of Python: {error}"[:300])
    program = f"def result():\n    return (\n{body}\n    )\n"
    tests = [f"assert result() == {gold}"]
    options: dict[str, Any] = {"sandbox": sandbox, "image": image, "seconds": seconds, "memory_mb": memory_mb}
    outcome = code.check(program, gold, {"tests": tests}, **options)
    return Outcome(outcome.status, outcome.reward, body, reason=outcome.reason)


def reference(gold: str, metadata: dict[str, Any], **options: Any) -> str:
    """The gold value as an expression."""
    return gold
