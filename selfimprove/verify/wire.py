"""Values as JSON, for the two processes of a code check (`selfimprove.verify.code`).

A message is `[value, nodes]`. A value is a JSON scalar, or `[k]`: what node k says. A node is `[tag, value, ...]`,
where the tag names a type and the values are its parts. An object that is met twice is one node: so what is shared
stays shared, an object may hold itself, and depth costs nothing. Types of the standard library are rebuilt as they are;
for everything else each side has its own tags.

The files of the two sides are sent to the sandbox's Python as text: they import the standard library alone, run on
Python 3.9, and load no module before it is needed, since an import costs as much as the rest of a check.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCALARS = (int, str, float, bool, type(None))
STANDARD = frozenset(getattr(sys, "stdlib_module_names", sys.builtin_module_names))
# Types whose instances cannot change: a class that extends one has a stand-in that extends it too.
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
    """A value that cannot cross: no fault of the program's, nor anything that tests may catch."""


def named(name: str) -> Any:
    """What `module` or `module:path` stands for, the module loaded. Raises ImportError or AttributeError."""
    module, _, path = name.partition(":")
    __import__(module)
    found: Any = sys.modules[module]
    for part in filter(None, path.split(".")):
        found = getattr(found, part)
    return found


def name_of(value: Any) -> str | None:
    """The name by which the standard library has this class or function; None where it is not the library's."""
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    path = getattr(value, "__qualname__", None)
    if type(module) is not str or type(path) is not str or module.partition(".")[0] not in STANDARD:
        return None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return f"{module}:{path}" if found is value else None


def alike(name: str | None) -> bool:
    """Whether a class of the standard library is sent by its name."""
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


# By type: its parts, and what puts them together again.
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


# By type: its parts, an empty one (which is given the first part), and what fills it, or fills it anew.
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
    """The tag of a type that is carried as it is."""
    if kind not in _TAGS:
        module, name = kind.__module__, kind.__qualname__
        tag = name if module == "builtins" else f"{module}:{name}"
        if module == "numpy" and name != "ndarray" and hasattr(kind, "tobytes"):
            tag = "numpy"
        _TAGS[kind] = tag if tag in FIXED or tag in FILLED else None
    return _TAGS[kind]


def exact(tag: str, value: Any) -> Any:
    """A value of the very type that the tag names, made of one of that type or of a class that extends it."""
    if tag in FIXED:
        take, make = FIXED[tag]
        return make(*take(value))
    parts, empty, fill = FILLED[tag]
    taken = parts(value)
    new = empty(taken[0] if taken else None)
    fill(new, taken)
    return new


class Message:
    """A message, and the object behind each of its nodes."""

    value: Any
    message: Any
    objects: list[Any]

    def filled(self) -> dict[int, Any]:
        """The objects that can change, by node."""
        return {k: self.objects[k] for k, node in enumerate(self.message[1]) if node[0] in FILLED}


class Encoded(Message):
    """What says a value."""

    def __init__(
        self, value: Any, other: Callable[[Any], list[Any]], known: Mapping[int, list[Any]] | None = None
    ) -> None:
        """other: the tag and the parts of an object that is not of the standard library. known: those of any object
        that the other side has already, by its id."""
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
            self.objects.append(value)  # which also keeps its id from being another's
        return [place]


class Decoded(Message):
    """What a message says. Raises any Exception for what is no message."""

    def __init__(self, message: Any, other: Callable[..., Any], given: Mapping[int, Any] | None = None) -> None:
        """other: called with the tag and the parts of a node that is not of the standard library. given: objects to
        fill anew, by node, rather than make."""
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
    """What a message must say so that the other side's objects become as ours are `now`; None where they are.

    before: what made both sides' objects alike; now: the same objects, encoded again. See `change`.
    """
    if before.message == now.message:
        return None
    filled = list(before.filled().values())
    return Encoded(filled, now.other).message if filled else None


def change(before: Message, message: Any, other: Callable[..., Any]) -> None:
    """Makes our objects as the other side's `changes` say."""
    Decoded(message, other, dict(enumerate(before.filled().values(), 1)))
