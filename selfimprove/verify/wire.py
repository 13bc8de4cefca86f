"""Encodes values as JSON, for the two processes of a code check (`selfimprove.verify.code`).

A message is `[value, nodes]`. A value is a JSON scalar, or `[k]`, which stands for node k. A node is
`[tag, value, ...]`: the tag names a type, and the values are its parts. An object that occurs twice is one node. So
shared objects stay shared, an object may contain itself, and depth costs nothing. Types of the standard library are
rebuilt exactly; for all others, each side has its own tags.

The files of the two sides are sent to the sandbox's Python as text. They import only the standard library, run on
Python 3.9, and import a module only when needed, because an import costs as much as the rest of a check.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCALARS = (int, str, float, bool, type(None))
STANDARD = frozenset(getattr(sys, "stdlib_module_names", sys.builtin_module_names))
# Types whose instances cannot change. A class that extends one has a stand-in that extends it too.
SHADOWED: dict[str | None, type] = {kind.__name__: kind for kind in (int, float, complex, str, bytes, tuple, frozenset)}
COMPARISONS = ["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__"]
_OPERATORS = [
    "add",
    "sub",
    "mul",
    "matmul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "lshift",
    "rshift",
    "and",
    "xor",
    "or",
]
ARITHMETIC = [f"__{prefix}{name}__" for name in _OPERATORS for prefix in ("", "r", "i")]
SPECIAL = [
    *COMPARISONS,
    *ARITHMETIC,
    *[
        "__abs__",
        "__bool__",
        "__bytes__",
        "__call__",
        "__ceil__",
        "__complex__",
        "__delitem__",
        "__dir__",
        "__enter__",
        "__exit__",
        "__float__",
        "__floor__",
        "__format__",
        "__fspath__",
        "__getitem__",
        "__hash__",
        "__index__",
        "__int__",
        "__invert__",
        "__iter__",
        "__len__",
        "__neg__",
        "__next__",
        "__pos__",
        "__repr__",
        "__reversed__",
        "__round__",
        "__setitem__",
        "__str__",
        "__trunc__",
        "__await__",
        "__aiter__",
        "__anext__",
        "__aenter__",
        "__aexit__",
    ],
]


class Unsendable(BaseException):
    """A value cannot be sent. It is not the program's fault, and tests cannot catch it."""


def named(name: str) -> Any:
    """The object named `module` or `module:path`; it imports the module.

    Raises ImportError or AttributeError when there is none.
    """
    module, _, path = name.partition(":")
    __import__(module)
    value: Any = sys.modules[module]
    for part in filter(None, path.split(".")):
        value = getattr(value, part)
    return value


def name_of(value: Any) -> str | None:
    """The name of a class or function in the standard library; None if it is not from there."""
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    path = getattr(value, "__qualname__", None)
    if type(module) is not str or type(path) is not str or module.partition(".")[0] not in STANDARD:
        return None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return f"{module}:{path}" if found is value else None


def alike(name: str | None) -> bool:
    """Whether `name` is that of a class in the standard library that is sent by its name."""
    modules = ("builtins", "collections", "datetime", "decimal", "fractions", "json.decoder", "pathlib", "uuid")
    return name is not None and name.partition(":")[0] in modules


def _pairs(value: Any) -> list[Any]:
    return [part for pair in value.items() for part in pair]


def _raw(value: Any) -> list[Any]:
    return [bytes(value).decode("latin-1")]


def _bytes(text: str) -> bytes:
    return str.encode(text, "latin-1")


def _view(value: memoryview) -> list[Any]:
    if value.format != "B" or value.ndim != 1:
        raise Unsendable("a memoryview of something else than bytes")
    return _raw(value)


def _numbers(value: Any) -> list[Any]:
    if value.dtype.hasobject or value.dtype.names:
        raise Unsendable(f"a numpy array of {value.dtype}")
    return [";".join([value.dtype.str, *map(str, value.shape)]), value.tobytes().decode("latin-1")]


def _number(form: str, text: str) -> Any:
    return named("numpy:frombuffer")(_bytes(text), form.partition(";")[0])[0]


def _library(name: str) -> Callable[..., Any]:
    return lambda *parts: named(name)(*parts)


