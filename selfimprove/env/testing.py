"""Runs a repository's tests. It is sent into the sandbox as text, so it imports nothing but the standard library.

job.json has the `files` by path and the paths of the `tests`. The first line of standard input is a word that nobody
else knows. The last line of standard output is that word, and JSON: each test's name -> null, or how it failed.

Tests are `unittest` cases and functions `test_...`. The sandbox has no pytest. A stand-in has what the tests of the two
libraries of dataset=repositories use. A function that needs a fixture is left out.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import os
import random
import re
import sys
import traceback
import types
import unittest
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHARS = 400  # of what is said of a failure


def main() -> None:
    word = sys.stdin.readline().strip()
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    for name, text in job["files"].items():
        path = Path("repository", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    os.chdir("repository")
    sys.path[0] = os.getcwd()
    sys.modules["pytest"] = stand_in()
    report, silent = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # what the tests print is nobody's report
    os.dup2(silent, 2)
    found = {name: failure for path in job["tests"] for name, failure in outcomes(path)}
    os.write(report, f"\n{word}{json.dumps(found)}\n".encode())
    os._exit(0)  # whatever threads are left


def outcomes(path: str) -> Iterator[tuple[str, str | None]]:
    """The name of each test of a file, and how it failed; None: it did not."""
    try:
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    except BaseException as error:
        yield path, said(error)
        return
    for name, call in tests_of(module):
        random.seed(0)
        try:
            call()
        except unittest.SkipTest:
            failure = None
        except BaseException as error:
            failure = said(error)
        else:
            failure = None
        yield f"{path}::{name}", failure


def tests_of(module: types.ModuleType) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name, thing in list(vars(module).items()):
        if getattr(thing, "__module__", "") != module.__name__:
            continue
        if isinstance(thing, type) and issubclass(thing, unittest.TestCase):
            for method in unittest.TestLoader().getTestCaseNames(thing):
                yield f"{name}.{method}", thing(method).debug
        elif name.startswith("test") and inspect.isfunction(thing):
            cases = getattr(thing, "cases", [{}])
            needed = set(inspect.signature(thing).parameters)
            if all(needed == set(case) for case in cases):
                yield name, functools.partial(each, thing, cases)


def each(test: Callable[..., Any], cases: list[dict[str, Any]]) -> None:
    for case in cases:
        test(**case)


def said(error: BaseException) -> str:
    """The error, with the last line of a test and the last line of the repository that it came through."""
    here = os.getcwd() + os.sep
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(here)]
    shown = [f for f in frames if "test" in os.path.basename(f.filename)][-1:] + frames[-1:]
    lines = dict.fromkeys(f"{f.filename.removeprefix(here)}:{f.lineno}: {f.line}" for f in shown)
    text = re.sub(r"0x[0-9a-f]{6,}", "0x...", f"{type(error).__name__}: {error}".replace(here, ""))
    return "\n".join([*lines, text[:CHARS]])


def stand_in() -> types.ModuleType:
    """What the tests use of pytest."""
    pytest: Any = types.ModuleType("pytest")

    @contextlib.contextmanager
    def raises(expected: Any, match: str = "") -> Iterator[Any]:
        seen = types.SimpleNamespace(value=None)
        try:
            yield seen
        except expected as error:
            seen.value = error
            if not re.search(match, str(error)):
                raise AssertionError(f"{match!r} is not in {error}") from error
        else:
            raise AssertionError(f"{expected} was not raised")

    def parametrize(names: Any, values: Any) -> Callable[[Any], Any]:
        keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        rows = [dict(zip(keys, value if len(keys) > 1 else [value], strict=True)) for value in values]

        def mark(test: Any) -> Any:
            test.cases = [case | row for case in getattr(test, "cases", [{}]) for row in rows]
            return test

        return mark

    def skipif(condition: Any, reason: str = "") -> Callable[[Any], Any]:
        return unittest.skipIf(condition, reason)

    def fixture(*arguments: Any, **options: Any) -> Any:
        return arguments[0] if arguments else lambda made: made

    pytest.raises, pytest.fixture = raises, fixture
    pytest.mark = types.SimpleNamespace(parametrize=parametrize, skipif=skipif)
    return pytest  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
