"""Checks a function call in a completion, such as `set_alarm(hour=7)`, against the calls that are right.

The gold answer is JSON as the Berkeley Function Calling Leaderboard has it: {"set_alarm": {"hour": [7]}}, for each
argument the values that are right; "" among them means that it may be left out. Texts are compared without
case, spaces and the signs ,./-_*^'". A whole number stands for the same decimal one; true is no number.
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from selfimprove.verify import Outcome

_NAME = re.compile(r"[A-Za-z_][\w.]*\(")
_IGNORED = re.compile(r"[\s,./\-_*^'\"]")

Call = tuple[str, dict[str, Any]]  # a function's name, and its arguments


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Whether the first call in `text` is right. The reason of `wrong` names the first thing that is not."""
    try:
        ((name, allowed),) = json.loads(gold or "").items()
    except (ValueError, AttributeError) as error:
        return Outcome("error", 0.0, reason=f'gold is no JSON of one call like {{"f": {{"x": [1]}}}}: {error}')
    call = read(text)
    if call is None:
        return Outcome("unparseable", 0.0, reason="no call of a function with named arguments, like f(x=1)")
    extracted = written(*call)
    if reason := _fault(call, name, allowed):
        return Outcome("wrong", 0.0, extracted, reason=reason)
    return Outcome("correct", 1.0, extracted)


def reference(gold: str, metadata: dict[str, Any]) -> str:
    """A right call, with the first value that is right for each argument that must be there."""
    ((name, allowed),) = json.loads(gold).items()
    return written(name, {key: _plain(values[0]) for key, values in allowed.items() if "" not in values})


def read(text: str) -> Call | None:
    """The first call with named arguments, all of them literals; None if there is none."""
    for match in _NAME.finditer(text):
        for end in re.finditer(r"\)", text[match.end() :]):
            try:
                call = ast.parse(text[match.start() : match.end() + end.end()], mode="eval").body
                if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
                    break
                return ast.unparse(call.func), {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
            except (SyntaxError, ValueError, MemoryError, RecursionError):
                continue
    return None


def written(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _fault(call: Call, name: str, allowed: dict[str, list[Any]]) -> str | None:
    called, arguments = call
    if called != name:
        return f"{called} is not the function that is wanted"
    if unknown := sorted(arguments.keys() - allowed.keys()):
        return f"{unknown[0]} is no argument that is wanted"
    for key, values in allowed.items():
        if key not in arguments and "" not in values:
            return f"{key} is missing"
        if key in arguments and not any(_equal(arguments[key], value) for value in values):
            return f"{key}={arguments[key]!r} is not right"
    return None


def _equal(value: Any, allowed: Any) -> bool:
    """A list is equal part by part. An allowed object has a list of right values for each key."""
    if isinstance(allowed, dict):
        return isinstance(value, dict) and all(
            any(_equal(value[key], one) for one in _values(values)) if key in value else "" in _values(values)
            for key, values in allowed.items()
        )
    if isinstance(allowed, list):
        return (
            isinstance(value, list | tuple)
            and len(value) == len(allowed)
            and all(_equal(one, other) for one, other in zip(value, allowed, strict=True))
        )
    if isinstance(allowed, str):
        return isinstance(value, str) and _folded(value) == _folded(allowed)
    return bool(isinstance(value, bool) == isinstance(allowed, bool) and value == allowed)


def _folded(text: str) -> str:
    return _IGNORED.sub("", text).lower()


def _values(allowed: Any) -> list[Any]:
    """The right values of a key inside an object: some items have one where others have a list of them."""
    return allowed if isinstance(allowed, list) else [allowed]


def _plain(value: Any) -> Any:
    """An allowed value as an argument: of an object the first right value of each key."""
    if isinstance(value, dict):
        return {key: _plain(_values(inner)[0]) for key, inner in value.items() if "" not in _values(inner)}
    return [_plain(one) for one in value] if isinstance(value, list) else value
