"""SVAMP, Patel et al. 2021 (arXiv 2103.07191): 1,000 one-step word problems, varied so that shortcuts fail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, split_rows
from selfimprove.types import Problem

HUB = "ChilleD/SVAMP"
SPLITS: dict[Side, str] = {"train": "train", "test": "test"}


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The hub's train and test rows, by `split_rows`. Ids are "svamp-train-17", with rows counted from 1."""
    return finish(_rows(path), name="svamp", seed=seed, **common)


def _rows(path: str | None) -> Iterator[Row]:
    for side, where, fields in split_rows("svamp", path, HUB, None, SPLITS):
        body, question, answer = (
            field_of(fields, field, "svamp's own", where) for field in ("Body", "Question", "Answer")
        )
        metadata = {key.lower(): fields[key] for key in ("ID", "Equation", "Type") if key in fields}
        name = f"svamp-{side or 'row'}-{where.rpartition(':')[2]}"
        yield Row(name, f"{body} {question}", answer.removesuffix(".0"), where, side, metadata)
