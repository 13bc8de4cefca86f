"""The tests' side of the two pipes to the program, in a code check: one request at a time, then its reply."""

from __future__ import annotations

import functools
import itertools
import json
import sys
import types
from _thread import RLock
from collections.abc import Iterator

if __name__.startswith("selfimprove"):  # in the sandbox the files are one
    from selfimprove.verify.stand_in import LIKE, Function, Pulled, StandIn, error_class, lost, mirror, raised
    from selfimprove.verify.wire import (
        SHADOWED,
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
    from typing import IO, Any, NoReturn

ITEMS = 100_000  # most items of an iterator that are sent
NOT_RAISED = (StopIteration, StopAsyncIteration, GeneratorExit)  # would end a loop in the tests instead of failing it


class Gone(BaseException):
    """The program's process has ended or broken the protocol. No test can catch this."""


class Failed(Exception):
    """The program raised an exception that cannot be raised here."""


class Link:
    """The two pipes to the program, and what the tests' side knows of its objects."""

    def __init__(self, replies: IO[bytes], requests: IO[bytes], tests: str, partial: bool, follow: bool) -> None:
        """partial: whether the tests go on after a failure. follow: see `self.follow`."""
        self._replies, self._requests, self._tests, self.partial = replies, requests, tests, partial
        self._turn = RLock()
        self._about: dict[int, Any] = {}  # number of a program's object -> its description by the program's side
        self._made: dict[int, Any] = {}  # number -> stand-in
        self._numbers: dict[int, int] = {}  # id of a stand-in -> number
        self._sent: set[str] = set()  # names of the standard library
        self._shared: dict[int, Message] = {}  # containers inside the program's objects
        self.asked = 0  # requests so far
        self.raised: list[BaseException] = []  # by the program
        self.doubt = self.refused = self.gone = ""  # reasons
        self.lost: BaseException | None = None  # the first failure after which the tests went on without a result
        self.names: dict[str, Any] = {}  # of the tests
        self.live = False  # whether some object can change and passes for one of the standard library
        self.within = 0  # depth of assertions and of blocks that may catch; inside them a failure is raised
        self.follow = int(follow)  # whether the program's changes in place are repeated on the tests' objects
        StandIn.link = self
        self.moved = False  # whether the program changed an object that was not changed here

    def exchange(self, request: Any) -> dict[str, Any]:
        """Send one request and return its reply. Raises Gone when the program gives none."""
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

    def refuse(self, why: str) -> NoReturn:
        """Raises Unsendable. It decides the check, whatever the tests do with it."""
        self.refused = self.refused or why
        raise Unsendable(why)

    def ask(self, action: str, *parts: Any) -> Any:
        """The program side's answer to a request. Raises what the program raised."""
        with self._turn:  # tests may have threads
            return self._ask(action, parts)

    def _ask(self, action: str, parts: tuple[Any, ...]) -> Any:
        self.asked += 1
        arguments = Encoded(list(parts), self._node)
        edits = []
        for place, before in self._shared.items():
            self._shared[place] = now = Encoded(before.value, self._node)
            edits.append([place, changes(before, now)])
        request = [action, arguments.message, [edit for edit in edits if edit[1]], bool(self.follow)]
        try:
            reply = self.exchange(request)
        except Gone as error:
            return self._failed(error, action)
        if "unsendable" in reply:
            self.refuse(str(reply["unsendable"]))
        try:
            self._about.update((int(number), about) for number, about in reply["new"].items())
            back = functools.partial(self._back, arguments.objects)
            decoded = Decoded(reply["raised"] if "raised" in reply else reply["value"], back)
            self._changed(arguments, reply["changed"], self.follow > 0 or decoded.value is None)
            if "shared" in reply:
                self._shared[reply["shared"]] = decoded
            if "rebound" in reply:
                self.names.update(Decoded(reply["rebound"], back).value)
            if sys.stdout is not sys.__stdout__:
                sys.stdout.write(reply["printed"])
        except MemoryError:
            self.refuse("a value that is too large")
        except Exception:  # the program may have sent anything
            self.gone = "the program sent what is no value"
            return self._failed(Gone(self.gone), action)
        if reply.get("same") and not self.follow and " is " in self._tests:
            self.moved = True
        if "raised" in reply:
            return self._failed(self._raised(decoded.value, parts), action)
        return decoded.value

    def _failed(self, error: BaseException, action: str) -> Any:
        """Raise a request's error; or, if the tests are to go on, return a value that raises it when used."""
        self.raised.append(error)
        if action == "call" and self.partial and not self.within:
            self.lost = self.lost or error
            return lost(error)
        raise error

    def _changed(self, arguments: Message, changed: list[Any], follow: bool) -> None:
        """Repeat the program's changes in place: on its own containers always, on the tests' if `follow`."""
        for place, what in changed:
            if place == -1 and not follow:
                self.moved = True
            elif place == -1 or place in self._shared:
                before = arguments if place == -1 else self._shared[place]
                change(before, what, functools.partial(self._back, arguments.objects))
                if place != -1:
                    self._shared[place] = Encoded(before.value, self._node)

    def _raised(self, error: Any, parts: tuple[Any, ...]) -> BaseException:
        """The exception to raise here for `error`, which the program raised."""
        if not isinstance(error, BaseException):
            self.gone = "the program raised what is no exception"
            return Gone(self.gone)
        if isinstance(error, NOT_RAISED) and parts[1:2] != ("__next__",):
            if any(kind.__name__ in self._tests for kind in NOT_RAISED):
                self.refuse(f"the tests expect a {type(error).__name__}, which cannot be raised for them")
            return Failed(f"{type(error).__name__}: {error}".rstrip(": "))
        return error

    # Nodes of objects that are not the standard library's

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
        self.refuse(f"the tests pass a {type(value).__name__}, which cannot be sent to the program")

    def _back(self, arguments: list[Any], tag: str, *parts: Any) -> Any:
        if tag == "argument":
            return arguments[parts[0]]
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
            return raised(*about)
        if kind == "object":
            stands_for = self._kept(about[0])
            self.live = self.live or stands_for.__dict__["_live"]
        else:
            kind_of: Any = {"iterator": Pulled, "function": Function}[kind]
            like = getattr(types, LIKE.get(about[0], ""), None)
            stands_for = type(about[0], (kind_of,), {"__class__": property(lambda self: like or kind_of)})
        base: Any = next((each for each in stands_for.__mro__ if each in SHADOWED.values()), object)
        return base.__new__(stands_for, *([] if base is object else about[1:]))

    async def _finish(self, number: int) -> Any:
        return self.ask("finish", self._made[number])
