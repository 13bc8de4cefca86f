"""The program's side of a code check. It loads a program, then answers the tests' requests, one a line.

A value of a standard library type is sent whole (`selfimprove.verify.wire`). Any other object, such as a function or an
instance of the program's own class, stays here under a number. The tests have a stand-in for it
(`selfimprove.verify.stand_in`), which sends requests.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
import types
from _ast import PyCF_ONLY_AST
from collections.abc import Iterator, Mapping

if __name__.startswith("selfimprove"):  # in the sandbox the files are one
    from selfimprove.verify.wire import (
        FILLED,
        SCALARS,
        SHADOWED,
        SPECIAL,
        Decoded,
        Encoded,
        Message,
        Unsendable,
        alike,
        change,
        changes,
        exact,
        name_of,
        named,
        tag_of,
    )

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)
STUCK = (types.AsyncGeneratorType, types.ModuleType, types.FrameType, types.TracebackType)
PULLED_SINGLY = 64  # items of an iterator that are sent one by one; whoever reads more probably reads all
PULLED_AT_ONCE = 4096
PULL_SECONDS = 0.01
MESSAGE_BYTES = 1 << 26  # the longest reply
PRINTED_BYTES = 1 << 16  # most output kept of one call, if the tests read output
SHARED = 16  # containers inside the program's objects that are kept in step on both sides


class Keeper:
    """The objects that stay on this side, by number."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._untold: list[int] = []
        self._named: dict[int, tuple[str, Any]] = {}  # id -> name and object, of objects that the tests sent by name

    def number(self, value: Any) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.kept)
            self._untold.append(len(self.kept))
            self.kept.append(value)
        return self._numbers[id(value)]

    def encode(self, value: Any, known: Mapping[int, list[Any]] | None = None) -> Encoded:
        return Encoded(value, self._node, known)

    def _node(self, value: Any) -> list[Any]:
        if id(value) in self._named:
            return ["known", self._named[id(value)][0]]
        name = name_of(value) if isinstance(value, type) else None
        return ["known", name] if alike(name) else ["kept", self.number(value)]

    def back(self, tag: str, *parts: Any) -> Any:
        """The object of a node from the tests that is not a value of the standard library."""
        if tag == "kept":
            return self.kept[parts[0]]
        if tag == "known":
            value = named(parts[0])
            self._named[id(value)] = parts[0], value
            return value
        if tag == "iterator":
            return iter(parts)
        if tag == "error":
            return parts[0](*parts[1:])
        raise ValueError(tag)

    def news(self) -> dict[int, Any]:
        """The descriptions of all objects that the tests do not know yet, by number."""
        descriptions: dict[int, Any] = {}
        while self._untold:
            number = self._untold.pop()
            descriptions[number] = self._about(self.kept[number])
        return descriptions

    def _about(self, value: Any) -> list[Any]:
        kind = type(value)
        if kind in STUCK:
            raise Unsendable(f"the program's {kind.__name__} cannot be sent to the tests")
        if kind in FUNCTIONS:
            about: list[Any] = ["function", kind.__name__]
        elif kind is types.CoroutineType:
            about = ["coroutine"]
        elif isinstance(value, BaseException):
            about = ["error", kind, _text(value), vars(value), *value.args]
        elif isinstance(value, type) and issubclass(value, BaseException):
            about = ["error class", value.__name__, name_of(value), list(value.__bases__)]
        elif isinstance(value, type):
            about = ["class", *self._class(value)]
        elif kind.__module__ in ("builtins", "itertools") and isinstance(value, Iterator):
            about = ["iterator", kind.__name__]
        else:
            about = ["object", self.number(kind), plain(value) if base_of(kind) in SHADOWED else None]
        return [about[0], self.encode(about[1:]).message]

    def _class(self, kind: type) -> list[Any]:
        """The arguments of `stand_in.mirror`.

        They hold the names that the class and its bases define, up to the type of the standard library that they
        extend, and the special methods of its instances and of the class itself.
        """
        base = base_of(kind)
        end = next(i for i, cls in enumerate(kind.__mro__) if cls is object or _tag(cls))
        own = {name for cls in kind.__mro__[:end] for name in vars(cls)}
        live = set() if base in SHADOWED else {name for cls in kind.__mro__[end:-1] for name in vars(cls)}
        metaclass: Any = type(kind)
        meta = {name for cls in metaclass.__mro__ if cls not in (type, object) for name in vars(cls)}
        known = filter(None, map(name_of, kind.__mro__[:-1]))
        return [
            kind.__name__,
            base,
            next((name for name in known if not name.startswith(("abc:", "enum:", "typing:"))), None),
            [cls for cls in kind.__bases__ if name_of(cls) is None],
            [name for name in SPECIAL if name in own | live],
            [name for name in SPECIAL if name in own],
            sorted(name for name in own if name not in SPECIAL and hasattr(SHADOWED.get(base), name)),
            kind.__hash__ is not None,
            [name for name in SPECIAL if name in meta and name != "__call__"],
        ]


