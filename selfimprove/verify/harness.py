"""What runs inside the two sandboxes of `selfimprove.verify.code`: the tests in one, the candidate in the other.

The tests' process calls the candidate's functions by name. Arguments and results cross the pipes as JSON, values of
built-in types only, rebuilt on the other side: no object of the candidate's ever stands in the tests' process, so
none of its code takes part in a comparison. Anything else the candidate returns (an instance of its own class, a
function) stays with it, and the tests get a handle that equals nothing but itself, yet can be called, passed back, and
have its attributes read and set.

This file is sent to the sandbox's Python as text: it imports the standard library alone, runs on Python 3.9, and loads
no module before it is needed, since an import costs as much as the rest of a check.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from _ast import PyCF_ONLY_AST
from collections.abc import Callable, Iterator, Mapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from typing import IO, Any

MESSAGE_BYTES = 1 << 24  # the longest reply that is read
ITEMS = 100_000  # at most this many of an iterator are sent
PLAIN: dict[type, Callable[[Any], Any]] = {
    bool: bool,
    int: int.__index__,
    float: float.__float__,
    str: str.__str__,
}


class Unsendable(Exception):
    """A value that has no form in JSON, and no handle."""


def encode(value: Any, handle: Callable[[Any], int]) -> Any:
    """JSON that `decode` turns back into an equal value of built-in type. `handle` numbers what has no such form."""
    if value is None or type(value) in PLAIN:
        return value
    for plain, exact in PLAIN.items():
        if isinstance(value, plain):  # a subclass is sent as what it extends
            return exact(value)
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [encode(item, handle) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(k, handle), encode(v, handle)] for k, v in dict.items(value)]]
    if isinstance(value, (bytes, bytearray)):
        return [type(value).__name__, value.decode("latin-1")]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, Iterator):
        items = []
        for item in value:
            items.append(encode(item, handle))
            if len(items) > ITEMS:
                raise Unsendable(f"an iterator of more than {ITEMS} items")
        return ["iterator", items]
    return ["handle", handle(value)]


def decode(data: Any, handle: Callable[[int], Any]) -> Any:
    """The value that `encode` was given. Raises when `data` is nothing it could have made."""
    if not isinstance(data, list):
        if data is None or type(data) in PLAIN:
            return data
        raise ValueError("not a value")
    name, body = data
    if name == "handle":
        return handle(int(body))
    if name == "dict":
        return {decode(key, handle): decode(value, handle) for key, value in body}
    if name in ("bytes", "bytearray"):
        raw = str.encode(body, "latin-1")
        return raw if name == "bytes" else bytearray(raw)
    if name == "complex":
        return complex(*map(float, body))
    if name == "range":
        return range(*map(int, body))
    items = [decode(item, handle) for item in body]
    kinds: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}
    return kinds[name](items)


# The candidate's side


def serve() -> None:
    """Loads one of the programs it is sent, then answers one request a line until there are no more."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nowhere, fd)
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    task = json.loads(requests.readline())
    chosen, code = choose(task["programs"], task["needs"])
    if chosen is None:
        reply(unparseable=code)
        return
    reply(chosen=chosen)  # said before any code of the candidate has run
    module = type(sys)("candidate")
    sys.modules["candidate"] = module

    def answer(action: str, target: Any, *rest: Any) -> Any:
        if action == "load":
            exec(code, module.__dict__)
            return None
        if action == "global":
            return module.__dict__[target]
        value, arguments = kept[target], [decode(item, kept.__getitem__) for item in rest]
        if action == "call":
            return value(*arguments[0], **arguments[1])
        return getattr(value, *arguments) if action == "get" else setattr(value, *arguments)

    for line in requests:
        try:
            message = {"value": encode(answer(*json.loads(line)), keep)}
        except BaseException as error:  # SystemExit too: the candidate failed, the tests decide what that means
            message = {"raised": [type(error).__name__, str(error)[:300]]}
        reply(**message)


def choose(programs: list[list[str]], needs: list[str]) -> tuple[int | None, Any]:
    """Number and code of the first program that will do; None and why when none will.

    A program is a pair: a part of the completion that must compile by itself and bind one of the names in `needs`
    (empty: the completion only continues what comes before it), and the whole of what is run.
    """
    why = "no code in the completion"
    for number, (own, whole) in enumerate(programs):
        try:
            names = bound(compile(own or whole, "<candidate>", "exec", PyCF_ONLY_AST))
            if not needs or names.intersection(needs):
                return number, compile(whole, "<candidate>", "exec")
            why = f"the code does not define {' or '.join(needs)}"
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            why = f"{type(error).__name__}: {error}"[:300]
    return None, why


def bound(tree: Any) -> set[str]:
    """Names that a module's own statements define, import or assign."""
    names: set[str] = set()
    for node in tree.body:
        names.update(target.id for target in getattr(node, "targets", ()) if hasattr(target, "id"))
        if type(node).__name__ in ("Import", "ImportFrom"):
            names.update(alias.asname or alias.name for alias in node.names)
        elif type(node).__name__ in ("FunctionDef", "AsyncFunctionDef", "ClassDef"):
            names.add(node.name)
    return names


# The tests' side


class Failed(Exception):
    """The candidate raised something that is no built-in exception."""


class Gone(BaseException):
    """The candidate's process has ended or broken the protocol: no test can go on, nor catch this."""


