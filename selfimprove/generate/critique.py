"""Prompts that ask a policy about a solution, with blanks to fill, and the verdict in a review."""

from __future__ import annotations

import re
from dataclasses import dataclass

from selfimprove.datasets import lettered
from selfimprove.types import CLOSED, Message, Problem


@dataclass(frozen=True, slots=True)
class Critique:
    """How a policy is asked to verify a solution and to refine one: a choice of conf/critique/.

    In `verify` and `refine`, {question}, {options} and {solution} are replaced. In `refine`, {review} is replaced too,
    by the policy's reply to `verify`. `correct` and `incorrect` are the verdict words of a review.
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
    **blanks: str,
) -> list[Message]:
    """Fill the blanks of a prompt about one solution. Blanks in a text that is filled in are left as they are.

    `gold` replaces the problem's gold answer. `blanks` are a method's own. {options} becomes the lettered lines of a
    choice question, and a gold letter then stands with its option's text.

    Raises ValueError if the prompt shows a gold answer or a review and there is none.
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
        **blanks,
    }
    for name, value, lacking in (
        ("gold", gold, "the problem has no gold answer"),
        ("review", review and review.strip(), "nothing was reviewed"),
    ):
        if value is not None:
            values[name] = value
        elif any(f"{{{name}}}" in message["content"] for message in prompt):
            raise ValueError(f"its prompt has {{{name}}}, and {lacking}")
    names = "|".join(("question", "solution", "gold", "review", *blanks))
    blank = re.compile(rf"\{{({names})\}}|\n?\{{(options)\}}")
    return [{**message, "content": blank.sub(lambda m: values[m[1] or m[2]], message["content"])} for message in prompt]


def verdict(text: str, correct: str, incorrect: str) -> bool | None:
    """Whether a review's last verdict word is `correct`. None if the review has neither word, and so no verdict.

    Only words in the given case count at first. So "Yes, there is no mistake" is not read as "No". Other cases count if
    there is no word in the given case.
    """
    words = sorted((correct, incorrect), key=len, reverse=True)  # "not correct" before "correct"
    pattern = "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in words)
    for flags in (re.NOFLAG, re.IGNORECASE):
        if verdicts := re.findall(pattern, text, flags):
            return str(verdicts[-1]).lower() == correct.lower()
    return None


def after_reasoning(text: str) -> str:
    """The part of a reply behind </think>, which ends its reasoning. Without </think>: the whole reply."""
    return text.rpartition("</think>")[2].strip()
