"""The worked solution of a problem: `solution` in the metadata, or that of a chain of arithmetic."""

from __future__ import annotations

import re

from selfimprove.datasets.arithmetic import Chain, solution
from selfimprove.types import Problem

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # of GSM8K
_ANSWER = re.compile(r"^#### *(.+)$", re.MULTILINE)


def steps_of(problem: Problem) -> list[str]:
    """The lines of the worked solution that are not blank, one step each; the last one states the answer.

    Raises ValueError for a problem without one.
    """
    own = problem.metadata
    if isinstance(own.get("solution"), str):
        text = _ANSWER.sub(r"The answer is \1.", _CALCULATOR.sub("", own["solution"]))
    elif {"start", "steps"} <= own.keys():
        text = solution(Chain.of(own))
    else:
        raise ValueError("it has no worked solution")
    return [line.strip() for line in text.splitlines() if line.strip()]
