"""AIME, the American Invitational Mathematics Examination: 30 problems a year, with whole-number answers 0 to 999."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, Unpack

from selfimprove.datasets import Common, Row, Side, cached, field_of, finish, from_hub, split_rows
from selfimprove.types import Problem

Set = Literal["aime22-24", "aime24", "aime25"]

HUB: dict[str, list[tuple[str, str | None, str]]] = {  # repository, configuration, split
    "aime22-24": [("AI-MO/aimo-validation-aime", None, "train")],
    "aime24": [("Maxwell-Jia/AIME_2024", None, "train")],
    "aime25": [("opencompass/AIME2025", "AIME2025-I", "test"), ("opencompass/AIME2025", "AIME2025-II", "test")],
}


def load(
    *,
    path: str | None = None,
    train_sets: Sequence[Set],
    heldout_sets: Sequence[Set],
    seed: int,
    **common: Unpack[Common],
) -> list[Problem]:
    """Problems of the hub's sets, with ids "aime25-17", or of `path`, a file or folder in the format of one of them."""
    records = _local(path) if path or cached("aime") else chain(_hub("train", train_sets), _hub("test", heldout_sets))
    return finish((_row(*record) for record in records), name="aime", seed=seed, **common)


def _hub(side: Side, sets: Sequence[Set]) -> Iterator[tuple[str, Side | None, str, dict[str, Any]]]:
    for name in sets:
        rows = chain.from_iterable(from_hub(*place) for place in HUB[name])
        for number, (where, fields) in enumerate(rows, start=1):
            yield f"{name}-{number}", side, where, fields


def _local(path: str | None) -> Iterator[tuple[str, Side | None, str, dict[str, Any]]]:
    for side, where, fields in split_rows("aime", path, "", None, {"train": "train", "test": "test"}):
        yield f"aime-{side or 'row'}-{where.rpartition(':')[2]}", side, where, fields


def _row(name: str, side: Side | None, where: str, fields: dict[str, Any]) -> Row:
    fields = {key.lower(): value for key, value in fields.items()}  # one set has Problem and Answer
    question, gold = (
        field_of(fields, field, "aime's own", where)
        for field in ("question" if "question" in fields else "problem", "answer")
    )
    metadata: dict[str, Any] = {key: fields[key] for key in ("solution", "id", "url") if key in fields}
    return Row(name, question, gold, where, side, metadata)