def _tag(kind: type) -> str | None:
    return kind.__name__ if kind in SCALARS else tag_of(kind)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its __str__ failed
        return ""


def base_of(kind: type) -> str | None:
    """The tag of the standard library type that a class extends; None if it extends none."""
    return next(filter(None, map(_tag, kind.__mro__)), None)


def plain(value: Any) -> Any:
    """An object as an instance of the standard library type that its class extends; None if there is none."""
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    tag = base_of(type(value))
    return None if tag is None else exact(tag, value)


class Server:
    """Answers the tests' requests. Each method without an underscore is a kind of request."""

    def __init__(self, programs: list[list[Any]], needs: list[str], prints: bool) -> None:
        self._keeper = Keeper()
        self._programs = viable(programs, needs)
        self._first = next(self._programs)
        self._globals: dict[str, Any] = {}
        self._bound: dict[str, Any] = {}  # the globals that the tests know
        self._pulled: dict[int, int] = {}  # id of an iterator -> number of items sent
        self._raised: dict[int, BaseException] = {}  # id of an iterator -> what it raised after them
        self._shared: dict[int, Message] = {}
        self._printed = io.BytesIO()
        if prints:  # the tests read the output
            sys.stdout = io.TextIOWrapper(self._printed, "utf-8", "replace", write_through=True)

    def _answer(self, action: str, message: Any, changed: list[Any], follow: bool) -> dict[str, Any]:
        """One reply. Raises Unsendable when a value cannot be sent."""
        encode, back = self._keeper.encode, self._keeper.back
        for place, what in changed:
            change(self._shared[place], what, back)
            self._shared[place] = encode(self._shared[place].value)
        reply: dict[str, Any] = {}
        arguments = None
        try:
            arguments = Decoded(message, back)
            given = {id(value): ["argument", k] for k, value in arguments.filled().items()}
            encoded = encode(getattr(self, action)(*arguments.value), given if follow else None)
            reply["value"] = encoded.message
            reply["same"] = any(id(value) in given for value in encoded.objects)
            first = {"get": 0, "load": 2}.get(action, len(encoded.nodes))  # nodes from here on are inside its objects
            if any(node[0] in FILLED for node in encoded.nodes[first:]):
                reply["shared"] = len(self._shared)
                self._shared[len(self._shared)] = encoded
        except BaseException as error:  # SystemExit too: the program failed, and the tests decide what that means
            if isinstance(error, Unsendable):
                raise
            reply["raised"] = encode(error).message
        edits = [[-1, changes(arguments, encode(arguments.value))]] if arguments else []
        for place, before in list(self._shared.items())[-SHARED:]:
            self._shared[place] = now = encode(before.value)
            edits.append([place, changes(before, now)])
        bound = {name: self._globals[name] for name in self._bound if name in self._globals}
        if rebound := {name: value for name, value in bound.items() if value is not self._bound[name]}:
            self._bound |= rebound
            reply["rebound"] = encode(rebound).message
        reply["printed"] = self._printed.getvalue()[:PRINTED_BYTES].decode("utf-8", "replace")
        self._printed.seek(0)
        self._printed.truncate()
        return reply | {"changed": [edit for edit in edits if edit[1]], "new": self._keeper.news()}

    def load(self, names: list[str]) -> list[Any]:
        """Run the program. Returns its number, and those of the names that it binds.

        A text that continues the prompt may run on into code that fails. Then the next such text is run, which ends
        earlier.
        """
        number, continues, code = self._first
        while True:
            module = sys.modules["candidate"] = type(sys)("candidate")
            self._globals = module.__dict__
            try:
                exec(code, self._globals)
                break
            except BaseException:
                later = next((program for program in self._programs if program[1]), None) if continues else None
                if later is None:
                    raise
                number, _, code = later
        self._bound = {name: self._globals[name] for name in names if name in self._globals}
        return [number, self._bound]

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return function(*args, **kwargs)

    def get(self, value: Any, name: str) -> Any:
        return getattr(value, name)

    def set(self, value: Any, name: str, what: Any) -> None:
        setattr(value, name, what)

    def delete(self, value: Any, name: str) -> None:
        delattr(value, name)

    def special(self, value: Any, name: str, args: list[Any]) -> Any:
        return getattr(type(value), name)(value, *args)

    def stranger(self, value: Any, name: str) -> bool:
        """Whether the comparison `name` is true even for an object that it has never seen."""
        try:
            answer = getattr(type(value), name)(value, object())
            return answer is not NotImplemented and bool(answer)
        except BaseException:  # the comparison failed
            return False

    def plain(self, value: Any) -> Any:
        return plain(value)

    def finish(self, coroutine: Any) -> Any:
        """The result of a coroutine."""
        import asyncio

        return asyncio.run(coroutine)

    def pull(self, iterator: Any) -> list[Any]:
        """The next items of an iterator; none at its end."""
        key = id(iterator)
        if key in self._raised:
            raise self._raised.pop(key)
        count = self._pulled.get(key, 0)
        most = 1 if count < PULLED_SINGLY else min(count, PULLED_AT_ONCE)
        items: list[Any] = []
        end = time.monotonic() + PULL_SECONDS
        try:
            for item in iterator:
                items.append(item)
                if len(items) == most or time.monotonic() > end:
                    break
        except BaseException as error:
            if not items:
                raise
            self._raised[key] = error
        self._pulled[key] = count + len(items)
        return items


