"""The tests' process of a code check. It runs tests that `selfimprove.verify.instrument` has prepared.

The program runs in another process (`selfimprove.verify.candidate`). Values of the standard library's types are rebuilt
here. Every other object stays there, and a stand-in asks it for answers (`selfimprove.verify.stand_in`). So no code of
the program takes part in a comparison.
"""

from __future__ import annotations

import json
import os
import sys

if __name__.startswith("selfimprove"):  # in the sandbox the files are one
    from selfimprove.verify.link import Gone, Link
    from selfimprove.verify.stand_in import Lost
    from selfimprove.verify.wire import Unsendable, named

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STEPS = 10_000  # most statements that may fail, because tests may loop until a value comes
# If the tests raise these, and not the program, then the tests or the harness lack something.
FAULTS = (ImportError, OSError, SyntaxError, MemoryError, RecursionError, SystemExit, KeyboardInterrupt, Unsendable)


class Tally:
    """Counts how assertions end. The tests' statements run within its blocks, which `instrument` has added."""

    def __init__(self, link: Link, task: dict[str, Any]) -> None:
        self.link, self.task = link, task
        self.reached: set[int] = set()
        self.passed = self.failed = self.doubted = 0
        self.steps = 0  # failed statements that are not assertions
        self.reason = ""  # the first failure

    def assertion(self, number: int) -> Assertion:
        return Assertion(self, number)

    def fail(self, error: BaseException) -> None:
        self.reason = self.reason or f"{type(error).__name__}: {error}".rstrip(": ")[:300]

    def blames(self, error: BaseException) -> bool:
        """Whether a failure is the program's fault, not the tests' or the harness's."""
        if self.link.refused:
            return False
        if isinstance(error, Gone) or any(error is each for each in self.link.raised):
            return True
        if isinstance(error, NameError):
            name = str(error).partition("'")[2].partition("'")[0]
            return name in self.task["due"] or (bool(self.reason) and name in self.task["bound"])
        if isinstance(error, TypeError) and self.link.live:  # perhaps a function that does not take stand-ins
            return False
        return not isinstance(error, FAULTS)

    def goes_on(self, error: BaseException) -> bool:
        """Whether the tests go on after a failure."""
        return self.link.partial and not self.link.within and self.blames(error)


class Assertion:
    def __init__(self, tally: Tally, number: int) -> None:
        self.tally, self.number = tally, number

    def __enter__(self) -> None:
        self.tally.reached.add(self.number)
        self.tally.link.within += 1

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        tally = self.tally
        tally.link.within -= 1
        if error is None:
            tally.doubted += bool(tally.link.doubt)
            tally.passed += not tally.link.doubt
        elif tally.blames(error):
            tally.failed += 1
            tally.fail(error)
        tally.link.doubt = ""
        return error is not None and tally.goes_on(error)


class Step:
    """A statement. If it fails, the tests go on without the names that it binds."""

    def __init__(self, tally: Tally) -> None:
        self.tally, self.lost = tally, False

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        tally = self.tally
        self.lost = error is not None and tally.steps < STEPS and tally.goes_on(error)
        if error is not None and self.lost:
            tally.steps += 1
            tally.fail(error)
        return self.lost


class Attempt:
    """The body of a `try` or a `with`, which may catch exceptions."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally

    def __enter__(self) -> None:
        self.tally.link.within += 1

    def __exit__(self, *error: object) -> None:
        self.tally.link.within -= 1


class Effect:
    """A statement that is a call. Changes that the program makes in place there are repeated on the tests' objects."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def __enter__(self) -> None:
        self.link.follow += 1

    def __exit__(self, *error: object) -> None:
        self.link.follow -= 1


def used(*values: Any) -> None:
    """Raises the call's error when one of the values is the result of a failed call."""
    for value in values:
        if issubclass(type(value), Lost):
            bool(value)


