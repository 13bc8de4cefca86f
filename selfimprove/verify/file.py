"""Verifies completions from a file, and gold answers against their own verifier."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.types import STATUSES, Problem, Status
from selfimprove.verify import Outcome
from selfimprove.verify.pool import Item, Pool


def verify_file(
    path: Path,
    target: str,
    options: dict[str, Any],
    out: Path | None = None,
    *,
    workers: int = 1,
    seconds: float = 10,
    memory_mb: int = 2048,
) -> dict[Status, int]:
    """Checks every row of a JSONL file with the check named `target`; how many rows got each status.

    A row has `id`, `completion`, and `gold` where the check needs one; what else it has, and what its `metadata` has,
    is the check's metadata. `out` gets a row for each, in order, with `id`, `status`, `reward`, `extracted`,
    `step_rewards` and `reason`; it appears whole or not at all. Without it the rows go to standard output.

    Raises ConfigError for a row that is none, naming its line, and when a file cannot be read or written.
    """
    counts = dict.fromkeys(STATUSES, 0)
    ids: deque[Any] = deque()

    def items() -> Iterator[Item]:
        for id, item in _rows(path):
            ids.append(id)
            yield item

    partial = out and out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with (
            partial.open("w", encoding="utf-8") if partial else nullcontext(sys.stdout) as file,
            Pool(target, options, workers=workers, seconds=seconds, memory_mb=memory_mb) as pool,
        ):
            for outcome in pool.run(items()):
                counts[outcome.status] += 1
                file.write(json.dumps({"id": ids.popleft()} | asdict(outcome)) + "\n")
        if partial and out:
            partial.replace(out)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)
    return counts


def _rows(path: Path) -> Iterator[tuple[Any, Item]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path}, line {number}: not an object with id, gold and completion")
            if isinstance(row.get("gold"), int | float) and not isinstance(row["gold"], bool):
                row["gold"] = str(row["gold"])
            for key, kind in {"id": str | int, "completion": str, "gold": str | None, "metadata": dict | None}.items():
                if not isinstance(row.get(key), kind):
                    raise ConfigError(f"{path}, line {number}: `{key}` is {row.get(key)!r:.80}, not {_KINDS[key]}")
            rest = {key: value for key, value in row.items() if key not in _KINDS}
            yield row["id"], (row["completion"], row.get("gold"), rest | (row.get("metadata") or {}))


_KINDS = {"id": "text or a whole number", "completion": "text", "gold": "text or a number", "metadata": "an object"}


def check_gold(problems: Iterable[Problem], pool: Pool) -> list[tuple[Problem, Outcome]]:
    """The problems whose gold answer does not pass the pool's own check, each with what the check said of it.

    A completion that states the gold answer comes from `reference(gold, metadata, **options)` beside the check; a check
    that has none (unit tests, a constraint) reads no gold answer, and nothing is to be found.
    """
    module = importlib.import_module(pool.target.rpartition(".")[0])
    if not hasattr(module, "reference"):
        return []
    asked: deque[Problem] = deque()

    def items() -> Iterator[Item]:
        for problem in problems:
            asked.append(problem)
            text = "" if problem.gold is None else module.reference(problem.gold, problem.metadata, **pool.options)
            yield text, problem.gold, problem.metadata

    outcomes = ((asked.popleft(), outcome) for outcome in pool.run(items()))
    return [(problem, outcome) for problem, outcome in outcomes if outcome.status != "correct"]
