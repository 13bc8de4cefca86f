"""Instructions without a gold answer, in the format of AlpacaEval (Li et al. 2023, tatsu-lab/alpaca_eval).

A row has `instruction`. It may also have `output`, an answer to it, and `generator`, the model that wrote the answer.
They become `reference` and `generator` in the metadata, where a judge can compare with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from selfimprove.datasets import Common, Row, Side, cached, field_of, finish, not_provided, read_rows
from selfimprove.errors import ConfigError
from selfimprove.policy.models import quiet_hub
from selfimprove.types import Problem

HUB, FILE = "tatsu-lab/alpaca_eval", "alpaca_eval.json"


def load(
    *, path: str | None = None, train_path: str | None = None, seed: int, **common: Unpack[Common]
) -> list[Problem]:
    """Problems with the ids "alpacaeval-17", rows counted from 1, and those of `train_path`, "instruction-17".

    Files are .json (one list), .jsonl, .jsonl.gz or .parquet. Raises ConfigError if a file cannot be read.
    """
    rows = [*_rows(_file(path), "alpacaeval", "test" if train_path else None)]
    if train_path:
        rows += _rows(Path(train_path).expanduser(), "instruction", "train")
    return finish(rows, name="alpacaeval", seed=seed, **common)


def _file(path: str | None) -> Path:
    if path:
        return Path(path).expanduser()
    if folder := cached("alpacaeval"):
        return folder / FILE
    from huggingface_hub import hf_hub_download

    quiet_hub()
    try:  # `datasets` no longer runs loading scripts such as this repository's
        return Path(hf_hub_download(HUB, FILE, repo_type="dataset"))
    except Exception as error:  # several libraries raise here, each its own types; the cause is chained
        raise not_provided(f"{FILE} of {HUB}", error) from error


def _rows(file: Path, name: str, side: Side | None) -> Iterator[Row]:
    for number, (where, fields) in enumerate(_read(file), start=1):
        question = field_of(fields, "instruction", "alpacaeval's own", where)
        metadata = {"reference": fields.get("output"), "generator": fields.get("generator")}
        yield Row(f"{name}-{number}", question, None, where, side, metadata)


def _read(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.suffix != ".json":
        yield from read_rows(file)
        return
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"dataset: {file} cannot be read ({error})", "dataset.path") from error
    if not isinstance(rows, list) or not all(isinstance(fields, dict) for fields in rows):
        raise ConfigError(f"dataset: {file} must be a list of objects with `instruction`", "dataset.path")
    yield from ((f"{file}:{number}", fields) for number, fields in enumerate(rows, start=1))
