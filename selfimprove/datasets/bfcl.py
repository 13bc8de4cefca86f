"""The Berkeley Function Calling Leaderboard (Patil et al. 2025), version 4: which function, with which arguments?

The items of its categories in which one call answers a request, from the package `bfcl-eval` (Apache 2.0): 400
`simple_python`, 200 `multiple` (two to four functions to choose from), 258 `live_simple`, 1,053 `live_multiple`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Unpack

from selfimprove.datasets import Common, Row, finish
from selfimprove.errors import ConfigError
from selfimprove.types import Count, Problem

Category = Literal["simple_python", "multiple", "live_simple", "live_multiple"]


def load(
    *,
    categories: list[Category],
    path: str | None = None,
    longest: Count | None = None,
    seed: int,
    **common: Unpack[Common],
) -> list[Problem]:
    """Items with the leaderboard's own ids. `path` is a folder like the package's `data`; None is the package's.

    `longest`: items whose functions take more characters, as they are shown, are left out. Raises ConfigError where
    neither folder nor package is there.
    """
    folder = Path(path).expanduser() if path else packaged()
    rows = (row for category in categories for row in _rows(folder, category))
    kept = (row for row in rows if longest is None or len(row.metadata["functions"]) <= longest)
    return finish(kept, name="bfcl", seed=seed, **common)


def packaged() -> Path:
    spec = importlib.util.find_spec("bfcl_eval")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / "data").is_dir():
            return Path(folder) / "data"
    raise ConfigError(
        "dataset=bfcl: needs the package bfcl-eval: pip install --no-deps bfcl-eval==2026.3.23; or set dataset.path",
        "dataset.path",
    )


def _rows(folder: Path, category: str) -> Iterator[Row]:
    name = f"BFCL_v4_{category}.json"
    answers = {fields["id"]: fields["ground_truth"] for _, fields in read(folder / "possible_answer" / name)}
    for where, fields in read(folder / name):
        *before, request = fields["question"][0]
        functions = "\n".join(shown(function) for function in fields["function"])
        (gold,) = answers[fields["id"]]
        if not all(values for arguments in gold.values() for values in arguments.values()):
            continue  # two items have an argument for which no value is right
        metadata = {
            "request": request["content"],
            "functions": functions,
            "actions": [function["name"] for function in fields["function"]],
            "kind": category,
        }
        question = f"{functions}\n\nRequest: {request['content']}"
        yield Row(fields["id"], question, json.dumps(gold), where, metadata=metadata, before=before)


def read(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Its rows: the package's files are JSON lines under the name .json."""
    if not file.is_file():
        raise ConfigError(f"dataset.path: there is no {file}", "dataset.path")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file}:{number}", json.loads(line)


def shown(function: dict[str, Any]) -> str:
    """A function in one line: its name, its arguments with their types, and what it does."""
    parameters = function["parameters"]
    needed = parameters.get("required", [])
    arguments = [
        f"{name}: {kind.get('type', 'any')}" + ("" if name in needed else " (optional)")
        for name, kind in parameters["properties"].items()
    ]
    return f"{function['name']}({', '.join(arguments)}): {function.get('description', '').strip()}"
