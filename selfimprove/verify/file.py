"""Verifies completions from a file, and gold answers against their own verifier."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.types import STATUSES, Problem, Sample, Status, Trajectory
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
    """Check every row of a JSONL file with the verifier named `target`. Returns the number of rows by status.

    A row has `id`, `completion`, and `gold` if the check needs one. Its other keys and those in its `metadata` are the
    check's metadata. `out` gets one row for each, in order, with `id`, `status`, `reward`, `extracted`, `step_rewards`
    and `reason`. It is written whole or not at all. Without `out` the rows go to standard output.

    For a group verifier, all rows with the same id are samples of one problem, wherever they stand in the file.

    Raises ConfigError if a row is malformed (with its line), when a file cannot be read or written, and when a group
    verifier needs a model.
    """
    counts = dict.fromkeys(STATUSES, 0)
    ids: deque[Any] = deque()
    module_name, _, name = target.rpartition(".")
    module = importlib.import_module(module_name)
    group = inspect.iscoroutinefunction(getattr(module, name))
    if group and hasattr(module, "resource"):
        raise ConfigError(
            f"verify: {target} asks a model or the data set's own check, which only a run has; use verifier=consensus "
            "or one that checks each answer by itself"
        )

    def items() -> Iterator[Item]:
        for id, item in _rows(path):
            ids.append(id)
            yield item

    def outcomes() -> Generator[Outcome, None, None]:
        if group:
            rows = list(items())
            yield from _by_problem(partial(getattr(module, name), **options), list(ids), rows)
            return
        with Pool(target, options, workers=workers, seconds=seconds, memory_mb=memory_mb) as pool:
            yield from pool.run(items())

    unfinished = out and out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with (
            unfinished.open("w", encoding="utf-8") if unfinished else nullcontext(sys.stdout) as file,
            closing(outcomes()) as results,
        ):
            for outcome in results:
                counts[outcome.status] += 1
                file.write(json.dumps({"id": ids.popleft()} | asdict(outcome)) + "\n")
        if unfinished and out:
            unfinished.replace(out)
    except BrokenPipeError:  # the reader of our output is gone
        raise
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    finally:
        if unfinished:
            unfinished.unlink(missing_ok=True)
    return counts


def _by_problem(verify: Callable[..., Any], ids: list[Any], items: list[Item]) -> list[Outcome]:
    """Outcomes in the order of the rows, from a group verifier that needs only texts."""
    groups: dict[Any, list[int]] = {}
    for row, id in enumerate(ids):
        groups.setdefault(id, []).append(row)
    outcomes: dict[int, Outcome] = {}
    for id, rows in groups.items():
        _, gold, metadata = items[rows[0]]
        texts = [items[row][0] for row in rows]
        group = [Trajectory(str(id), [Sample([], [], [], text, "stop", 0)]) for text in texts]
        outcomes |= zip(
            rows, asyncio.run(verify(Problem(str(id), "", gold, metadata=metadata), group, None)), strict=True
        )
    return [outcomes[row] for row in range(len(items))]


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
    """The problems whose gold answer fails the pool's own check, each with the check's outcome.

    `reference(gold, metadata, **options)` in the check's module makes a completion that states the gold answer. Without
    it the list is empty. Problems without a gold answer are skipped if the check's module has `NEEDS_GOLD = False`
    (unit tests, a constraint).
    """
    module = importlib.import_module(pool.target.rpartition(".")[0])
    if not hasattr(module, "reference"):
        return []
    sent: deque[Problem] = deque()

    def items() -> Iterator[Item]:
        for problem in problems:
            if problem.gold is None and not getattr(module, "NEEDS_GOLD", True):
                continue
            sent.append(problem)
            text = "" if problem.gold is None else module.reference(problem.gold, problem.metadata, **pool.options)
            yield text, problem.gold, problem.metadata

    outcomes = ((sent.popleft(), outcome) for outcome in pool.run(items()))
    return [(problem, outcome) for problem, outcome in outcomes if outcome.status != "correct"]