# Tag of an immutable type -> a function that returns its parts, and one that puts them together again.
FIXED: dict[str, tuple[Callable[[Any], Sequence[Any]], Callable[..., Any]]] = {
    "tuple": (list, lambda *parts: parts),
    "frozenset": (list, lambda *parts: frozenset(parts)),
    "bytes": (_raw, _bytes),
    "complex": (lambda v: [v.real, v.imag], complex),
    "range": (lambda v: [v.start, v.stop, v.step], range),
    "slice": (lambda v: [v.start, v.stop, v.step], slice),
    "memoryview": (_view, lambda text: memoryview(_bytes(text))),
    "ellipsis": (lambda v: [], lambda: ...),
    "NotImplementedType": (lambda v: [], lambda: NotImplemented),
    "dict_keys": (list, lambda *parts: dict.fromkeys(parts).keys()),
    "dict_values": (list, lambda *parts: dict(enumerate(parts)).values()),
    "dict_items": (list, lambda *parts: dict(parts).items()),
    "fractions:Fraction": (lambda v: [v.numerator, v.denominator], _library("fractions:Fraction")),
    "decimal:Decimal": (lambda v: [str(v)], _library("decimal:Decimal")),
    "numpy": (_numbers, _number),
    "uuid:UUID": (lambda v: [v.hex], _library("uuid:UUID")),
    "pathlib:PosixPath": (lambda v: [str(v)], _library("pathlib:PosixPath")),
    "pathlib:PurePosixPath": (lambda v: [str(v)], _library("pathlib:PurePosixPath")),
    "datetime:date": (lambda v: [v.year, v.month, v.day], _library("datetime:date")),
    "datetime:timedelta": (lambda v: [v.days, v.seconds, v.microseconds], _library("datetime:timedelta")),
    "datetime:timezone": (lambda v: v.__getinitargs__(), _library("datetime:timezone")),
    "datetime:time": (
        lambda v: [v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold],
        lambda *parts: named("datetime:time")(*parts[:-1], fold=parts[-1]),
    ),
    "datetime:datetime": (
        lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold],
        lambda *parts: named("datetime:datetime")(*parts[:-1], fold=parts[-1]),
    ),
}  # fmt: skip


def _into_list(value: Any, parts: list[Any]) -> None:
    value[:] = parts


def _into_bytes(value: Any, parts: list[Any]) -> None:
    value[:] = _bytes(*parts)


def _into_set(value: Any, parts: list[Any]) -> None:
    value.clear()
    value.update(parts)


def _into_dict(value: Any, parts: list[Any]) -> None:
    value.clear()
    for k in range(0, len(parts), 2):
        value[parts[k]] = parts[k + 1]


def _into_default(value: Any, parts: list[Any]) -> None:
    value.default_factory = parts[0]
    _into_dict(value, parts[1:])


def _into_deque(value: Any, parts: list[Any]) -> None:
    value.clear()
    value.extend(parts[1:])


def _into_array(value: Any, parts: list[Any]) -> None:
    value[:] = named("array:array")(parts[0], parts[1:])


def _into_namespace(value: Any, parts: list[Any]) -> None:
    _into_dict(value.__dict__, parts)


def _zeros(form: str) -> Any:
    kind, *shape = form.split(";")
    return named("numpy:zeros")(tuple(map(int, shape)), kind)


def _into_numbers(value: Any, parts: list[Any]) -> None:
    value[...] = named("numpy:frombuffer")(_bytes(parts[1]), value.dtype).reshape(value.shape)


# Tag of a mutable type -> a function that returns its parts, one that makes an empty value (from the first part), and
# one that fills or refills a value.
FILLED: dict[str, tuple[Callable[[Any], list[Any]], Callable[[Any], Any], Callable[[Any, list[Any]], None]]] = {
    "list": (list, lambda _: [], _into_list),
    "dict": (_pairs, lambda _: {}, _into_dict),
    "set": (list, lambda _: set(), _into_set),
    "bytearray": (_raw, lambda _: bytearray(), _into_bytes),
    "collections:OrderedDict": (_pairs, lambda _: named("collections:OrderedDict")(), _into_dict),
    "collections:Counter": (_pairs, lambda _: named("collections:Counter")(), _into_dict),
    "collections:defaultdict": (
        lambda v: [v.default_factory, *_pairs(v)],
        lambda _: named("collections:defaultdict")(),
        _into_default,
    ),
    "collections:deque": (lambda v: [v.maxlen, *v], lambda most: named("collections:deque")((), most), _into_deque),
    "array:array": (lambda v: [v.typecode, *v], lambda code: named("array:array")(code), _into_array),
    "types:SimpleNamespace": (
        lambda v: _pairs(v.__dict__),
        lambda _: named("types:SimpleNamespace")(),
        _into_namespace,
    ),
    "numpy:ndarray": (_numbers, _zeros, _into_numbers),
}
_TAGS: dict[type, str | None] = {}  # of the types met


