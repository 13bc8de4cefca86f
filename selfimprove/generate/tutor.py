"""A teacher of arithmetic that knows every answer. It reviews a solution, or writes a right one.

It reads the chats that `datasets.arithmetic` makes, and uses words that the shipped model knows. It needs no model of
its own. So a method with a teacher can be tried on two cores.
"""

from __future__ import annotations

import re

from selfimprove.datasets.arithmetic import VERBS, Chain, Step, expression, solution
from selfimprove.errors import RunError
from selfimprove.policy.teacher import Say
from selfimprove.types import Message
from selfimprove.verify.arithmetic import ANSWER, operations, step_rewards

NEEDS = ("steps", "solution")  # what the data set must have

_START = re.compile(r"Start with (\d+)\.")
_STEP = re.compile(rf"({'|'.join(VERBS.values())}) (\d+)\.")
_SIGNS = {verb: sign for sign, verb in VERBS.items()}


def arithmetic() -> Say:
    """The teacher. It reviews a solution if the last turn asks for a verdict, and else writes a right solution."""

    async def say(chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        chain = read(chat[0]["content"])
        if "verdict" not in chat[-1]["content"].lower().split("\n")[-1]:
            return solution(chain)
        reason, right = review(chain, chat[1]["content"])
        return f"{reason}\nVerdict: {right}"

    return say


def read(question: str) -> Chain:
    """The chain that a question asks for. Raises RunError for another text."""
    start = _START.search(question)
    steps: list[Step] = [(_SIGNS[verb], int(operand)) for verb, operand in _STEP.findall(question)]
    if start is None or not steps or not question.endswith("What is the result?"):
        raise RunError(
            "method.tools.teacher: the teacher of arithmetic reads problems of dataset.form=solve in the chats of "
            f"conf/critique/tiny.yaml alone, not {question[:60]!r}"
        )
    return Chain(int(start[1]), tuple(steps))


def review(chain: Chain, shown: str) -> tuple[str, str]:
    """Reason and verdict for a solution. The reason says how the first wrong line should read."""
    rewards = step_rewards(shown, chain, str(chain.answer))
    if all(rewards) and ANSWER.search(shown):
        return "Every line is right.", "correct"
    wrong = rewards.index(0.0) if 0.0 in rewards else len(rewards)
    lines = list(filter(str.strip, shown.splitlines()))
    done = sum(map(operations, lines[:wrong]))
    n = operations(lines[wrong]) if wrong < len(lines) else 0
    fixed = f"The answer is {chain.answer}."
    if n and done + n <= len(chain.steps):
        part = Chain(chain.values[done], chain.steps[done : done + n])
        fixed = f"{expression(part)} = {part.answer}."
    return f"Line {wrong + 1} is wrong: {fixed}", "incorrect"
