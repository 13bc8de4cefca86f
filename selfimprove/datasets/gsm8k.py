"""GSM8K, Cobbe et al. 2021 (arXiv 2110.14168): 7,473 train and 1,319 test grade-school problems with solutions.

The gold answer is the number after "####". The written solution is in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, split_rows
from selfimprove.datasets.jsonl import gold_of
from selfimprove.types import Problem

HUB = "openai/gsm8k"
SPLITS: dict[Side, str] = {"train": "train", "test": "test"}
_GOLD = re.compile(r"####(.+)")


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The data set's train and test rows, by `split_rows`. Ids are "gsm8k-train-17", with rows counted from 1."""
    return finish(_rows(path), name="gsm8k", seed=seed, **common)


def _rows(path: str | None) -> Iterator[Row]:
    for side, where, fields in split_rows("gsm8k", path, HUB, "main", SPLITS):
        question = field_of(fields, "question", "gsm8k's own", where)
        solution = field_of(fields, "answer", "gsm8k's own", where)
        gold = gold_of(solution, _GOLD, where).replace(",", "")
        name = f"gsm8k-{side or 'row'}-{where.rpartition(':')[2]}"
        yield Row(name, question, gold, where, side, {"solution": solution})
