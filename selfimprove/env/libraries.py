"""Real libraries with bugs: boltons 26.2.0 and more-itertools 11.2.1, each bug a mutation that their own tests find.

    pip install "selfimprove[bugs]"
    python scripts/make_bugs.py libraries

The script fetches the libraries' sources, mutates them with cosmic-ray, runs the libraries' tests in the sandbox, and
keeps what it made in the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from selfimprove.datasets import Row, Side
from selfimprove.env import suite
from selfimprove.env.bugs import rows
from selfimprove.env.repository import Base, Repository
from selfimprove.env.suite import Sandboxed
from selfimprove.errors import ConfigError
from selfimprove.policy.models import cache_root


def require(**options: Any) -> None:
    """Raises ConfigError if the bugs were not made on this machine, or the sandbox cannot run here."""
    if not path().is_file():
        raise ConfigError(
            "dataset=repositories: its bugs are made once on each machine: python scripts/make_bugs.py libraries",
            "dataset",
        )
    suite.require(**options)


def path() -> Path:
    return cache_root() / "datasets" / "repositories" / "bugs.json"


def repository(task: dict[str, Any], **options: Unpack[Sandboxed]) -> Repository:
    """The environment of one task."""
    return Repository(task, base(task["repository"]), **options)


def tasks(side: Side, count: int, seed: int, **options: Any) -> Iterator[Row]:
    """Up to `count` bugs of a side. The seed changes nothing: there are no more."""
    found = made()
    yield from rows(found["bugs"], {name: base(name) for name in found["files"]}, side, count)


@cache
def base(name: str) -> Base:
    """A library without a bug."""
    found = made()
    return Base(found["files"][name], found["passes"][name])


@cache
def made() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path().read_text(encoding="utf-8"))
    return found