def judge(task: dict[str, Any], link: Link, tally: Tally, outcome: dict[str, Any]) -> None:
    """Run the tests. Raises what they raise."""
    names: dict[str, Any] = {"__name__": "tests"}
    tests = [compile(test, "<tests>", "exec", 0, True) for test in task["tests"]]
    exec(compile(task["prelude"], "<tests>", "exec", 0, True), names)
    prints = any("stdout" in test for test in task["tests"])
    hello = link.exchange({"programs": task["programs"], "needs": task["needs"], "prints": prints})
    if "unparseable" in hello:
        outcome |= {"status": "unparseable", "reason": str(hello["unparseable"])}
        return
    outcome["chosen"] = hello["chosen"]
    for name in task["wanted"]:
        names.pop(name, None)  # the prompt's stub of it
    link.names = names
    number, found = link.ask("load", task["wanted"])
    if number in range(len(task["programs"])):
        outcome["chosen"] = number
    link.asked = 0
    names |= {name: named(place) for name, place in task["spare"].items()} | found
    names |= {name: named(place) for name, place in task["lent"].items()}
    names |= {"_assertion_": tally.assertion, "_step_": Step(tally), "_attempt_": Attempt(tally)}
    names |= {"_effect_": Effect(link), "_used_": used}
    for test in tests:
        exec(test, names)
    if task["candidate"]:
        if "check" not in names:
            raise SyntaxError("the tests define no check(candidate)")
        if task["candidate"] not in names:
            raise NameError(f"name '{task['candidate']}' is not defined")
        names["check"](names[task["candidate"]])


def conclude(link: Link, tally: Tally, task: dict[str, Any]) -> tuple[str, str]:
    """Status and reason of tests that ran to their end or failed on the way."""
    if link.gone and not tally.reason:
        return "wrong", link.gone
    if tally.reason:
        return "wrong", tally.reason
    if link.refused:
        return "error", link.refused
    if tally.doubted or link.doubt:
        return "error", "the tests hold only by what the program's own class says of its objects"
    if not link.asked:
        return "error", "the tests ask nothing of the program"
    if task["assertions"] and not tally.passed and not task["tries"]:
        return "error", "no assertion was reached"
    return "correct", ""


def drive(replies: int, requests: int) -> None:
    """Read a task from standard input, run its tests, and write the verdict to standard output, both as JSON.

    The task has:

    - `programs` and `needs`: see `candidate.viable`;
    - `prelude`: code that the tests may use;
    - `tests`: code that asserts;
    - `candidate`: the function for the tests' own `check`, or None if the tests call it by name;
    - `wanted`: names that the program may bind; `due`: names that it must bind;
    - `lent` and `spare`: names that the tests forgot to import, the second only if the program does not bind them;
    - `bound`: names that the tests bind;
    - `assertions`: the number of assertions; `tries`: whether some are in a `try`;
    - `partial`: whether to go on after a failure;
    - `follow`: whether every change of the program's in place is repeated on the tests' objects.
    """
    task = json.load(sys.stdin)
    verdict = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that nothing the tests print is taken for the verdict
    pipes = os.fdopen(replies, "rb"), os.fdopen(requests, "wb")
    link = Link(*pipes, "\n".join(task["tests"]), task["partial"], task["follow"])
    tally = Tally(link, task)
    outcome: dict[str, Any] = {"status": "", "chosen": None, "reason": ""}
    try:
        judge(task, link, tally, outcome)
    except BaseException as error:
        if outcome["chosen"] is not None and tally.blames(error):
            tally.fail(error)
        elif not tally.reason:  # the first failure decides
            text = link.refused or f"{type(error).__name__}: {error}".rstrip(": ")
            outcome |= {"status": "error", "reason": f"the tests cannot be run: {text}"[:300]}
    if link.lost:
        tally.fail(link.lost)
    if not outcome["status"]:
        outcome["status"], outcome["reason"] = conclude(link, tally, task)
    failed = int(outcome["status"] == "wrong" and not tally.failed)  # it failed outside an assertion
    failed += tally.failed + tally.doubted + task["assertions"] - len(tally.reached)
    json.dump(outcome | {"passed": tally.passed, "failed": failed, "moved": link.moved}, verdict)
    verdict.close()
