"""The tests' side of a code check: the link to the program, and what stands in for the objects that stay with it.

A stand-in has the special methods that the program's object has, and asks for each answer. No code of the program runs
here, and its answer to a question is believed as a function's result would be, with one exception: where a class of the
program's own says what one of its objects is equal to, less than, or in sum with something else, it has been told what
the tests expect, so an assertion that holds by such an answer shows nothing. It puts the link in `doubt`.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
import types
from collections.abc import Iterator

if __name__.startswith("selfimprove"):  # in the sandbox the files are one
    from selfimprove.verify.wire import (
        ARITHMETIC,
        COMPARISONS,
        SHADOWED,
        SPECIAL,
        STANDARD,
        Decoded,
        Encoded,
        Message,
        Unsendable,
        alike,
        change,
        changes,
        name_of,
        named,
    )

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

ITEMS = 100_000  # at most this many of an iterator are sent
NOT_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)  # would end a loop of the tests' and not fail it


class Gone(BaseException):
    """The program's process has ended or broken the protocol: no test can catch this."""


class Failed(Exception):
    """The program raised what cannot be raised here."""


class Link:
    """The two pipes to the program, and what is known of its objects."""

    def __init__(self, replies: IO[bytes], requests: IO[bytes], tests: str, partial: bool, follow: bool) -> None:
        """partial: whether the tests go on after a failure; follow: see `self.follow`."""
        self._replies, self._requests, self._tests, self.partial = replies, requests, tests, partial
        self._about: dict[int, Any] = {}  # what the program's side said of its objects, by number
        self._made: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}  # by the id of what was made
        self._sent: set[str] = set()  # names of the standard library
        self._shared: dict[int, Encoded | Decoded] = {}  # containers inside the program's objects
        self.asked = 0
        self.raised: list[BaseException] = []  # by the program
        self.doubt = self.refused = self.gone = ""  # reasons
        self.names: dict[str, Any] = {}  # of the tests
        self.live = False  # whether an object is known that may change and passes for one of the standard library
        self.within = 0  # assertions, and blocks that may catch: a failure in there is raised
        self.follow = int(follow)  # whether what the program changes in place changes in the tests' objects too
        StandIn.link = self
        self.moved = False  # whether it changed something that did not change here

    def exchange(self, request: Any) -> dict[str, Any]:
        """One request and its reply. Raises Gone."""
        if not self.gone:
            try:
                self._requests.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")
                self._requests.flush()
                line = self._replies.readline()
                reply = json.loads(line) if line.endswith(b"\n") else None
                if isinstance(reply, dict):
                    return reply
            except (OSError, ValueError, RecursionError, MemoryError):
                pass
            self.gone = "the program ended, or sent no value, before it had answered"
        raise Gone(self.gone)

    def refuse(self, why: str) -> Any:
        """Raises Unsendable, which decides the check, whatever the tests make of it."""
        self.refused = self.refused or why
        raise Unsendable(why)

    def ask(self, action: str, *parts: Any) -> Any:
        """What the program's side answers. Raises what the program raised."""
        self.asked += 1
        asked = Encoded(list(parts), self._node)
        own = []
        for place, before in self._shared.items():
            self._shared[place] = now = Encoded(before.value, self._node)
            own.append([place, changes(before, now)])
        request = [action, asked.message, [each for each in own if each[1]], bool(self.follow)]
        try:
            reply = self.exchange(request)
        except Gone as error:
            return self._failed(error, action)
        if "unsendable" in reply:
            self.refuse(str(reply["unsendable"]))
        try:
            self._about.update((int(number), about) for number, about in reply["new"].items())
            back = functools.partial(self._back, asked.objects)
            decoded = Decoded(reply["raised"] if "raised" in reply else reply["value"], back)
            self._changed(asked, reply["changed"], self.follow > 0 or decoded.value is None)
            if "shared" in reply:
                self._shared[reply["shared"]] = decoded
            if "rebound" in reply:
                self.names.update(Decoded(reply["rebound"], back).value)
            if sys.stdout is not sys.__stdout__:
                sys.stdout.write(reply["printed"])
        except MemoryError:
            self.refuse("a value that is too large")
        except Exception:  # anything may be wrong with what it sent
            self.gone = "the program sent what is no value"
            return self._failed(Gone(self.gone), action)
        if reply.get("same") and not self.follow and " is " in self._tests:
            self.moved = True
        if "raised" in reply:
            return self._failed(self._raised(decoded.value, parts), action)
        return decoded.value

    def _failed(self, error: BaseException, action: str) -> Any:
        """Raises what became of a request; where the tests are to go on, it is raised when the result is used."""
        self.raised.append(error)
        if action == "call" and self.partial and not self.within:
            return lost(error)
        raise error

    def _changed(self, asked: Message, changed: list[Any], follow: bool) -> None:
        """Changes what the program has changed in place: its own containers always, those of the tests' where they call
        it for nothing else."""
        for place, what in changed:
            if place == -1 and not follow:
                self.moved = True
            elif place == -1 or place in self._shared:
                before = asked if place == -1 else self._shared[place]
                change(before, what, functools.partial(self._back, asked.objects))
                if place != -1:
                    self._shared[place] = Encoded(before.value, self._node)

    def _raised(self, error: Any, parts: tuple[Any, ...]) -> BaseException:
        """What is raised here for what the program raised."""
        if not isinstance(error, BaseException):
            self.gone = "the program raised what is no exception"
            return Gone(self.gone)
        if isinstance(error, NOT_RAISED) and parts[1:2] != ("__next__",):
            if any(kind.__name__ in self._tests for kind in NOT_RAISED):
                self.refuse(f"the tests expect a {type(error).__name__}, which cannot be raised for them")
            return Failed(f"{type(error).__name__}: {error}".rstrip(": "))
        return error

    # Nodes of what is not of the standard library

    def _node(self, value: Any) -> list[Any]:
        if id(value) in self._numbers:
            return ["kept", self._numbers[id(value)]]
        if name := name_of(value):
            self._sent.add(name)
            return ["known", name]
        if isinstance(value, Iterator):
            items = list(itertools.islice(value, ITEMS + 1))
            if len(items) > ITEMS:
                self.refuse(f"the tests pass an iterator of more than {ITEMS} items")
            return ["iterator", *items]
        if isinstance(value, BaseException) and name_of(type(value)):
            return ["error", type(value), *value.args]
        return self.refuse(f"the tests pass a {type(value).__name__}, which cannot be sent to the program")

    def _back(self, asked: list[Any], tag: str, *parts: Any) -> Any:
        if tag == "argument":
            return asked[parts[0]]
        if tag == "known" and parts[0] in self._sent:
            return named(parts[0])
        if tag == "known" and alike(parts[0]) and isinstance(named(parts[0]), type):
            return named(parts[0])
        if tag != "kept":
            raise ValueError(tag)
        return self._kept(int(parts[0]))

    def _kept(self, number: int) -> Any:
        """The stand-in for an object."""
        if number not in self._made:
            kind, message = self._about[number]
            made = self._make(number, kind, *Decoded(message, functools.partial(self._back, [])).value)
            self._made[number] = made
            self._numbers[id(made)] = number
        return self._made[number]

    def _make(self, number: int, kind: str, *about: Any) -> Any:
        if kind == "coroutine":
            return self._finish(number)
        if kind == "class":
            return mirror(*about)
        if kind == "error class":
            return error_class(*about)
        if kind == "error":
            return error(*about)
        if kind == "object":
            stands_for = self._kept(about[0])
            self.live = self.live or stands_for.__dict__["_live"]
        else:
            base = {"iterator": Pulled, "function": Function}[kind]
            like = getattr(types, LIKE.get(about[0], ""), None)
            stands_for = type(about[0], (base,), {"__class__": property(lambda self: like or base)})
        base = next((each for each in stands_for.__mro__ if each in SHADOWED.values()), object)
        return base.__new__(stands_for, *([] if base is object else about[1:]))

    async def _finish(self, number: int) -> Any:
        return self.ask("finish", self._made[number])


