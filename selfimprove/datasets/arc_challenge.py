"""ARC-Challenge, Clark et al. 2018 (arXiv 1803.05457): school science questions that retrieval gets wrong.

`choice_rows` reads the format that this and other choice data sets share on the hub.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any, Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, split_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem

HUB = "allenai/ai2_arc"
SPLITS: dict[Side, str] = {"train": "train", "dev": "validation", "test": "test"}


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The data set's train, validation (dev) and test rows. Ids are "arc_challenge-train-17"."""
    rows = choice_rows("arc_challenge", path, HUB, "ARC-Challenge", SPLITS)
    return finish(rows, name="arc_challenge", seed=seed, **common)


def choice_rows(
    name: str, path: str | None, hub: str, config: str | None, splits: dict[Side, str], stem: str = "question"
) -> Iterator[Row]:
    """Rows by `split_rows` with a field `stem`, `choices` {"text": [...], "label": [...]} and `answerKey`, a label.

    The gold answer is a letter, A for the first option, whatever the labels are. The other fields become metadata.
    Raises ConfigError, with the row, when a row has another format.
    """
    for side, where, fields in split_rows(name, path, hub, config, splits):
        question, key = (field_of(fields, field, f"{name}'s own", where) for field in (stem, "answerKey"))
        options, labels = _choices(fields.get("choices"))
        if key not in labels or not 2 <= len(labels) == len(options) <= 26:
            raise ConfigError(
                f"{where}: `choices` must be {{text: [...], label: [...]}}, 2 to 26 of each, answerKey {key!r} one of "
                "the labels",
                "dataset.path",
            )
        metadata = {field: value for field, value in fields.items() if field not in (stem, "choices", "answerKey")}
        metadata["options"] = options
        gold = string.ascii_uppercase[labels.index(key)]
        yield Row(f"{name}-{side or 'row'}-{where.rpartition(':')[2]}", question, gold, where, side, metadata)


def _choices(choices: Any) -> tuple[list[str], list[str]]:
    lists = choices if isinstance(choices, dict) else {}
    texts, labels = lists.get("text") or [], lists.get("label") or []
    return [str(text).strip() for text in texts], [str(label) for label in labels]
