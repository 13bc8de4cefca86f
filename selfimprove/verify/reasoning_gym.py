"""Checks an answer with the reasoning-gym task of its problem (Stojanovski et al. 2025, arXiv 2505.24760).

The answer is the text in the last `<answer>` tags, or else what `selfimprove.verify.stated` finds. `metadata` has the
`task`, its `config`, and the task's record of the problem, packed by `pack`.

Several tasks evaluate the answer as Python, by `eval` or by SymPy's `parse_expr`, which amounts to the same. A model's
text must not run outside the sandbox. So these tasks only get answers that can call nothing but functions of calculus.
`Integral` is not among these: it would restate the question, and the scorer of integrals takes that for the answer.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.verify import Outcome, stated
from selfimprove.verify.plain import decode, encode

INSTALL = "pip install 'selfimprove[reasoning-gym]'"

NEEDS_GOLD = False  # a task decides by its record; some have no gold answer

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")
_CALLED = re.compile(r"([\w)\]}]+)\s*\(")
_MORE_THAN_ARITHMETIC = re.compile(r"[\"'`\\#]|__|:=|\.\s*[^\W\d]")  # text, escapes, comments, attributes
_FUNCTION = re.compile(r"a?(?:sin|cos|tan|cot|sec|csc)h?|sqrt|cbrt|exp|log|ln|[aA]bs|erf")


def library() -> Any:
    """The package. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ConfigError(f"reasoning-gym's tasks need a package that is not installed ({error}): {INSTALL}") from None


def require(**options: Any) -> dict[str, str]:
    """The package's version, for the run's record. Raises ConfigError if it is not installed."""
    library()
    return {"reasoning_gym": importlib.metadata.version("reasoning-gym")}


def check(text: str, gold: str | None, metadata: dict[str, Any], *, partial: bool = False) -> Outcome:
    """`correct` if the task's `score_answer` is 1, else `wrong`; with `partial` that score is the reward.

    `unparseable` if no answer is stated, or if the task raises on it.
    """
    try:
        task = _task(metadata["task"], json.dumps(metadata["config"]))
        entry = {"question": metadata["question"], "answer": gold, "metadata": decode(metadata["entry"])}
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        return Outcome("error", 0.0, reason=f"metadata needs `task`, `config`, `question` and `entry`: {error!r}")
    answer = extract(text)
    if not answer:
        return Outcome("unparseable", 0.0, reason="no answer is stated")
    if evaluates(type(task).score_answer) and not harmless(answer):
        return Outcome("wrong", 0.0, answer, reason=f"{metadata['task']} would run it as code, so it is not scored")
    try:
        score = float(task.score_answer(answer, entry))
    except MemoryError:
        raise
    except Exception as error:  # the task can read the gold answer, so this answer is at fault
        return Outcome("unparseable", 0.0, answer, reason=f"{metadata['task']}: {type(error).__name__}: {error}"[:300])
    if score >= 1.0 and metadata["task"] == "puzzle24" and not uses_each(answer, entry["metadata"]["numbers"]):
        return Outcome("wrong", 0.0, answer, reason="makes 24 of other numbers than the given ones")
    if score >= 1.0:
        return Outcome("correct", 1.0, answer)
    return Outcome("wrong", score if partial else 0.0, answer)


def reference(gold: str | None, metadata: dict[str, Any], **options: Any) -> str:
    """The gold answer as a completion that `check` reads."""
    return f"<answer>{gold}</answer>"


def extract(text: str) -> str | None:
    """The answer that a completion states; None if it states none."""
    if tagged := _TAGGED.findall(text):
        return str(tagged[-1]).strip()
    answer = stated(text)
    return answer.strip().strip("$") if answer else None


def pack(record: dict[str, Any]) -> Any:
    """A task's record of a problem as JSON. Raises ValueError if it has no such form."""
    return encode(record)


@functools.cache
def evaluates(score_answer: Callable[..., float]) -> bool:
    """Whether a task's scorer evaluates the answer as Python."""
    return bool(_EVALUATES.search(inspect.getsource(score_answer)))


def harmless(answer: str) -> bool:
    """Whether evaluating the answer can only compute a number, a formula, or a list of literals."""
    try:
        return isinstance(ast.literal_eval(answer), int | float | list | tuple)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return not _MORE_THAN_ARITHMETIC.search(answer) and all(map(_FUNCTION.fullmatch, _CALLED.findall(answer)))


def uses_each(answer: str, numbers: list[int]) -> bool:
    """Whether a formula uses each of the whole numbers `numbers` once, and no others. puzzle24's scorer only counts."""
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(numbers)


@functools.cache
def _task(name: str, config: str) -> Any:
    return library().create_dataset(name, size=1, seed=0, **json.loads(config))
