"""Exact check of answers to `selfimprove.datasets.arithmetic`, with a reward for every line."""

from __future__ import annotations

import ast
import re
from typing import Any

from selfimprove.datasets.arithmetic import Chain, Form, Step, apply
from selfimprove.verify import Outcome

MAX_EXPRESSION = 200  # characters
MAX_NUMBER = 9999
ANSWER = re.compile(r"The answer is (-?\d{1,6}|[A-D])\b")
OPTION = re.compile(r"[A-D]\) (\d{1,6}) (\d{1,6}) (yes|no)")
OPERATORS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}


def check(
    text: str, gold: str | None, metadata: dict[str, Any], *, form: Form = "solve", partial: bool = False
) -> Outcome:
    """Check an answer against `gold`, or against the chain's own result if there is no gold. The reward is 1 or 0.

    `solve` and `choice` read the last "The answer is X". `expression` evaluates the last line, which may contain only
    whole numbers, + - * and parentheses. With `partial` the reward of a wrong solution is the share of its lines that
    are right. A completion without an answer is `unparseable`. A gold answer that is not a number (for `choice`, a
    letter) is an `error`.
    """
    chain = Chain.of(metadata)
    expected = str(chain.answer) if gold is None else gold
    if not re.fullmatch("[A-D]" if form == "choice" else r"-?\d{1,6}", expected):
        return Outcome("error", 0.0, reason=f"gold {expected!r} is no answer to the form {form}")
    if form == "expression":
        return _check_expression(text, expected)
    found = ANSWER.findall(text)
    rewards = step_rewards(text, chain, expected)
    if not found:
        return Outcome("unparseable", 0.0, step_rewards=rewards, reason='no "The answer is X"')
    if found[-1] == expected:
        return Outcome("correct", 1.0, extracted=found[-1], step_rewards=rewards)
    share = sum(rewards) / len(rewards) if partial else 0.0
    return Outcome("wrong", share, extracted=found[-1], step_rewards=rewards)


def reference(gold: str, metadata: dict[str, Any], *, form: Form = "solve", partial: bool = False) -> str:
    """A completion that states the gold answer."""
    return gold if form == "expression" else f"The answer is {gold}."


def step_rewards(text: str, chain: Chain, gold: str) -> list[float]:
    """1.0 or 0.0 for each line of `text` that is not blank.

    - A line "a + b = c" is right when its left side is the problem's next step, from the true value so far, and c is
      the true result. The operands of a sum or product may be swapped.
    - A line of n steps, "(a + b) * c = d", is right when it covers the next n steps in their order and d is true.
    - Each equation, right or not, moves the problem on by as many steps as it has operations. So a line that builds on
      a wrong value is wrong too.
    - A line "B) 28 28 yes" or "A) 30 28 no" compares an option with the result. It is right when the result is the true
      one and the verdict fits.
    - An answer line is right when it gives `gold`, whatever was skipped before it.
    - Other lines are wrong.
    """
    values, done, rewards = chain.values, 0, []
    for line in filter(str.strip, text.splitlines()):
        answer = ANSWER.search(line)
        n = operations(line)
        if answer:
            rewards.append(float(answer[1] == gold))
        elif option := OPTION.fullmatch(line.strip()):
            true = int(option[2]) == chain.answer
            rewards.append(float(true and (option[3] == "yes") == (option[1] == option[2])))
        elif n and done + n <= len(chain.steps):
            left, _, right = line.partition("=")
            node = parse(left)
            follows = node is not None and _follows(node, values[done], chain.steps[done : done + n])
            rewards.append(float(follows and right.strip() == str(values[done + n])))
        else:
            rewards.append(0.0)
        done += n
    return rewards


def operations(line: str) -> int:
    """The number of operations on the left side of an equation; 0 for any other line."""
    left, equals, _ = line.partition("=")
    node = parse(left) if equals else None
    return 0 if node is None else sum(isinstance(part, ast.BinOp) for part in ast.walk(node))


def parse(text: str) -> ast.expr | None:
    """The syntax tree of an expression of whole numbers, + - * and parentheses; None for anything else.

    It has at most MAX_EXPRESSION characters and numbers up to MAX_NUMBER, so evaluating it is cheap.
    """
    text = text.strip()
    if len(text) > MAX_EXPRESSION or not re.fullmatch(r"[0-9+\-*() ]+", text):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if _allowed(tree) else None


def _allowed(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in OPERATORS and _allowed(node.left) and _allowed(node.right)
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= MAX_NUMBER


def evaluate(node: ast.expr) -> int:
    """The value of a tree from `parse`."""
    if isinstance(node, ast.BinOp):
        left, right = evaluate(node.left), evaluate(node.right)
        return apply(left, (OPERATORS[type(node.op)], right))
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    return node.value


def _follows(node: ast.expr, value: int, steps: tuple[Step, ...]) -> bool:
    """Whether a tree applies `steps` to `value` in their order."""
    if not steps:
        return _is(node, value)
    op, operand = steps[-1]
    if not isinstance(node, ast.BinOp) or OPERATORS[type(node.op)] != op:
        return False
    straight = _is(node.right, operand) and _follows(node.left, value, steps[:-1])
    swapped = op != "-" and _is(node.left, operand) and _follows(node.right, value, steps[:-1])
    return straight or swapped


def _is(node: ast.expr, value: int) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _check_expression(text: str, gold: str) -> Outcome:
    lines = text.strip().splitlines()
    node = parse(lines[-1]) if lines else None
    if node is None:
        return Outcome("unparseable", 0.0, reason="not an expression of whole numbers, + - * and parentheses")
    value = str(evaluate(node))
    return Outcome("correct" if value == gold else "wrong", float(value == gold), extracted=value)
