"""A repository with a bug, and an issue that tells of it: an agent looks, edits, tests, and finishes.

    find NAME                     where a class or function is defined; else the lines that have the text
    view FILE START END           lines of a file
    replace FILE "OLD" "NEW"      a text that comes once; \\n is a line break, as in JSON
    insert FILE LINE "TEXT"       behind a line; 0: at the beginning
    create FILE "TEXT"            a new file
    test                          run the tests
    finish                        the bug is mended, the episode is over
    reject                        the episode is over without a solution

The tests that fail by the bug are held back, as in SWE-bench (Jimenez et al. 2024, arXiv 2310.06770): the agent neither
reads nor runs them. At the end all tests are run, in the files that they came in, whatever the agent made of those. To
pass them all gains 1.

The programs run in the sandbox (docs/sandbox.md), the tests and what they test in one process. So a patch that changes
the functions of `unittest`, for instance, passes tests that it should fail.
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from selfimprove.env import Seen
from selfimprove.env.suite import Sandboxed, shown, tested

MAJOR, MINOR = "Error: ", "Nothing done: "  # what is seen of an action that failed begins with one of them
HITS, LINES = 8, 80  # of a search, and lines of a view, at most
SPAN = re.compile(r"^(\S+\.py):(\d+)-(\d+)$", re.MULTILINE)
NAME = re.compile(r"\w[\w/-]*\.py")


@dataclass(frozen=True)
class Base:
    """A repository as it is without a bug."""

    files: Mapping[str, str]  # path -> text, tests too
    passes: Mapping[str, Sequence[str]]  # file of tests -> the names of those that pass


class Refused(Exception):
    """An action that cannot be done. Its text says why."""


class Repository:
    """One task: {"repository": its name, "path", "line", "good", "bad": the lines `good` from `line` on are `bad`,
    "tests": files of tests, "hidden": names of the tests that fail by it}."""

    def __init__(self, task: dict[str, Any], base: Base, **options: Unpack[Sandboxed]) -> None:
        self.task, self.base = task, base
        self.run = functools.partial(tested, tests=task["tests"], **options)
        files = dict(self.base.files)
        files[task["path"]] = broken(files[task["path"]], task)
        for path in task["tests"]:
            files[path] = without(files[path], [n.partition("::")[2] for n in task["hidden"] if n.startswith(path)])
        self.first = files
        self.reset()

    def reset(self) -> Seen:
        self.files = dict(self.first)
        return Seen("The files are " + ", ".join(sorted(self.files)) + ".")

    def step(self, action: str) -> Seen:
        verb, _, rest = action.partition(" ")
        if action == "finish":
            return Seen(f"Finished.\n{self.diff()}", float(self.solved()), True)
        if action == "reject":
            return Seen("Rejected.", 0.0, True)
        try:
            return Seen(self._do(verb, rest.strip()))
        except Refused as refused:
            return Seen(str(refused))

    def _do(self, verb: str, rest: str) -> str:
        if verb == "find" and rest:
            return found(self.files, rest)
        if verb == "view" and (m := re.fullmatch(r"(\S+) (\d+) (\d+)", rest)):
            return viewed(m[1], self._text(m[1]), int(m[2]), int(m[3]))
        if verb == "replace" and (m := re.fullmatch(r"(\S+) (.*)", rest)):
            old, new = quoted(m[2], 2)
            return self._replace(m[1], old, new)
        if verb == "insert" and (m := re.fullmatch(r"(\S+) (\d+) (.*)", rest)):
            (text,) = quoted(m[3], 1)
            return self._insert(m[1], int(m[2]), text)
        if verb == "create" and (m := re.fullmatch(r"(\S+) (.*)", rest)):
            (text,) = quoted(m[2], 1)
            return self._create(m[1], text)
        if (verb, rest) == ("test", ""):
            return shown(self.run(self.files))
        raise Refused(f"{MAJOR}there is no such action; there are find, view, replace, insert, create, test, finish")

    def _text(self, path: str) -> str:
        if path not in self.files:
            raise Refused(f"{MAJOR}there is no file {path}")
        return self.files[path]

    def _editable(self, path: str) -> str:
        if path in self.task["tests"]:
            raise Refused(f"{MAJOR}{path} has tests, which are not changed")
        return self._text(path)

    def _replace(self, path: str, old: str, new: str) -> str:
        text = self._editable(path)
        if old == new or not old:
            raise Refused(f"{MAJOR}that changes nothing")
        if (count := text.count(old)) != 1:
            raise Refused(f"{MINOR}the text comes {count} times" if count else f"{MAJOR}the text is not in {path}")
        start = text[: text.index(old)].count("\n") + 1
        self.files[path] = text.replace(old, new)
        return f"Changed.\n{path}:{start}-{start + new.rstrip(chr(10)).count(chr(10))}"

    def _insert(self, path: str, line: int, new: str) -> str:
        lines = self._editable(path).splitlines(keepends=True)
        if line > len(lines) or not new:
            raise Refused(f"{MAJOR}{path} has {len(lines)} lines" if new else f"{MAJOR}that changes nothing")
        own = new if new.endswith("\n") else f"{new}\n"
        self.files[path] = "".join([*lines[:line], own, *lines[line:]])
        return f"Changed.\n{path}:{line + 1}-{line + own.count(chr(10))}"

    def _create(self, path: str, text: str) -> str:
        if path in self.files:
            raise Refused(f"{MINOR}{path} is there already")
        if not NAME.fullmatch(path):
            raise Refused(f"{MAJOR}a file's name is like part/name.py")
        self.files[path] = text
        return f"Created.\n{path}:1-{max(1, len(text.splitlines()))}"

    def diff(self) -> str:
        """What was changed, as a unified diff."""
        lines = list[str]()
        for path in sorted(self.files):
            before, after = self.first.get(path, "").splitlines(), self.files[path].splitlines()
            lines += difflib.unified_diff(before, after, path, path, lineterm="", n=1)
        return "\n".join(lines) or "No changes."

    def solved(self) -> bool:
        """Whether all tests pass, those too that were held back."""
        own = {path: self.base.files[path] for path in self.task["tests"]}
        expected = {name for path in self.task["tests"] for name in self.base.passes[path]}
        ran = self.run({**self.files, **own})
        return ran.status == "ok" and expected <= {name for name, failure in ran.failures.items() if failure is None}


# Reading files and actions


def quoted(text: str, count: int) -> list[str]:
    """The texts in quotes that an action ends with, read as JSON. Raises Refused if there are not `count` of them."""
    decoder, values, place = json.JSONDecoder(strict=False), list[Any](), 0
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values.append(value)
            place += len(text[place:]) - len(text[place:].lstrip())
    except ValueError:
        values = []
    if len(values) != count or not all(isinstance(value, str) for value in values):
        raise Refused(f'{MAJOR}{count} texts in double quotes are needed, with \\n and \\" in them as in JSON')
    return values


def definition(lines: Sequence[str], name: str) -> tuple[int, int] | None:
    """The first and the last line of a class or function, from 1. It is read by indentation, so that half-edited files
    can be searched too."""
    opening = re.compile(rf"(\s*)(?:async )?(?:def|class) {re.escape(name)}\b")
    for start, line in enumerate(lines):
        if m := opening.match(line):
            end = start
            for i in range(start + 1, len(lines)):
                if lines[i].strip():
                    if len(lines[i]) - len(lines[i].lstrip()) <= len(m[1]) and not lines[i].lstrip().startswith(")"):
                        break
                    end = i
            return start + 1, end + 1
    return None


def found(files: Mapping[str, str], name: str) -> str:
    """Where a name is defined, else where a text stands. Raises Refused if there is nothing."""
    hits = list[str]()
    for path in sorted(files):
        lines = files[path].splitlines()
        if span := definition(lines, name):
            hits.append(f"{path}:{span[0]}-{span[1]}\n{lines[span[0] - 1].strip()}")
    if not hits:
        for path in sorted(files):
            lines = files[path].splitlines()
            hits += [f"{path}:{i}-{i}\n{line.strip()}" for i, line in enumerate(lines, 1) if name in line]
    if not hits:
        raise Refused(f"{MINOR}nothing is called {name}, and no line has it")
    more = f"\n{len(hits) - HITS} more" if len(hits) > HITS else ""
    return "\n".join(hits[:HITS]) + more


def viewed(path: str, text: str, start: int, end: int) -> str:
    lines = text.splitlines()
    last = min(end, len(lines))
    if not 1 <= start <= last:
        raise Refused(f"{MAJOR}{path} has lines 1 to {len(lines)}")
    if last - start >= LINES:
        raise Refused(f"{MINOR}at most {LINES} lines are shown")
    return "\n".join([f"{path}:{start}-{last}", *(f"{i} {lines[i - 1]}" for i in range(start, last + 1))])


def spans(seen: str) -> set[tuple[str, int]]:
    """The lines of files that an observation is about: (path, line)."""
    return {(m[1], line) for m in SPAN.finditer(seen) for line in range(int(m[2]), int(m[3]) + 1)}


# Making tasks


def broken(text: str, task: Mapping[str, Any]) -> str:
    """A file with the bug. Raises ValueError if the good lines are not there."""
    lines = text.splitlines()
    start = task["line"] - 1
    if lines[start : start + len(task["good"])] != task["good"]:
        raise ValueError(f"{task['path']} has other lines at {task['line']} than the task says")
    return "\n".join([*lines[:start], *task["bad"], *lines[start + len(task["good"]) :]]) + "\n"


def without(text: str, names: Sequence[str]) -> str:
    """A file of tests without some of them, such as `test_a` or `TestB.test_c`."""
    gone = set[int]()

    def cut(node: Any) -> None:
        gone.update(range(min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno + 1))

    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            cut(node)
        elif isinstance(node, ast.ClassDef):
            own = [n for n in node.body if isinstance(n, ast.FunctionDef) and f"{node.name}.{n.name}" in names]
            for each in [node] if len(own) == len(node.body) else own:
                cut(each)
    return "\n".join(line for i, line in enumerate(text.splitlines(), 1) if i not in gone) + "\n"
