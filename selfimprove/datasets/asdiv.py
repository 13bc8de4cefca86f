"""ASDiv, Miao et al. 2020 (arXiv 2106.15772): 2,305 grade-school word problems, easier than GSM8K.

Answers have a unit, "9 (apples)". Some are not a single number: "5:6", "Mrs. Hilt", "13 years; 17 years". Their
problems are left out, and their number is logged.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack
from xml.etree import ElementTree

from selfimprove.datasets import Common, Row, cached, field_of, finish, from_hub, read_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem

HUB = "EleutherAI/asdiv"
FILES = (".jsonl", ".jsonl.gz", ".parquet", ".xml")

_NUMBER = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)(?:\s[^;]*)?")  # with or without a unit, and without a second answer
_log = logging.getLogger(__name__)


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """Problems with one number as gold. Ids are "asdiv-0001", in the order of the published file.

    `path` is a file, or a folder with one, in a published format: the authors' XML, the hub's Parquet (body, question,
    answer), or JSON lines (passage or body, question, answer). With None, the source is the local cache, else the hub.
    There are no splits: `heldout_share` is held out. Raises ConfigError if `path` has another format.
    """
    return finish(_rows(path), name="asdiv", seed=seed, **common)


def _rows(path: str | None) -> Iterator[Row]:
    local = Path(path).expanduser() if path else cached("asdiv")
    if local is None:
        records = from_hub(HUB, None, "validation")
    else:
        file = _file(local) if local.is_dir() else local
        records = _read_xml(file) if file.suffix == ".xml" else read_rows(file)
    dropped = 0
    for number, (where, fields) in enumerate(records, start=1):
        body = field_of(fields, "passage" if "passage" in fields else "body", "asdiv's own", where)
        question = field_of(fields, "question", "asdiv's own", where)
        match = _NUMBER.fullmatch(field_of(fields, "answer", "asdiv's own", where))
        if match is None:
            dropped += 1
            continue
        metadata: dict[str, Any] = {key: fields[key] for key in ("solution_type", "formula", "grade") if key in fields}
        gold = match[1].replace(",", "")
        yield Row(f"asdiv-{number:04d}", f"{body} {question}", gold, where, metadata=metadata)
    if dropped:
        _log.info("asdiv: left out %d problems whose answer is not a single number", dropped)


def _file(folder: Path) -> Path:
    files = [p for p in sorted(folder.rglob("*")) if p.name.lower().endswith(FILES)]
    if len(files) != 1:
        raise ConfigError(
            f"dataset.path={folder}: needs one file of {', '.join(FILES)}, found {len(files)}", "dataset.path"
        )
    return files[0]


def _read_xml(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        problems = list(ElementTree.parse(path).iter("Problem"))
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(f"dataset: {path} cannot be read as XML ({error})", "dataset.path") from error
    names = ("Body", "Question", "Answer", "Formula", "Solution-Type")
    for number, problem in enumerate(problems, start=1):
        fields = {name.lower().replace("-", "_"): problem.findtext(name, "") for name in names}
        yield f"{path}:{number}", {**fields, "grade": problem.get("Grade")}
