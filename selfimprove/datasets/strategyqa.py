"""StrategyQA, Geva et al. 2021 (arXiv 2101.02235): yes/no questions whose steps the reader must find first.

The authors' test answers are not public. The hub's set splits their 2,290 train questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, split_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem

HUB = "ChilleD/StrategyQA"
SPLITS: dict[Side, str] = {"train": "train", "test": "test"}


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The hub's train and test rows, with "Yes" or "No" as gold and as options. Ids are "strategyqa-train-17"."""
    return finish(_rows(path), name="strategyqa", seed=seed, **common)


def _rows(path: str | None) -> Iterator[Row]:
    for side, where, fields in split_rows("strategyqa", path, HUB, None, SPLITS):
        question, answer = field_of(fields, "question", "strategyqa's own", where), fields.get("answer")
        if not isinstance(answer, bool):
            raise ConfigError(f"{where}: field 'answer' is {answer!r:.40}; it must be true or false", "dataset.path")
        metadata: dict[str, Any] = {
            key: fields[key] for key in ("qid", "term", "description", "facts") if key in fields
        }
        metadata["options"] = ["Yes", "No"]
        name = f"strategyqa-{side or 'row'}-{where.rpartition(':')[2]}"
        yield Row(name, question, "Yes" if answer else "No", where, side, metadata)