class Handle:
    """An object that stays in the candidate's process."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_place", (link, number))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "call", list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)


def _ask(handle: Handle, action: str, *rest: Any) -> Any:
    link, number = object.__getattribute__(handle, "_place")
    return link.ask(action, number, *(encode(item, _number) for item in rest))


def _number(value: Any) -> int:
    if type(value) is not Handle:
        raise Unsendable(f"the tests pass a {type(value).__name__}, which cannot be sent to the candidate")
    number: int = object.__getattribute__(value, "_place")[1]
    return number


class Link:
    """The two pipes to the candidate."""

    def __init__(self, replies: IO[bytes], requests: IO[bytes]) -> None:
        self._replies, self._requests = replies, requests

    def exchange(self, request: Any) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            line = self._replies.readline(MESSAGE_BYTES)
            message = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError, RecursionError, MemoryError):
            message = None
        if not isinstance(message, dict):
            raise Gone("the program ended, or sent no value, before it had answered")
        return message

    def ask(self, *request: Any) -> Any:
        """What the candidate answers. Raises what it raised, if that is a built-in exception, else Failed."""
        from contextlib import suppress

        message = self.exchange(request)
        error: Exception
        try:
            if "raised" in message:
                name, text = map(str, message["raised"])
            else:
                return decode(message["value"], lambda number: Handle(self, number))
        except (TypeError, ValueError, KeyError, LookupError, RecursionError, OverflowError, MemoryError):
            raise Gone("the program sent what is no value") from None
        kind = getattr(builtins, name, None)
        error = Failed(f"{name}: {text}")
        if isinstance(kind, type) and issubclass(kind, Exception):
            with suppress(TypeError):  # UnicodeDecodeError and the like want more than a text
                error = kind(text)
        raise error


def count_assertions(tree: ast.Module) -> None:
    """Puts each assertion in a `with _count_:`, but for those about a constant, which say nothing of the candidate."""
    import ast

    for node in list(ast.walk(tree)):
        for _, block in list(ast.iter_fields(node)):
            for place, statement in enumerate(block if isinstance(block, list) else []):
                if isinstance(statement, ast.Assert) and not isinstance(statement.test, ast.Constant):
                    counted = ast.With([ast.withitem(ast.Name("_count_", ast.Load()))], [statement])
                    block[place] = ast.fix_missing_locations(ast.copy_location(counted, statement))


class Tally:
    """Counts the assertions that hold; with `partial` also those that do not, and goes on after them."""

    def __init__(self, partial: bool) -> None:
        self.partial, self.passed, self.failed, self.reason = partial, 0, 0, ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        if error is None:
            self.passed += 1
        elif self.partial and isinstance(error, Exception) and not isinstance(error, Unsendable):
            self.fail(error)
            return True
        return False

    def fail(self, error: BaseException) -> None:
        self.failed += 1
        self.reason = self.reason or f"{type(error).__name__}: {error}".rstrip(": ")[:300]


def drive(replies: int, requests: int) -> None:
    """Reads a task from standard input, runs its tests, writes the verdict to standard output, both as JSON.

    Task: `programs` and `needs` (see `choose`); `prelude`, code that the tests may use; `tests`, code that asserts;
    `candidate`, the function that is given to the tests' own `check`, or None where they call by name; `partial`.
    """
    task = json.load(sys.stdin)
    verdict = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the tests print is no verdict
    tally = Tally(task["partial"])
    link = Link(os.fdopen(replies, "rb"), os.fdopen(requests, "wb"))
    outcome: dict[str, Any] = {"status": "error", "chosen": None}
    try:
        judge(task, link, tally, outcome)
    except Gone as error:
        tally.fail(error)  # before the candidate was loaded, the fault is the sandbox's, and the status `error`
    except (Unsendable, SyntaxError) as error:
        outcome["status"], tally.reason = "error", f"the tests cannot be run: {error}"
    outcome |= {"passed": tally.passed, "failed": tally.failed, "reason": outcome.get("reason") or tally.reason}
    json.dump(outcome, verdict)
    verdict.close()


def judge(task: Mapping[str, Any], link: Link, tally: Tally, outcome: dict[str, Any]) -> None:
    import ast
    from contextlib import suppress

    names: dict[str, Any] = {"__name__": "tests", "_count_": tally}
    trees = [ast.parse(test) for test in task["tests"]]
    exec(task["prelude"], names)
    hello = link.exchange({"programs": task["programs"], "needs": task["needs"]})
    if "unparseable" in hello:
        outcome |= {"status": "unparseable", "reason": str(hello["unparseable"])}
        return
    outcome |= {"status": "wrong", "chosen": hello["chosen"]}
    wanted = {task["candidate"]} if task["candidate"] else called(trees) - set(names) - set(dir(builtins))
    try:
        link.ask("load", None)
        for name in sorted(wanted):
            with suppress(KeyError):  # a test that uses it raises NameError
                names[name] = link.ask("global", name)
        for tree in trees:
            count_assertions(tree)
            exec(compile(tree, "<tests>", "exec"), names)
        if task["candidate"]:
            names["check"](names[task["candidate"]])
    except Unsendable:
        raise
    except Exception as error:
        tally.fail(error)
    if not tally.failed:
        outcome["status"] = "correct"


def called(trees: list[ast.Module]) -> set[str]:
    """Names that the tests read and do not bind themselves."""
    import ast

    names = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return names.difference(*map(bound, trees))


if __name__ == "__main__":
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # answers may be long numbers
    serve() if sys.argv[1:2] == ["serve"] else drive(int(sys.argv[-2]), int(sys.argv[-1]))
