"""What stands in the tests' process for the objects that stay with the program, in a code check.

A stand-in has the special methods that the program's object has, and asks for each answer. No code of the program runs
here, and its answer to a question is believed as a function's result would be, with one exception. Where a class of the
program's own says what one of its objects is equal to, less than, or in sum with something else, it has been told what
the tests expect: an assertion that holds by such an answer shows nothing, and the link is in `doubt`.
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
    extended: list[Any] = [each for each in bases if isinstance(each, Mirror)]
    metas = list(dict.fromkeys(map(type, extended))) or [Mirror]
    kind = type("Mirror", tuple(metas), {each: _special(each, True) for each in SPECIAL if each in meta})
    if not any(issubclass(each, StandIn) for each in extended):
        extended.append(StandIn)
    if shadowed and not any(issubclass(each, shadowed) for each in extended):
        extended.append(shadowed)
    return kind.__new__(kind, name, tuple(extended), names)


def _unless(hidden: set[str], shadowed: Any) -> Callable[[Any, str], Any]:
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


def raised(kind: Any, text: str, names: dict[str, Any], *args: Any) -> Any:
    """An exception as the program raised it."""
    try:
        made = kind(*args) if kind.__module__ != "candidate" else kind.__new__(kind, *args)
    except TypeError:  # it wants more than it keeps
        made = kind.__new__(kind, *args)
    if kind.__module__ == "candidate":
        names = names | {"_said": text}
    made.__dict__.update(names)
    return made
