"""`selfimprove compare` of what other programs graded: logs by problem, paired, with the intervals of runs.

Read are sample logs of lm-evaluation-harness (`--log_samples`: samples_TASK_DATE.jsonl), JSON lines with `problem`,
`answer` and `verdict`, what `selfimprove verify --out` writes, and run folders (the last policy's held-out answers).
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfimprove.errors import ConfigError
from selfimprove.report.compare import Cell, Comparison, Table
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import difference, matrix, over_seeds
from selfimprove.types import STATUSES
from selfimprove.units import Scale

PLAIN = "verdict"  # the figure of a log that names none
_SAMPLES = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d.:-]+\.jsonl")


@dataclass(frozen=True)
class Log:
    """What one program said: figure -> problem -> mean over the problem's answers; and the hash of a problem's text."""

    name: str
    figures: Mapping[str, Mapping[str, float]]
    texts: Mapping[str, str]


def is_log(path: Path) -> bool:
    """Whether a path is a file of JSON lines, or a folder with sample logs of lm-evaluation-harness and no run."""
    if path.is_dir():
        return not any(path.rglob("config.yaml")) and any(path.rglob("samples_*.jsonl"))
    return path.suffix == ".jsonl"


def compare(paths: Sequence[Path], baseline: str | None = None) -> Comparison:
    """The logs beside each other: each figure's mean over the problems that all have, and paired differences.

    `baseline` is part of a log's name; None: the first. Raises ConfigError for a log that cannot be read, and for logs
    that have no figure or no problem in common.
    """
    said: list[str] = []
    logs = [_read(path, said) for path in paths]
    if len(logs) < 2:
        raise ConfigError("compare: two logs or more, whose problems are paired")
    fits = [log for log in logs if baseline is None or baseline in log.name][: None if baseline else 1]
    if len(fits) != 1:
        raise ConfigError(f"--baseline {baseline}: fits {len(fits)} logs, and has to fit one")
    _same_texts(logs)
    if all(len(log.figures) == 1 for log in logs):  # what it is called is then each program's own
        names = list(dict.fromkeys(next(iter(log.figures)) for log in logs))
        columns = {" and ".join(names): [next(iter(log.figures.values())) for log in logs]}
    else:
        shared = [name for name in logs[0].figures if all(name in log.figures for log in logs)]
        columns = {name: [log.figures[name] for log in logs] for name in shared}
    if not columns:
        each = "; ".join(f"{log.name}: {', '.join(log.figures)}" for log in logs)
        raise ConfigError(f"compare: no figure that every log has ({each})")
    order = [log.name for log in logs]
    tables = [_table(name, order, found, order.index(fits[0].name), said) for name, found in columns.items()]
    return Comparison([], None, said, tables)


def _same_texts(logs: Sequence[Log]) -> None:
    """Raises ConfigError if one name stands for two problems."""
    known: dict[str, tuple[str, str]] = {}
    for log in logs:
        for problem, text in log.texts.items():
            first, other = known.setdefault(problem, (text, log.name))
            if first != text:
                raise ConfigError(f"{log.name} and {other}: problem {problem} is another one (its doc_hash differs)")


def _table(name: str, order: Sequence[str], found: list[Mapping[str, float]], base: int, said: list[str]) -> Table:
    common = set.intersection(*(set(one) for one in found))
    if not common:
        raise ConfigError(f"compare: {order[0]} and {order[-1]} have no problem in common")
    if left := max(len(one) for one in found) - len(common):
        said.append(f"{name}: the {len(common)} problems that all logs have; {left} of the longest are left out")
    kept = [{problem: one[problem] for problem in common} for one in found]
    values = [value for one in kept for value in one.values()]
    scale: Scale | None = (0.0, 1.0) if min(values) >= 0 and max(values) <= 1 else None
    kind, gain = ("percent", "points") if scale else ("score", "gain")
    columns = [("log", "text"), ("problems", "number"), ("mean", kind), (f"difference from {order[base]}", gain)]
    rows: list[list[Cell]] = []
    for i, one in enumerate(kept):
        beside: Cell = "baseline" if i == base else difference([one], [kept[base]], scale)
        rows.append([order[i], float(len(one)), over_seeds(matrix([one]), scale), beside])
    note = "95 % intervals over problems; differences are paired by problem. * : the interval does not contain 0"
    note += "; not corrected for several logs." if len(order) > 2 else "."
    return Table(name, columns, rows, note)


# Reading


def _read(path: Path, said: list[str]) -> Log:
    if (path / "config.yaml").exists():
        run = RunData(path)
        if not run.heldout:
            raise ConfigError(f"{path}: the run has no evaluation yet")
        return Log(str(path), {PLAIN: run.heldout[-1]}, {})
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    texts: dict[str, str] = {}
    for file in _newest(path, said) if path.is_dir() else [path]:
        named = _SAMPLES.fullmatch(file.name)
        for where, row in _rows(file):
            if "doc_id" in row:
                task = named[1] if named else ""
                problem, found = _harness(row, task, where)
                if "doc_hash" in row:
                    texts.setdefault(f"{task} {problem}".strip(), row["doc_hash"])
            else:
                problem, found = _plain(row, where)
            for figure, value in found.items():
                if not math.isfinite(value):
                    raise ConfigError(f"{where}: {figure} is {value}, which has no mean")
                values[figure][problem].append(value)
    if not values:
        raise ConfigError(f"{path}: holds no graded answer")
    means = {
        figure: {problem: sum(each) / len(each) for problem, each in problems.items()}
        for figure, problems in values.items()
    }
    return Log(str(path), means, texts)


def _newest(folder: Path, said: list[str]) -> list[Path]:
    """The newest sample log of each task below a folder."""
    by_task: defaultdict[str, list[Path]] = defaultdict(list)
    for file in sorted(folder.rglob("samples_*.jsonl"), key=lambda file: file.name):
        named = _SAMPLES.fullmatch(file.name)
        by_task[named[1] if named else file.stem].append(file)
    for task, files in by_task.items():
        if len(files) > 1:
            said.append(f"{folder}: {len(files)} logs of {task}, of which the newest counts: {files[-1].name}")
    return [files[-1] for files in by_task.values()]


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row, and where it stands."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{file}: cannot be read ({problem})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise ConfigError(f"{file}, line {number}: not JSON") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, line {number}: not an object with problem, answer and verdict")
        yield f"{file}, line {number}", row


def _harness(row: Mapping[str, Any], task: str, where: str) -> tuple[str, dict[str, float]]:
    """A row of lm-evaluation-harness: which problem, and its metrics that are one number a problem."""
    doc = row.get("doc")
    own = doc.get("id") if isinstance(doc, Mapping) else None
    problem = str(row["doc_id"] if own is None else own)
    said = row.get("filter", "none")
    of = f" ({said})" if said != "none" else ""
    metrics = row.get("metrics")
    if not isinstance(metrics, list):
        raise ConfigError(f"{where}: no `metrics`, which lm-evaluation-harness 0.4.13 writes: grade again with it")
    numbers = {name: row.get(name) for name in metrics}
    found = {
        f"{task} {name}{of}".strip(): float(value) for name, value in numbers.items() if isinstance(value, int | float)
    }
    return problem, found


def _plain(row: Mapping[str, Any], where: str) -> tuple[str, dict[str, float]]:
    """A row with `problem` (or `id`) and `verdict` (or `status`): true, false, a number, or a verifier's status."""
    problem = row.get("problem", row.get("id"))
    verdict = row.get("verdict", row.get("status"))
    if not isinstance(problem, str | int):
        raise ConfigError(f"{where}: `problem` is {problem!r:.80}, not text or a whole number")
    if isinstance(verdict, int | float):
        return str(problem), {PLAIN: float(verdict)}
    if verdict not in STATUSES:
        raise ConfigError(
            f"{where}: `verdict` is {verdict!r:.80}, not true, false, a number or one of {', '.join(STATUSES)}"
        )
    return str(problem), {PLAIN: float(verdict == "correct")}
