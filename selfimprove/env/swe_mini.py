"""Small repositories of our own, with bugs made by program. They need no download.

A repository is a text file of mini/, with its files behind lines `==> path`. mini/bugs.json has the bugs, one change of
a line each; scripts/make_bugs.py made it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from selfimprove.datasets import Row, Side
from selfimprove.env.bugs import rows
from selfimprove.env.repository import Base, Repository
from selfimprove.env.suite import Sandboxed
from selfimprove.env.suite import require as require

FOLDER = Path(__file__).parent / "mini"
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.txt")))
BUGS = FOLDER / "bugs.json"


def repository(task: dict[str, Any], **options: Unpack[Sandboxed]) -> Repository:
    """The environment of one task."""
    return Repository(task, base(task["repository"]), **options)


def tasks(side: Side, count: int, seed: int, **options: Any) -> Iterator[Row]:
    """Up to `count` bugs of a side. The seed changes nothing: there are no more."""
    yield from rows(made()["bugs"], {name: base(name) for name in NAMES}, side, count)


@cache
def base(name: str) -> Base:
    """A repository of mini/ without a bug."""
    return Base(files(name), made()["passes"][name])


def files(name: str) -> dict[str, str]:
    _, *parts = re.split(r"^==> (.+)\n", (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@cache
def made() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BUGS.read_text(encoding="utf-8"))
    return found
