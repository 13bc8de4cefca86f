"""GSM8K, Cobbe et al. 2021 (arXiv 2110.14168): 7,473 train and 1,319 test grade-school problems with solutions.

The gold answer is the number after "####"; the written solution is in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfimprove.datasets import Row, Shot, Side, cached, field_of, finish, from_hub, read_rows
from selfimprove.datasets.jsonl import gold_of
from selfimprove.errors import ConfigError
from selfimprove.types import Problem, Share

HUB = "openai/gsm8k"
_GOLD = re.compile(r"####(.+)")
SIDES: tuple[Side, ...] = ("train", "test")


def load(
    *,
    path: str | None = None,
    heldout_share: Share = 0.2,
    prompt: str,
    system: str | None = None,
    shots: list[Shot] | None = None,
    train_size: int | None = None,
    heldout_size: int | None = None,
    seed: int,
) -> list[Problem]:
    """The data set's own train and test rows; ids are "gsm8k-train-17", rows counted from 1.

    `path` is a folder with one train* and one test* file (.jsonl, .jsonl.gz or .parquet, also in subfolders), or one
    such file, of which `heldout_share` is held out. None is the local cache, then the hub. Raises ConfigError for files
    that are missing or of another format.
    """
    return finish(
        _rows(path),
        name="gsm8k",
        prompt=prompt,
        system=system,
        shots=shots or [],
        train_size=train_size,
        heldout_size=heldout_size,
        heldout_share=heldout_share,
        seed=seed,
    )


def _rows(path: str | None) -> Iterator[Row]:
    local = Path(path).expanduser() if path else cached("gsm8k")
    if local is None:
        for side in SIDES:
            for where, fields in from_hub(HUB, "main", side):
                yield _row(fields, where, side, side)
    elif local.is_dir():
        for side in SIDES:
            for where, fields in read_rows(_file(local, side)):
                yield _row(fields, where, side, side)
    else:
        part = "test" if "test" in local.name else "train"
        for where, fields in read_rows(local):
            yield _row(fields, where, part, None)


def _file(folder: Path, side: str) -> Path:
    found = [p for p in sorted(folder.rglob(f"{side}*")) if p.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))]
    if len(found) != 1:
        raise ConfigError(
            f"dataset.path={folder}: needs one file named {side}*.jsonl or .parquet, found {len(found)}", "dataset.path"
        )
    return found[0]


def _row(fields: dict[str, Any], where: str, part: str, side: Side | None) -> Row:
    question = field_of(fields, "question", "gsm8k's own", where)
    solution = field_of(fields, "answer", "gsm8k's own", where)
    gold = gold_of(solution, _GOLD, where).replace(",", "")
    return Row(f"gsm8k-{part}-{where.rpartition(':')[2]}", question, gold, where, side, {"solution": solution})
