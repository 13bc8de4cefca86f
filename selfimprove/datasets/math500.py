"""MATH-500, Lightman et al. 2023 (arXiv 2305.20050): 500 of MATH's test problems, a common benchmark.

The authors trained on the other 12,000 problems of MATH. Its 7,500 train problems can be added to the 500.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack, get_args

from selfimprove.datasets import Common, Row, field_of, finish, split_rows
from selfimprove.datasets.hendrycks_math import Subject, rows, subject_of
from selfimprove.types import Problem

HUB = "HuggingFaceH4/MATH-500"
_KEY = "math500's own"


def load(*, path: str | None = None, train_math: bool = False, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The 500 held-out problems, with ids "math500-17". `train_math` adds the train problems of `dataset=math`."""
    return finish(_rows(path, train_math), name="math500", seed=seed, **common)


def _rows(path: str | None, train_math: bool) -> Iterator[Row]:
    for _, where, fields in split_rows("math500", path, HUB, None, {"test": "test"}):
        metadata: dict[str, Any] = {key: fields[key] for key in ("solution", "level", "unique_id") if key in fields}
        metadata["subject"] = subject_of(fields, "subject", where)
        question, gold = (field_of(fields, field, _KEY, where) for field in ("problem", "answer"))
        yield Row(f"math500-{where.rpartition(':')[2]}", question, gold, where, "test", metadata)
    if train_math:
        yield from (row for row in rows(None, get_args(Subject), None) if row.side == "train")