def lost(error: BaseException) -> Any:
    """What a call has returned that failed: whatever it is used for raises the error."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    names = {name: fail for name in (*SPECIAL, "__getattribute__", "__setattr__", "__delattr__")}
    return type("Lost", (Lost,), names)()


class Lost:
    pass


class StandIn:
    """An object of the program's, as the tests see it."""

    link: Link  # there is one in a process

    def __getattribute__(self, name: str) -> Any:
        if name in HERE:
            return object.__getattribute__(self, name)
        return StandIn.link.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        StandIn.link.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        StandIn.link.ask("delete", self, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        StandIn.link.refuse("the tests copy an object of the program's")

    def __init_subclass__(cls, **options: Any) -> None:
        if cls.__module__ == "tests":
            StandIn.link.refuse("the tests extend a class of the program's")


class Function(StandIn):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return StandIn.link.ask("call", self, list(args), kwargs)


class Pulled(StandIn):
    """An iterator, whose items are sent one by one at first."""

    def __iter__(self) -> Pulled:
        return self

    def __next__(self) -> Any:
        items = object.__getattribute__(self, "__dict__").setdefault("items", [])
        if not items:
            items += StandIn.link.ask("pull", self)[::-1]
        if not items:
            raise StopIteration
        return items.pop()


HERE = {*SPECIAL, "__class__", "__reduce_ex__"}  # not asked for
LIKE = {
    "function": "FunctionType",
    "method": "MethodType",
    "builtin_function_or_method": "BuiltinFunctionType",
    "generator": "GeneratorType",
}  # in `types`, for isinstance


class Mirror(type):
    """The class of a class of the program's."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return StandIn.link.ask("call", cls, list(args), kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name == "__dataclass_fields__":
            StandIn.link.refuse("the tests look into a dataclass of the program's")
        return StandIn.link.ask("get", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        StandIn.link.ask("set", cls, name, value)


def mirror(
    name: str, base: str | None, known: str | None, bases: list[Any], special: list[str], own: list[str], hidden: list[str],
    hashable: bool, meta: list[str],
) -> Any:  # fmt: skip
    """A class for the stand-ins of a class's objects. See `candidate.Keeper` for what is known of it."""
    shadowed = SHADOWED.get(base)
    names: dict[str, Any] = {"_live": bool(base and not shadowed)}
    for each in SPECIAL:
        if each in special and each != "__hash__":
            names[each] = _special(each, each in own)
    if not hashable:
        names["__hash__"] = None
    elif "__hash__" in own:
        names["__hash__"] = _special("__hash__", True)
    elif shadowed:
        names["__hash__"] = shadowed.__hash__
    elif base:
        names["__hash__"] = lambda self: hash(StandIn.link.ask("plain", self))
    if shadowed:
        names["__getattr__"] = lambda self, name: StandIn.link.ask("get", self, name)
        names["__getattribute__"] = _unless(set(hidden), shadowed)
    elif like := loaded(known):  # for isinstance
        names["__class__"] = property(lambda self: like)
    extended = [each for each in bases if isinstance(each, Mirror)]
    metas = list(dict.fromkeys(map(type, extended))) or [Mirror]
    kind = type("Mirror", tuple(metas), {each: _special(each, True) for each in SPECIAL if each in meta})
    if not any(issubclass(each, StandIn) for each in extended):
        extended.append(StandIn)
    if shadowed and not any(issubclass(each, shadowed) for each in extended):
        extended.append(shadowed)
    return kind.__new__(kind, name, tuple(extended), names)


def _unless(hidden: set[str], shadowed: type) -> Callable[[Any, str], Any]:
    def get(self: Any, name: str) -> Any:
        if name in hidden:
            return StandIn.link.ask("get", self, name)
        return shadowed.__getattribute__(self, name)

    return get


def _special(name: str, own: bool) -> Callable[..., Any]:
    """A special method. own: the program's class defines it, or none of the standard library's does."""
    if name in REFUSED:
        return lambda self, *args: StandIn.link.refuse(f"the tests need {name} of an object of the program's")
    if name == "__call__":
        return Function.__call__
    if not own and name in ARITHMETIC + COMPARISONS and name not in IN_PLACE:
        return lambda self, *args: getattr(StandIn.link.ask("plain", self), name)(*map(_plain, args))

    def ask(self: Any, *args: Any) -> Any:
        link = StandIn.link
        answer = link.ask("special", self, name, list(args))
        if answer is NotImplemented or not own or name not in ARITHMETIC + COMPARISONS:
            return answer
        if name in COMPARISONS:
            if bool(answer) == (name == "__ne__"):  # anything may differ
                return answer
            if name != "__ne__" and link.ask("stranger", self, name):  # what is like everything is like nothing
                return False
        elif isinstance(self, tuple(each for each in link.names.values() if isinstance(each, Mirror))):
            return answer  # the tests know the class, and ask for its sums
        link.doubt = f"{name} is the program's own, and says what it was asked to"
        return answer

    return ask


IN_PLACE = [name for name in ARITHMETIC if name[2] == "i" and name.replace("__i", "__", 1) in ARITHMETIC]
REFUSED = ("__await__", "__aiter__", "__anext__", "__aenter__", "__aexit__")


def _plain(value: Any) -> Any:
    return StandIn.link.ask("plain", value) if isinstance(value, StandIn) else value


def loaded(name: str | None) -> Any:
    """What the standard library has by this name, where the tests have loaded it."""
    module = str(name).partition(":")[0]
    return named(str(name)) if module.partition(".")[0] in STANDARD and module in sys.modules else None


def error_class(name: str, known: str | None, bases: list[Any]) -> Any:
    """The standard library's own where the tests have loaded it, else a class that can be raised and caught like it."""
    found = loaded(known)
    if isinstance(found, type) and issubclass(found, BaseException):
        return found

    def text(self: Any) -> str:
        said = self.__dict__.get("_said")
        return BaseException.__str__(self) if said is None else str(said)

    def get(self: Any, name: str) -> Any:
        return StandIn.link.ask("get", self, name)

    return type(name, tuple(bases), {"__str__": text, "__getattr__": get, "__module__": "candidate"})


def error(kind: Any, text: str, names: dict[str, Any], *args: Any) -> Any:
    """An exception as the program raised it."""
    try:
        made = kind(*args) if kind.__module__ != "candidate" else kind.__new__(kind, *args)
    except TypeError:
        made = kind.__new__(kind)
    if kind.__module__ == "candidate":
        names = names | {"_said": text}
    made.__dict__.update(names)
    return made
