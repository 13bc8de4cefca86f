"""Writes report.html: one file with the tables, curves and trajectories of one or more runs. It needs no network.

The page is our own HTML, CSS and JavaScript in page/, with plotly.js for the charts. Its data is compressed JSON: one
block with all figures, and for each run a block with its problems and answers, which the browser unpacks when a reader
opens the run. The page treats text as data, never as markup.
"""

from __future__ import annotations

import base64
import gzip
import html
import importlib.util
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfimprove import __version__, account, store
from selfimprove.errors import ConfigError
from selfimprove.report import calibration, expected, explorer
from selfimprove.report.metrics import pass_at_k
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import matrix, over_seeds, student
from selfimprove.units import Unit

TRAJECTORIES = 100_000  # most trajectories of a report, and
CHARACTERS = 32_000_000  # most characters of text: a browser opens them in under 3 s, in less than 30 MB
CHECKS = 1000  # most answers of a report that are graded for its reliability diagrams
STEPS = 400  # most points of a run's curve over optimizer steps

_PAGE = Path(__file__).parent / "page"
_MEASURING = ("evaluate", "drift", "also")  # phases that are no part of learning
_SCRIPTS = ("base.js", "charts.js", "explorer.js", "main.js")

Point = list[float | None]  # value, or value, low, high


def write_report(runs: Sequence[RunData], path: Path, comparison: Mapping[str, Any] | None = None) -> Path:
    """Write the report of some runs to a file and return its path. Raises ConfigError if a run folder is damaged.

    `comparison` is a `Comparison.as_json` of the same runs (`selfimprove.report.compare`). Without it each run is a
    group of its own.
    """
    try:
        report, blocks = _gather(runs, comparison or {})
    except (OSError, pa.ArrowInvalid) as problem:
        raise ConfigError(f"the report cannot be made: {problem}") from None
    blocks["report"] = _packed(json.dumps(report, ensure_ascii=False, separators=(",", ":")).encode())
    blocks["plotly"] = _packed(_plotly().read_bytes())
    data = "\n".join(f'<script type="text/plain" id="{name}">{block}</script>' for name, block in blocks.items())
    parts = {
        "title": html.escape(report["title"]),
        "style": (_PAGE / "page.css").read_text(encoding="utf-8"),
        "script": "\n".join((_PAGE / name).read_text(encoding="utf-8") for name in _SCRIPTS),
        "data": data,
    }
    page = (_PAGE / "page.html").read_text(encoding="utf-8")
    store.write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page))
    return path


def _packed(data: bytes) -> str:
    """`data` compressed, as text that needs no escaping. Level 4 takes half the time of level 6 and 4 % more room."""
    return base64.b64encode(gzip.compress(data, 4, mtime=0)).decode()


def _plotly() -> Path:
    """The path of plotly.js in the package plotly, which is not imported. Raises ConfigError without that package."""
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the report needs plotly: pip install plotly")
    return Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js"


