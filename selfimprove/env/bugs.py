"""Bugs as rows of a data set: the issue, how an expert would mend it, and a few wrong actions.

A bug is JSON: {"id", "repository", "path", "line", "good", "bad", "tests", "hidden", "issue"}. The first seven are the
task of `selfimprove.env.repository`, and `issue` is how the first hidden test fails. scripts/make_bugs.py makes them.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from selfimprove.datasets import Row, Side
from selfimprove.env.repository import Base, broken

TASK = ("repository", "path", "line", "good", "bad", "tests", "hidden")
_SIDES: dict[int, Side] = {0: "dev", 1: "train"}  # a fifth each; the rest is held out

Bug = dict[str, Any]
Definition = tuple[str, int, int]  # name, first and last line


def rows(bugs: Iterable[Bug], bases: Mapping[str, Base], side: Side, count: int) -> Iterator[Row]:
    """Up to `count` bugs of a side, in the order of the hashes of their names."""
    marks = {bug["id"]: hashlib.blake2b(bug["id"].encode(), digest_size=6).hexdigest() for bug in bugs}
    own = [bug for bug in bugs if _SIDES.get(int(marks[bug["id"]], 16) % 5, "test") == side]
    for bug in sorted(own, key=lambda bug: marks[bug["id"]])[:count]:
        yield row(bug, bases[bug["repository"]], marks[bug["id"]], side)


def row(bug: Bug, base: Base, mark: str, side: Side) -> Row:
    task = {key: bug[key] for key in TASK}
    files = sorted(path for path in base.files if path not in bug["tests"])
    question = f"The repository has {', '.join([*files, *bug['tests']])}. A test fails, which is not shown here:\n"
    metadata = {"task": task, "wrong": wrong(bug, base), "operator": bug["operator"]}
    gold = "\n".join(f"Action: {action}" for action in expert(bug, base))
    return Row(bug["id"], question + bug["issue"].strip(), gold, mark, side, metadata)


def expert(bug: Bug, base: Base) -> list[str]:
    """The actions of one who knows the bug: find it, look at it, mend it, finish."""
    text = broken(base.files[bug["path"]], bug)
    name, start, end = around(base.files[bug["path"]], bug["line"])
    first, last, lines = bug["line"], bug["line"] + len(bug["bad"]) - 1, text.splitlines()
    while text.count(old := _block(lines, first, last)) > 1 or not old:  # until the text comes once
        first, last = max(1, first - 1), min(len(lines), last + 1)
    new = _block(lines, first, bug["line"] - 1) + _block(bug["good"], 1, len(bug["good"]))
    new += _block(lines, bug["line"] + len(bug["bad"]), last)
    grown = end + len(bug["bad"]) - len(bug["good"])
    return [
        f"find {name}",
        f"view {bug['path']} {start} {min(grown, start + 59)}",
        f"replace {bug['path']} {json.dumps(old)} {json.dumps(new)}",
        "finish",
    ]


def wrong(bug: Bug, base: Base) -> list[str]:
    """A search and a view of another place, a wrong edit there, and what takes it back. Empty where there is none."""
    path, text = bug["path"], broken(base.files[bug["path"]], bug)
    mended = expert(bug, base)[2]
    for name, start, end in definitions(base.files[path]):
        if text.count(f"def {name}(") == 1 and f"def {name}(" not in mended and not start <= bug["line"] <= end:
            good, bad = json.dumps(f"def {name}("), json.dumps(f"def {name}_(")
            view = f"view {path} {start} {min(end, start + 59)}"
            return [f"find {name}", view, f"replace {path} {good} {bad}", f"replace {path} {bad} {good}"]
    return []


def _block(lines: list[str], first: int, last: int) -> str:
    return "".join(f"{line}\n" for line in lines[first - 1 : last])


def definitions(text: str) -> list[Definition]:
    """All functions and classes of a file."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    return [(node.name, node.lineno, node.end_lineno or node.lineno) for node in found]


def around(text: str, line: int) -> Definition:
    """The innermost definition with this line. Raises ValueError if there is none."""
    return min((d for d in definitions(text) if d[1] <= line <= d[2]), key=lambda d: d[2] - d[1])
