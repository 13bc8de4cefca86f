"""Checks an answer by the reasoning-gym task that its problem comes from (Stojanovski et al. 2025, arXiv 2505.24760).

The answer is what stands in the last `<answer>` tags, or else what `selfimprove.verify.stated` finds. `metadata` has
the `task`, its `config`, and the task's own record of the problem, as `pack` made it.

Several tasks evaluate the answer as Python: `eval`, or SymPy's `parse_expr`, which is the same. What a model wrote must
not run outside the sandbox, so such a task is only given answers that cannot call anything but functions of calculus.
`Integral` is none: it would restate the question, which the scorer of integrals takes for the answer.
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

NEEDS_GOLD = False  # a task decides by its own record; some have no answer to show

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_EVALUATES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")
_CALLED = re.compile(r"([\w)\]}]+)\s*\(")
_MORE_THAN_ARITHMETIC = re.compile(r"[\"'`\\#]|__|:=|\.\s*[^\W\d]")  # text, escapes, comments, attributes
_FUNCTION = re.compile(r"a?(?:sin|cos|tan|cot|sec|csc)h?|sqrt|cbrt|exp|log|ln|[aA]bs|erf")


def library() -> Any:
    """The package. Raises ConfigError when it is not installed."""
    try:
        return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise ConfigError(f"reasoning-gym's tasks need a package that is not installed ({error}): {INSTALL}") from None


def require(**options: Any) -> dict[str, str]:
    """The package's version, for the run's record. Raises ConfigError when it is not installed."""
    library()
    return {"reasoning_gym": importlib.metadata.version("reasoning-gym")}


def check(text: str, gold: str | None, metadata: dict[str, Any], *, partial: bool = False) -> Outcome:
    """`correct` where the task's `score_answer` is 1, else `wrong`, with that score as the reward if `partial`.

    `unparseable` where no answer is stated, or the task raises on it.
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
    except Exception as error:  # the gold answer passes, so it is this one that the task cannot read
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
    """The answer that a completion states, if it does."""
    if tagged := _TAGGED.findall(text):
        return str(tagged[-1]).strip()
    said = stated(text)
    return said.strip().strip("$") if said else None


def pack(record: dict[str, Any]) -> Any:
    """A task's record of a problem as JSON. Raises ValueError for what has no such form."""
    return encode(record)


@functools.cache
def evaluates(score_answer: Callable[..., float]) -> bool:
    """Whether a task's scorer evaluates the answer as Python."""
    return bool(_EVALUATES.search(inspect.getsource(score_answer)))


def harmless(answer: str) -> bool:
    """Whether evaluating the answer can do no more than compute a number, a formula, or a list of literals."""
    try:
        return isinstance(ast.literal_eval(answer), int | float | list | tuple)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return not _MORE_THAN_ARITHMETIC.search(answer) and all(map(_FUNCTION.fullmatch, _CALLED.findall(answer)))


def uses_each(answer: str, numbers: list[int]) -> bool:
    """Whether the whole numbers in a formula are these, each once: puzzle24's scorer only counts them."""
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(numbers)


@functools.cache
def _task(name: str, config: str) -> Any:
    return library().create_dataset(name, size=1, seed=0, **json.loads(config))