def tag_of(kind: type) -> str | None:
    """The tag of a type whose values are sent whole; None for other types."""
    if kind not in _TAGS:
        module, name = kind.__module__, kind.__qualname__
        tag = name if module == "builtins" else f"{module}:{name}"
        if module == "numpy" and name != "ndarray" and hasattr(kind, "tobytes"):
            tag = "numpy"
        _TAGS[kind] = tag if tag in FIXED or tag in FILLED else None
    return _TAGS[kind]


def exact(tag: str, value: Any) -> Any:
    """A value of exactly the type that the tag names, from a value of that type or of a subclass."""
    if tag in FIXED:
        take, make = FIXED[tag]
        return make(*take(value))
    parts, empty, fill = FILLED[tag]
    taken = parts(value)
    new = empty(taken[0] if taken else None)
    fill(new, taken)
    return new


class Message:
    """A message, and the object of each of its nodes."""

    value: Any
    message: Any
    objects: list[Any]

    def filled(self) -> dict[int, Any]:
        """The mutable objects, by node."""
        return {k: self.objects[k] for k, node in enumerate(self.message[1]) if node[0] in FILLED}


class Encoded(Message):
    """The message that encodes a value."""

    def __init__(
        self, value: Any, other: Callable[[Any], list[Any]], known: Mapping[int, list[Any]] | None = None
    ) -> None:
        """other: returns tag and parts of an object that is not the standard library's. known: id of an object that
        the other side already has -> its tag and parts."""
        self.objects: list[Any] = []
        self.nodes: list[list[Any]] = []
        self._places: dict[int, int] = {}
        self.other = other
        self.value = value
        top = self._part(value)
        while len(self.nodes) < len(self.objects):
            value = self.objects[len(self.nodes)]
            tag = tag_of(type(value))
            if known and id(value) in known:
                parts = known[id(value)]
            elif tag is None:
                parts = other(value)
            else:
                parts = [tag, *(FILLED[tag] if tag in FILLED else FIXED[tag])[0](value)]
            self.nodes.append([parts[0], *map(self._part, parts[1:])])
        self.message = [top, self.nodes]

    def _part(self, value: Any) -> Any:
        if type(value) in SCALARS:
            return value
        place = self._places.setdefault(id(value), len(self.objects))
        if place == len(self.objects):
            self.objects.append(value)  # this also keeps its id from being used again
        return [place]


class Decoded(Message):
    """The value that a message encodes. Raises any Exception when it is not a message."""

    def __init__(self, message: Any, other: Callable[..., Any], given: Mapping[int, Any] | None = None) -> None:
        """other: makes the object of a node that is not the standard library's, from its tag and parts. given: node ->
        an existing object to refill instead of making a new one."""
        top, nodes = message
        self.message = message
        self.objects: list[Any] = [given[k] if given and k in given else _UNMADE for k in range(len(nodes))]
        fill = [k for k, node in enumerate(nodes) if node[0] in FILLED]
        for k in fill:
            if self.objects[k] is _UNMADE:
                tag, *parts = nodes[k]
                self.objects[k] = FILLED[tag][1](parts[0] if parts else None)
        waiting, begun = list(range(len(nodes))), set()
        while waiting:
            k = waiting[-1]
            if self.objects[k] is not _UNMADE:
                waiting.pop()
                continue
            tag, *parts = nodes[k]
            if missing := [part[0] for part in parts if type(part) is list and self.objects[part[0]] is _UNMADE]:
                if k in begun:
                    raise ValueError("a value that is part of itself")
                begun.add(k)
                waiting += missing
                continue
            taken = self._parts(parts)
            self.objects[k] = FIXED[tag][1](*taken) if tag in FIXED else other(tag, *taken)
        for k in fill:
            FILLED[nodes[k][0]][2](self.objects[k], self._parts(nodes[k][1:]))
        self.value = self._parts([top])[0]

    def _parts(self, parts: list[Any]) -> list[Any]:
        return [self.objects[part[0]] if type(part) is list else part for part in parts]


_UNMADE = object()


def changes(before: Message, now: Encoded) -> Any:
    """The message that makes the other side's objects equal to ours; None if they are already. `change` applies it.

    before: the message after which both sides' objects were equal. now: the same objects, encoded again.
    """
    if before.message == now.message:
        return None
    filled = list(before.filled().values())
    return Encoded(filled, now.other).message if filled else None


def change(before: Message, message: Any, other: Callable[..., Any]) -> None:
    """Apply the other side's `changes` to our objects."""
    Decoded(message, other, dict(enumerate(before.filled().values(), 1)))
