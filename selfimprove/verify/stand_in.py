"""Stand-ins in the tests' process for objects that stay with the program, in a code check.

A stand-in has the special methods of the program's object, and asks the program for each result. No code of the program
runs here. A result is trusted like that of a function call, with one exception. When a class of the program's own
compares its object with another value, or adds them, it is told what the tests expect. An assertion that holds only by
such a result shows nothing, and the link is in `doubt`.
"""

from __future__ import annotations

import sys

if __name__.startswith("selfimprove"):  # in the sandbox the files are one
    from selfimprove.verify.wire import ARITHMETIC, COMPARISONS, SHADOWED, SPECIAL, STANDARD, named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from selfimprove.verify.link import Link


def lost(error: BaseException) -> Any:
    """The result of a failed call. Any use of it raises the error."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    names = {name: fail for name in (*SPECIAL, "__getattribute__", "__setattr__", "__delattr__")}
    return type("Lost", (Lost,), names)()


class Lost:
    pass


class StandIn:
    """An object of the program, as the tests see it."""

    link: Link  # one for each process

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
    """An iterator. Its first items are sent one by one."""

    def __iter__(self) -> Pulled:
        return self

    def __next__(self) -> Any:
        items = object.__getattribute__(self, "__dict__").setdefault("items", [])
        if not items:
            items += StandIn.link.ask("pull", self)[::-1]
        if not items:
            raise StopIteration
        return items.pop()


HERE = {*SPECIAL, "__class__", "__reduce_ex__"}  # attributes that are not requested from the program
LIKE = {
    "function": "FunctionType",
    "method": "MethodType",
    "builtin_function_or_method": "BuiltinFunctionType",
    "generator": "GeneratorType",
}  # in `types`, for isinstance


class Mirror(type):
    """The metaclass of stand-ins for the program's classes."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return StandIn.link.ask("call", cls, list(args), kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name == "__dataclass_fields__":
            StandIn.link.refuse("the tests look into a dataclass of the program's")
        return StandIn.link.ask("get", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        StandIn.link.ask("set", cls, name, value)


def mirror(
    name: str,
    base: str | None,
    known: str | None,
    bases: list[Any],
    special: list[str],
    own: list[str],
    hidden: list[str],
    hashable: bool,
    meta: list[str],
) -> Any:
    """The class of the stand-ins for one class's objects. `candidate.Keeper` describes that class."""
    shadowed = SHADOWED.get(base)
    names: dict[str, Any] = {"_live": bool(base and not shadowed)}
    for method in SPECIAL:
        if method in special and method != "__hash__":
            names[method] = _special(method, method in own)
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
    extended: list[Any] = [cls for cls in bases if isinstance(cls, Mirror)]
    metas = list(dict.fromkeys(map(type, extended))) or [Mirror]
    kind = type("Mirror", tuple(metas), {method: _special(method, True) for method in SPECIAL if method in meta})
    if not any(issubclass(cls, StandIn) for cls in extended):
        extended.append(StandIn)
    if shadowed and not any(issubclass(cls, shadowed) for cls in extended):
        extended.append(shadowed)
    return kind.__new__(kind, name, tuple(extended), names)


def _unless(hidden: set[str], shadowed: Any) -> Callable[[Any, str], Any]:
    def get(self: Any, name: str) -> Any:
        if name in hidden:
            return StandIn.link.ask("get", self, name)
        return shadowed.__getattribute__(self, name)

    return get


def _special(name: str, own: bool) -> Callable[..., Any]:
    """A special method of a stand-in. own: the program's class defines it, and no type of the standard library."""
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
            if name != "__ne__" and link.ask("stranger", self, name):  # true for any object, so it shows nothing
                return False
        elif isinstance(self, tuple(value for value in link.names.values() if isinstance(value, Mirror))):
            return answer  # the tests know the class, so its arithmetic is what they test
        link.doubt = f"{name} is the program's own, and says what it was asked to"
        return answer

    return ask


IN_PLACE = [name for name in ARITHMETIC if name[2] == "i" and name.replace("__i", "__", 1) in ARITHMETIC]
REFUSED = ("__await__", "__aiter__", "__anext__", "__aenter__", "__aexit__")


def _plain(value: Any) -> Any:
    return StandIn.link.ask("plain", value) if isinstance(value, StandIn) else value


def loaded(name: str | None) -> Any:
    """The standard library's object of this name, if the tests have imported its module; else None."""
    module = str(name).partition(":")[0]
    return named(str(name)) if module.partition(".")[0] in STANDARD and module in sys.modules else None


def error_class(name: str, known: str | None, bases: list[Any]) -> Any:
    """The standard library's class if the tests have loaded it, else one that can be raised and caught like it."""
    original = loaded(known)
    if isinstance(original, type) and issubclass(original, BaseException):
        return original

    def text(self: Any) -> str:
        message = self.__dict__.get("_said")
        return BaseException.__str__(self) if message is None else str(message)

    def get(self: Any, name: str) -> Any:
        return StandIn.link.ask("get", self, name)

    return type(name, tuple(bases), {"__str__": text, "__getattr__": get, "__module__": "candidate"})


def raised(kind: Any, text: str, names: dict[str, Any], *args: Any) -> Any:
    """The exception that the program raised."""
    try:
        made = kind(*args) if kind.__module__ != "candidate" else kind.__new__(kind, *args)
    except TypeError:  # its constructor needs more than the arguments it keeps
        made = kind.__new__(kind, *args)
    if kind.__module__ == "candidate":
        names = names | {"_said": text}
    made.__dict__.update(names)
    return made
