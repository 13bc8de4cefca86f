"""Asking a policy about a solution it is shown: prompts with blanks to fill, and the verdict of a review."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfimprove.datasets import lettered
from selfimprove.types import CLOSED, Message, Problem


@dataclass(frozen=True, slots=True)
class Critique:
    """How a policy is asked to verify a solution and to refine one: a choice of conf/critique/.

    In `verify` and `refine`, {question}, {options} and {solution} are replaced, and in `refine` {review} too, which is
    what the policy said when it verified. `correct` and `incorrect` are the verdict words of a review.
    """

    __pydantic_config__ = CLOSED

    verify: list[Message]
    refine: list[Message]
    correct: str
    incorrect: str


def fill(
    prompt: list[Message],
    problem: Problem,
    solution: str,
    gold: str | None = None,
    review: str | None = None,
    **more: str,
) -> list[Message]:
    """A prompt about one solution; `gold` in place of the problem's gold answer, `more` for blanks of a method's own.

    {options} are the lettered lines of a choice question, whose gold letter stands with its text.

    Raises ValueError where the prompt shows a gold answer that the problem lacks, or a review and there is none.
    """
    last = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    options = problem.metadata.get("options")
    options = options if isinstance(options, list) else []
    gold = problem.gold if gold is None else gold
    if gold is not None and len(gold) == 1 and 0 <= (i := ord(gold) - ord("A")) < len(options):
        gold = f"({gold}) {options[i]}"
    values = {
        "question": str(problem.metadata.get("question", last)),
        "options": "\n" + lettered(options) if options else "",
        "solution": solution.strip(),
        **more,
    }
    for name, value, lacking in (
        ("gold", gold, "the problem has no gold answer"),
        ("review", review and review.strip(), "nothing was reviewed"),
    ):
        if value is not None:
            values[name] = value
        elif any(f"{{{name}}}" in message["content"] for message in prompt):
            raise ValueError(f"its prompt has {{{name}}}, and {lacking}")
    names = "|".join(("question", "solution", "gold", "review", *more))
    blank = re.compile(rf"\{{({names})\}}|\n?\{{(options)\}}")
    return [{**message, "content": blank.sub(lambda m: values[m[1] or m[2]], message["content"])} for message in prompt]


def verdict(text: str, correct: str, incorrect: str) -> bool | None:
    """Whether a review's last verdict word is `correct`; None where it holds neither, and is no verdict.

    Words as they are written count first: "No" is no verdict in "Yes, there is no mistake". Only where there is none,
    case is passed over.
    """
    words = sorted((correct, incorrect), key=len, reverse=True)  # "not correct" before "correct"
    pattern = "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words)
    for flags in (re.NOFLAG, re.IGNORECASE):
        if found := re.findall(pattern, text, flags):
            return str(found[-1]).lower() == correct.lower()
    return None


def said(text: str) -> str:
    """What a reply says behind its reasoning, where it marks that as models that reason at length do."""
    return text.rpartition("</think>")[2].strip()
