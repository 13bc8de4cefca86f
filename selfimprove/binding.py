"""Functions that the configuration names. A mapping with `_target_` is a target. Its other keys are keyword arguments.

The function's own type hints are the schema of those keys. There is no second registry.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import partial
from types import ModuleType
from typing import Any, Required, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from selfimprove import trust
from selfimprove.errors import ConfigError

Target = dict[str, Any]  # a mapping with `_target_`


def function(node: Target, where: str) -> Callable[..., Any]:
    """The function that a node's `_target_` names. Raises ConfigError if there is none."""
    target = node.get("_target_", "")
    module, _, name = str(target).rpartition(".")
    if said := trust.refusal({"_target_": target}, where):
        raise ConfigError(said, where)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(f"{where}._target_={target}: no such function ({problem})", where) from None
    if not callable(found):
        raise ConfigError(f"{where}._target_={target}: not a function", where)
    return found  # type: ignore[no-any-return]


_FRAME = ("_target_", "name", "gives", "verifier", "score", "sealed_size")  # keys that are not arguments


# Keyword arguments that the runner gives to a function that has them (selfimprove.supplies).
SUPPLIES = (
    "seed", "check", "judge", "prepared", "roles", "scorers", "text", "memory", "tools", "step", "made", "figures",
)  # fmt: skip

# How many positional arguments the runner gives the function of a slot, by the last word of its key
_POSITIONAL = {
    "generate": 2,
    "probe": 2,
    "verifier": 3,
    "filter": 1,
    "train": 2,
    "adapt": 1,
    "answer": 1,
    "dataset": 0,
    "also": 0,
    "engine": 4,
    "tracker": 3,
}


def bind(node: Target, where: str) -> Callable[..., Any]:
    """The node's function with its keys bound as keyword arguments, each checked against the function's type hints.

    Raises ConfigError naming `where.key` for an unknown key, a missing one, or a value of the wrong type.
    """
    target = function(node, where)
    options = {key: value for key, value in node.items() if key not in _FRAME}
    hints, required = _keywords(target)
    for key, value in options.items():
        if key not in hints:
            raise ConfigError(f"{where}.{key}: unknown key; {node['_target_']} takes {_names(hints)}", where)
        try:
            options[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as problem:
            raise ConfigError(_wrong(f"{where}.{key}", value, problem), where) from None
        for part, said in misread(value, options[key]):
            raise ConfigError(f"{where}.{key}{part}: {said}", where)
    missing = [name for name in required if name not in (*options, *SUPPLIES)]
    if missing:
        raise ConfigError(f"{where}.{missing[0]}: needs a value, e.g. {where}.{missing[0]}=...", where)
    require_arguments(target, node, where)
    return partial(target, **options)


def require_arguments(target: Callable[..., Any], node: Target, where: str) -> None:
    """Raises ConfigError for a function that cannot take what the runner gives it, e.g. a filter as a verifier."""
    slot = where.rpartition(".")[2]
    if slot not in _POSITIONAL:
        return
    try:
        own = inspect.signature(target)
        named = [name for name, parameter in own.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
        own.bind(*range(_POSITIONAL[slot]), **dict.fromkeys(named))
    except (TypeError, ValueError):  # ValueError: of a function that is not written in Python
        said = (
            f"a function here is called with {_POSITIONAL[slot]} arguments by position, and this function takes others"
        )
        raise ConfigError(f"{where}._target_={node['_target_']}: {said}", where) from None


def misread(given: Any, read: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Bad numbers that type hints let through: those that are not finite, and each `true` that was read as 1.

    Gives (".key" inside of `given`, what is wrong) for each.
    """
    if isinstance(read, float) and not math.isfinite(read):
        yield key, f"must be a finite number, not {read}"
    elif isinstance(given, bool) and isinstance(read, int | float) and not isinstance(read, bool):
        yield key, f"must be a number, not {str(given).lower()}"
    elif isinstance(given, dict):
        fields = read if isinstance(read, dict) else vars(read) if hasattr(read, "__dict__") else {}
        if is_dataclass(read):
            fields = {name: getattr(read, name) for name in read.__dataclass_fields__}
        for name, value in given.items():
            yield from misread(value, fields.get(name), f"{key}.{name}")
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple) and len(given) == len(read):
        for i, (value, one) in enumerate(zip(given, read, strict=True)):
            yield from misread(value, one, f"{key}.{i}")


def _keywords(target: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """The type of each keyword argument, and the names without a default. An unpacked TypedDict gives its own keys."""
    hints = get_type_hints(target, include_extras=True)
    types: dict[str, Any] = {}
    required: list[str] = []
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            types[name] = hints.get(name, Any)
            required += [name] if parameter.default is parameter.empty else []
        elif parameter.kind is parameter.VAR_KEYWORD and name in hints:  # **common: Unpack[Common]
            (unpacked,) = get_args(hints[name])
            own = get_type_hints(unpacked, include_extras=True)
            types |= {key: get_args(hint)[0] if get_origin(hint) is Required else hint for key, hint in own.items()}
            required += sorted(unpacked.__required_keys__)
    return types, required


def _names(keywords: dict[str, Any]) -> str:
    return ", ".join(name for name in keywords if name not in SUPPLIES) or "no keys"


def reason(problem: ValidationError) -> str:
    first = problem.errors()[0]
    return first["msg"][0].lower() + first["msg"][1:]


def _wrong(key: str, value: Any, problem: ValidationError) -> str:
    """One line about a keyword's value. It names the key inside the value where the mistake is."""
    first = problem.errors()[0]
    for part in first["loc"]:
        if not isinstance(value, dict | list):
            break  # the rest of the path names a member of a union
        key = f"{key}.{part}"
        value = value.get(part) if isinstance(value, dict) else value[int(part)]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key}: needs a value, e.g. {key}=..."
    return f"{key}={first['input']}: {reason(problem)}"


def is_group(node: Target) -> bool:
    """Whether a verifier judges all trajectories of a problem together: its function is a coroutine."""
    return inspect.iscoroutinefunction(function(node, "verifier"))


def asks_for(node: Target) -> set[str]:
    """The supplies that a node's function asks the runner for: its keywords of those names, where the node does not set
    them."""
    keywords = inspect.signature(function(node, node["_target_"])).parameters
    return {name for name in SUPPLIES if name in keywords and name not in node}


OF_SLOT = {  # what each slot's function can be given
    "generate": ("seed", "check", "judge", "prepared", "roles", "scorers", "text", "memory", "tools", "step", "made"),
    "verifier": ("seed", "check", "roles", "scorers", "text", "memory", "tools", "step", "made"),
    "problems": ("seed", "text", "memory", "step", "made"),
    "make": ("seed", "text", "memory", "step", "made"),
    "adapt": ("seed", "step", "figures"),
    "filter": ("seed", "text", "memory", "step", "made"),
    "remember": ("seed", "text", "memory", "step", "made"),
    "train": ("seed", "step", "made"),
}


def require_supplies(node: Target, slot: str, where: str) -> None:
    """Raises ConfigError for a function that asks for what its slot is not given."""
    if lacking := sorted(asks_for(node) - set(OF_SLOT[slot])):
        raise ConfigError(
            f"{where}: {node['_target_']} asks for {', '.join(lacking)}, which a {slot} function is not given "
            f"(it can have {', '.join(OF_SLOT[slot])})",
            where,
        )


def module_of(node: Target) -> ModuleType:
    """The module of a node's function, where its hooks are."""
    return importlib.import_module(node["_target_"].rpartition(".")[0])


def options_of(node: Target) -> Target:
    return {key: value for key, value in node.items() if key != "_target_"}