def _gather(runs: Sequence[RunData], comparison: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The page's figures as JSON values, and the runs' compressed blocks by name."""
    labels = _labels(runs)
    groups: list[tuple[str, list[int]]] = comparison.get("groups") or [(name, [i]) for i, name in enumerate(labels)]
    blocks, signals = {}, []
    shown: Counter[str] = Counter()
    entries = []
    checks = CHECKS // max(1, sum(calibration.differs(run.config) for run in runs))
    for i, run in enumerate(runs):
        block = explorer.collect(run, TRAJECTORIES // len(runs), CHARACTERS // len(runs))
        shown.update({f"{name} held": count for name, count in block["total"].items()})
        shown.update({"problems": len(block["problems"]), "trajectories": len(block["rows"])})
        if block["rows"]:
            blocks[f"run-{i}"] = _packed(json.dumps(block, ensure_ascii=False, separators=(",", ":")).encode())
        signals += [(i, signal) for signal in calibration.signals(run, checks)]
        entries.append(_entry(run, labels[i], f"run-{i}" if block["rows"] else None))
    one = len(runs) == 1
    report = {
        "title": labels[0] if one else f"{len(runs)} runs in {len(groups)} groups",
        "warnings": comparison.get("warnings") or [line for run in runs for line in _warnings(run)],
        "said": _said(shown, signals, one),
        "cards": _cards(runs[0]) if one else [],
        "tables": _tables(runs, labels, groups, comparison),
        "curves": _caption(groups),
        "unit": {"name": runs[0].unit.name, "label": runs[0].unit.label},
        "axes": _axes(entries),
        "groups": [_group(name, chosen, runs, entries) for name, chosen in groups],
        "runs": entries,
        "baselines": comparison.get("baselines", []),
        "calibration": _noted(calibration.diagrams(signals)),
        "foot": f"Written by selfimprove {__version__}. Everything is in this one file; it opens without a network.",
    }
    return report, blocks


def _labels(runs: Sequence[RunData]) -> list[str]:
    """A short, unique name for each run."""
    names = [f"{run.method} · {_name(run, 'model')} · {_name(run, 'dataset')} · seed {run.seed}" for run in runs]
    often = Counter(names)
    return [f"{name} · {run.path}" if often[name] > 1 else name for name, run in zip(names, runs, strict=True)]


def _name(run: RunData, section: str) -> str:
    return str(run.config[section]["name"])


# Figures


def _entry(run: RunData, name: str, block: str | None) -> dict[str, Any]:
    """A run's data on the page, without its trajectories."""
    steps = itertools.pairwise(run.heldout)
    return {
        "name": name,
        "block": block,
        "facts": _facts(run),
        "evals": _evaluations(run),
        "rounds": [{"round": entry["round"], "m": _folded(entry)} for entry in run.rounds],
        "transitions": [
            [sum(b < a for b, a in pairs), sum(b > a for b, a in pairs)]
            for before, after in steps
            if (pairs := [(before[name], after[name]) for name in before if name in after])
        ],
        "verdicts": run.verdicts,
        "seconds": run.seconds,
        "steps": {name: _thinned(points) for name, points in run.steps.items() if len(points) > 1},
    }


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most STEPS of the points, evenly spaced, with the first and the last."""
    chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), STEPS)).round().astype(int))
    return [(points[i][0], _short(points[i][1])) for i in chosen]


def _evaluations(run: RunData) -> list[dict[str, Any]]:
    """Each evaluation's places on the axes, and its estimates."""
    rounds = run.summary.get("rounds", [])
    figures = [run.summary.get("base"), *(entry["evaluation"] for entry in rounds)]
    done = list(itertools.takewhile(bool, figures))
    sampled = _sums(tokens["sampled"] for tokens in run.tokens)
    seconds = _sums(sum(v for phase, v in spent.items() if phase not in _MEASURING) for spent in run.seconds)
    flops = _sums(sum(spent.values()) for spent in run.flops) if all(run.flops) else []
    evaluations = []
    for i, entry in enumerate(done):
        x = {"round": i, "sampled": sampled[i], "seconds": seconds[i], "flops": flops[i] if flops else None}
        evaluations.append({"x": x, "m": {key: point for key, point in _folded(entry).items() if len(point) == 3}})
    return evaluations


def _sums(values: Iterator[float]) -> list[float]:
    return [0, *itertools.accumulate(values)]


def _folded(figures: Mapping[str, Any]) -> dict[str, Point]:
    """The numbers in `figures` by name, each as [value], or as [value, low, high] if it has an interval."""
    points: dict[str, Point] = {}
    for key, value in figures.items():
        if isinstance(value, int | float) and math.isfinite(value) and not key.endswith(("_low", "_high")):
            ends = [figures[f"{key}_{end}"] for end in ("low", "high") if f"{key}_{end}" in figures]
            points[key] = [_short(number) for number in (value, *(ends if all(map(math.isfinite, ends)) else []))]
    points.pop("round", None)
    return points


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _group(name: str, members: Sequence[int], runs: Sequence[RunData], entries: Sequence[dict[str, Any]]) -> Any:
    """A group's figures: those of its only run, or the means of several runs with intervals."""
    own = [entries[i] for i in members]
    if len(own) == 1:
        return {"name": name, "runs": list(members), "evals": own[0]["evals"], "rounds": own[0]["rounds"]}
    evals = []
    for index in range(max(len(entry["evals"]) for entry in own)):
        evaluated = [i for i in members if len(entries[i]["evals"]) > index]
        by_run = [entries[i]["evals"][index] for i in evaluated]
        places = {key: [e["x"][key] for e in by_run] for key in by_run[0]["x"]}
        x = {key: None if None in values else sum(values) / len(values) for key, values in places.items()}
        metrics = _means([e["m"] for e in by_run])
        metrics |= _paired([runs[i] for i in evaluated], index, metrics) if len(evaluated) > 1 else {}
        evals.append({"x": x, "m": metrics})
    rounds = []
    for index in range(max(len(entry["rounds"]) for entry in own)):
        by_run = [entry["rounds"][index] for entry in own if len(entry["rounds"]) > index]
        rounds.append({"round": by_run[0]["round"], "m": _means([e["m"] for e in by_run])})
    return {"name": name, "runs": list(members), "evals": evals, "rounds": rounds}


def _means(by_run: Sequence[Mapping[str, Point]]) -> dict[str, Point]:
    """The mean of each figure over runs, with Student's 95 % interval if there are two or more."""
    means: dict[str, Point] = {}
    for key in dict.fromkeys(key for entry in by_run for key in entry):
        points = [entry[key] for entry in by_run if key in entry]
        values = [point[0] for point in points if point[0] is not None]
        mean, n = sum(values) / len(values), len(values)
        if n == 1:
            means[key] = points[0]
            continue
        deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
        half = student(n - 1) * deviation / math.sqrt(n)
        means[key] = [_short(mean), _short(mean - half), _short(mean + half)]
    return means


def _paired(runs: Sequence[RunData], index: int, names: Mapping[str, Point]) -> dict[str, Point]:
    """The figures known for each problem, with intervals over problems and seeds together."""
    if len({run.seed for run in runs}) < len(runs):  # the runs differ in more than their seed
        return {}
    unit = runs[0].unit
    values: dict[str, list[dict[str, float]]] = {unit.name: [run.heldout[index] for run in runs]}
    drawn = [run.sampled[index] for run in runs]
    if all(drawn):
        for name in names:
            if match := re.fullmatch(r"(mean|pass)@(\d+)", name):
                of = _mean if match[1] == "mean" else _pass(int(match[2]))
                values[name] = [{p: of(n, c) for p, (n, c) in run.items()} for run in drawn]
    estimates: dict[str, Point] = {}
    for name, by_run in values.items():
        if all(run.keys() == by_run[0].keys() for run in by_run):
            estimate = over_seeds(matrix(by_run), unit.scale if name == unit.name else (0.0, 1.0))
            estimates[name] = [_short(estimate.value), _short(estimate.low), _short(estimate.high)]
    return estimates


def _mean(n: int, c: int) -> float:
    return c / n


def _pass(k: int) -> Callable[[int, int], float]:
    return lambda n, c: pass_at_k(n, c, k)


# Words


def _axes(entries: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    names = {
        "round": "rounds",
        "sampled": "tokens sampled for learning",
        "flops": "FLOPs of learning, estimated",
        "seconds": "seconds of learning",
    }
    points = [point["x"] for entry in entries for point in entry["evals"]]
    return [(key, name) for key, name in names.items() if points and all(x[key] is not None for x in points)] or [
        ("round", "rounds")
    ]


def _caption(groups: Sequence[tuple[str, list[int]]]) -> str:
    if all(len(chosen) == 1 for _, chosen in groups):
        return "Bands: 95 % intervals over the held-out problems. 0 is the base policy."
    return (
        "Means over a group's runs. Bands: 95 % intervals, of scores, mean@k and pass@k over problems and seeds, of "
        "other figures, and where seeds repeat, over runs (Student's t); of a single run over its problems. 0 is the "
        "base policy."
    )


def _said(shown: Counter[str], signals: Sequence[tuple[int, calibration.Signal]], one: bool) -> list[str]:
    """Lines on what the report leaves out."""
    lines = []
    if shown["trajectories"] < shown["trajectories held"]:
        of = "this run" if one else "these runs"
        lines.append(
            f"The explorer shows {shown['problems']:,} of {shown['problems held']:,} problems and "
            f"{shown['trajectories']:,} of {shown['trajectories held']:,} answers of {of}: whole problems, chosen by a "
            "hash of their id, the same ones in runs on the same problems. Tables and curves are over all of them."
        )
    if graded := sum(len(signal[2]) for _, signal in signals if signal[0].startswith(calibration.REWARD)):
        lines.append(f"Calibration of rewards is over {graded:,} answers, evenly spaced, graded when this was written.")
    return lines


def _warnings(run: RunData) -> list[str]:
    if run.complete:
        return []
    why = f": {run.summary['reason']}" if run.summary.get("reason") else ""
    return [f"{run.path.name} is {run.status}{why}. Figures are of what it finished."]


def _noted(diagrams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [diagram | {"note": calibration.NOTES.get(diagram["name"], "")} for diagram in diagrams]


def _cards(run: RunData) -> list[tuple[str, str, str]]:
    """(name, figure, a note on it) of each card."""

    unit, summary, cards = run.unit, run.summary, []

    def ends(figures: Mapping[str, Any], signed: bool = False) -> str:
        low, high = figures[f"{unit.name}_low"], figures[f"{unit.name}_high"]
        return "95 %: " + unit.interval(low, high, signed).strip("[]").replace(", ", " … ")

    if base := summary.get("base"):
        cards.append((f"base {unit.label}", unit.show(base[unit.name]), f"{ends(base)}, {base['n']} held-out problems"))
    if (final := summary.get("final")) and (change := summary.get("change")):
        cards.append((f"final {unit.label}", unit.show(final[unit.name]), ends(final)))
        cards.append(("change, paired", unit.change(change[unit.name]), ends(change, signed=True)))
    done, planned = len(run.rounds), int(run.config["rounds"])
    cards.append(("rounds", f"{done} of {planned}", run.status))
    cards.append(("tokens sampled", f"{sum(t['sampled'] for t in run.tokens):,}", "for learning, without evaluation"))
    minutes, seconds = divmod(round(sum(sum(spent.values()) for spent in run.seconds)), 60)
    cards.append(("time", f"{minutes} min {seconds} s" if minutes else f"{seconds} s", "all phases of all rounds"))
    return cards


def _run_columns(unit: Unit) -> list[tuple[str, str]]:
    return [
        ("run", "text"), ("group", "text"), ("seed", "number"), ("status", "text"), ("rounds", "number"),
        ("base", unit.kind), ("final", unit.kind), ("change", unit.change_kind),
        ("held-out n", "number"), ("tokens sampled", "number"), ("tokens trained", "number"), ("time", "seconds"),
    ]  # fmt: skip


def _tables(
    runs: Sequence[RunData],
    labels: Sequence[str],
    groups: Sequence[tuple[str, list[int]]],
    comparison: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Tables with a title, columns (label and kind) and rows: the rounds of one run, or several runs."""
    if len(runs) == 1:
        return [_table("Rounds", *_round_rows(runs[0])), *_by_group(runs[0]), *_account(runs[0]), *_forecast(runs[0])]
    of = {i: name for name, chosen in groups for i in chosen}
    rows = []
    for i, run in enumerate(runs):
        summary, tokens = run.summary, run.tokens
        change = _folded(summary.get("change") or {}).get(run.unit.name)
        scores = [_folded(summary.get(key) or {}).get(run.unit.name) for key in ("base", "final")]
        spent = [sum(entry[kind] for entry in tokens) for kind in ("sampled", "trained")]
        seconds = sum(sum(entry.values()) for entry in run.seconds)
        n = (summary.get("base") or {}).get("n")
        rows.append([labels[i], of[i], run.seed, run.status, len(run.rounds), *scores, change, n, *spent, seconds])
    return [*comparison.get("tables", []), _table("Runs", _run_columns(runs[0].unit), rows)]


def _round_rows(run: RunData) -> tuple[list[tuple[str, str]], list[list[Any]]]:
    entries = [{"evaluation": run.summary.get("base")}, *run.summary.get("rounds", [])]
    estimates = [_folded(entry["evaluation"] or {}) for entry in entries]
    names = sorted((k for k in estimates[0] if "@" in k), key=lambda k: int(k.partition("@")[2].lstrip("t")))
    largest = list({name.partition("@")[0]: name for name in names}.values())  # each figure at its largest k
    unit = run.unit
    columns = [("after", "text"), (unit.label, unit.kind), ("change", unit.change_kind)]
    columns += [(name, unit.kind if name.startswith(unit.name) else "percent") for name in largest]
    columns += [("answers", "number"), ("correct", "number"), ("examples", "number"), ("tokens sampled", "number")]
    columns += [("tokens trained", "number"), ("time", "seconds")]
    rows = []
    for i, (entry, estimate) in enumerate(zip(entries, estimates, strict=True)):
        spent = [entry["tokens"][kind] for kind in ("sampled", "trained")] if i else [None, None]
        counts = [entry["trajectories"], entry["verdicts"].get("correct"), entry["examples"]] if i else [None] * 3
        seconds = sum(entry["seconds"].values()) if i else None
        figures = [estimate.get(name) for name in (unit.name, "change", *largest)]
        rows.append([f"round {entry['round']}" if i else "base policy", *figures, *counts, *spent, seconds])
    return columns, rows


def _by_group(run: RunData) -> list[dict[str, Any]]:
    """The mean score for each value of `eval.by` after each round. It is a heat map if the score is a share."""
    entries = [run.summary.get("base"), *(entry["evaluation"] for entry in run.summary.get("rounds", []))]
    start = f"{run.unit.name}/{run.config['eval'].get('by')}="
    estimates = [_folded(entry or {}) for entry in entries]
    names = [name for name in estimates[0] if name.startswith(start)]
    kind = "shaded" if run.unit.percent else run.unit.kind
    columns = [("after", "text"), *((name.partition("/")[2], kind) for name in names)]
    labels = ["base policy", *(f"round {entry['round']}" for entry in run.summary.get("rounds", []))]
    rows = [[label, *((one.get(name) or [None])[0] for name in names)]
            for label, one in zip(labels, estimates, strict=True)]  # fmt: skip
    return [_table(f"{run.unit.label} by {run.config['eval']['by']}", columns, rows)] if names else []


def _account(run: RunData) -> list[dict[str, Any]]:
    """Where the rounds' time went, a row for each thing; none of a run without a whole round."""
    spent = [account.measured(metrics) for metrics in run.rounds]
    names = list(dict.fromkeys(name for one in spent for name in one))
    columns = [("seconds", "text"), *((f"round {metrics['round']}", "number") for metrics in run.rounds)]
    rows = [[name, *(round(one.get(name, 0.0), 1) for one in spent)] for name in names]
    rows.append(["neither sampling nor steps, %", *(round(100 * account.serial_share(one)) for one in spent)])
    return [_table("Where the time went", columns, rows)] if spent else []


def _forecast(run: RunData) -> list[dict[str, Any]]:
    """What the first passes told of the others, beside what these took; none of a run that made no forecast."""
    if (found := expected.compared(run.path)) is None:
        return []
    columns = [("", "text"), ("forecast", "number"), ("truth" if found.complete else "so far", "number")]
    rows = [[name, list(map(_rounded, each)), _rounded(spent)] for name, each, spent in found.rows]
    return [_table(f"Forecast after {found.after}, of what was left", columns, rows)]


def _rounded(value: float) -> float:
    return round(value) if value >= 100 else round(value, 1)


def _table(title: str, columns: Sequence[tuple[str, str]], rows: list[list[Any]]) -> dict[str, Any]:
    return {"title": title, "columns": [{"label": label, "kind": kind} for label, kind in columns], "rows": rows}


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The facts of a run, as (name, value)."""
    config, environment = run.config, run.environment
    splits = Counter(run.problems["split"].to_pylist())
    sides = [("train", "train"), ("dev", "dev"), ("test", "held-out"), ("sealed", "sealed")]
    data = ", ".join(f"{splits[side]} {called}" for side, called in sides if splits[side] or side != "sealed")
    verifier = calibration.training_verifier(config)["_target_"].removeprefix("selfimprove.verify.")
    versions = environment.get("versions", {})
    facts = {
        "folder": str(run.path),
        "status": run.status + (f" ({run.summary['reason']})" if run.summary.get("reason") else ""),
        "command": environment.get("command"),
        "method": f"{run.method}: {config['method'].get('title', '')} ({config['method'].get('paper', '')})",
        "model": f"{_name(run, 'model')} ({config['model'].get('path', '')})",
        "data": f"{_name(run, 'dataset')}: {data}",
        "seed": str(run.seed),
        "trained on verdicts of": verifier,
        "control": config.get("control"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": environment.get("git_commit"),
        "machine": f"{environment.get('platform', '?')}, {environment.get('cores', '?')} cores",
        "started": environment.get("time"),
        "resumed": f"{len(environment['resumed'])} times" if environment.get("resumed") else None,
    }
    return [(name, str(value)) for name, value in facts.items() if value]