def viable(programs: list[list[Any]], needs: list[str]) -> Iterator[tuple[int, bool, Any]]:
    """(number, whether it only continues a prompt, code) of each usable program.

    A program has three parts: a part of the completion, which must compile by itself and bind one of the names in
    `needs` (empty: the completion only continues a prompt); the whole text to run; and whether it may be cut short
    where it ceases to be Python. Raises LookupError, with the reason, when no program is usable.
    """
    why, any_usable = "no code in the completion", False
    for number, (part, whole, may_be_cut) in enumerate(programs):
        try:
            text, ahead = part or whole, len(whole) - len(part or whole)
            try:
                tree = compile(text, "<candidate>", "exec", PyCF_ONLY_AST, True)
            except SyntaxError as error:
                if not may_be_cut or not (text := cut(text, error)):
                    raise
                tree = compile(text, "<candidate>", "exec", PyCF_ONLY_AST, True)
            if needs and not bound(tree).intersection(needs):
                why = f"the code does not define {' or '.join(needs)}"
                continue
            code = compile(whole[:ahead] + text, "<candidate>", "exec", 0, True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = f"{type(error).__name__}: {error}"[:300]
            continue
        any_usable = True
        yield number, not part, code
    if not any_usable:
        raise LookupError(why)


def cut(text: str, error: SyntaxError) -> str:
    """The start of a text, up to the first statement that is not Python, because a model may run on into prose.

    Expressions and assertions at the end of that part are removed too, since they bind nothing.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    end, wrong = len(lines), error.lineno or 1
    while True:
        end = min(end, wrong) - 1
        while end > 0 and (not lines[end] or lines[end][0] in " \t)]}"):
            end -= 1
        if end <= 0:
            return ""
        try:
            tree: Any = compile("\n".join(lines[:end]), "<candidate>", "exec", PyCF_ONLY_AST, True)
            break
        except SyntaxError as earlier:
            wrong = earlier.lineno or 1
    body = tree.body
    while body and type(body[-1]).__name__ in ("Expr", "Assert"):
        body.pop()
    return "\n".join(lines[: body[-1].end_lineno]) if body else ""


def bound(tree: Any) -> set[str]:
    """Names that a module's statements define, import or assign, also those inside `if`, `try` and the like."""
    names: set[str] = set()
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        kind = type(node).__name__
        if kind == "Name":
            names.add(node.id)
        elif kind in ("Import", "ImportFrom"):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif kind in ("FunctionDef", "AsyncFunctionDef", "ClassDef"):
            names.add(node.name)
        else:
            for field in (
                "body",
                "orelse",
                "finalbody",
                "handlers",
                "items",
                "optional_vars",
                "target",
                "targets",
                "elts",
            ):
                inner = getattr(node, field, None) or []
                waiting += inner if isinstance(inner, list) else [inner]
    return names


def serve() -> None:
    """Answer requests on standard input until it ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nowhere, fd)

    def reply(message: dict[str, Any]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode()
        if len(line) > MESSAGE_BYTES:
            line = b'{"unsendable": "a value that is too long"}'
        replies.write(line + b"\n")
        replies.flush()

    try:
        server = Server(**json.loads(requests.readline()))
    except LookupError as error:
        reply({"unparseable": str(error)})
        return
    reply({"chosen": server._first[0]})  # sent before any code of the candidate runs
    for line in requests:
        try:
            answer = server._answer(*json.loads(line))
        except (Unsendable, MemoryError) as error:
            answer = {"unsendable": str(error) or "too little memory"}
        reply(answer)
