"""A forecast in words, and beside what came of it. `selfimprove.forecast` makes forecasts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from selfimprove import integrity, store
from selfimprove.plan import AFTER, ASKING
from selfimprove.report.display import clock_time, short

EVALUATED = "sampled in evaluations"
KINDS = ("sampled", "prompt", "scored", "trained", EVALUATED)
SAID = ("sampled", "trained")  # kinds that a line tells of
SOLVING = ("solver", "baseline")  # the phases of `selfimprove eval method=NAME`


class Expected(NamedTuple):
    value: float
    low: float
    high: float


def total(parts: Iterable[Expected]) -> Expected:
    found = list(parts)
    return Expected(*(sum(each) for each in zip(*found, strict=True))) if found else Expected(0.0, 0.0, 0.0)


def counted(phase: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The tokens that a phase spent, by kind."""
    if phase == "train":
        return {"trained": float(metrics.get("tokens", 0))}
    if phase in AFTER:
        return {EVALUATED: float(metrics.get("tokens/sampled", 0))}
    if phase not in (*ASKING, *SOLVING):
        return {}
    return {kind: float(metrics.get(f"tokens/{kind}", 0)) for kind in ("prompt", "sampled", "scored")}


def line(found: Mapping[str, Any], price: float | None) -> str:
    """What a run says of its forecast."""
    seconds = total(Expected(*each) for each in found["seconds"].values())
    said = [_ends(seconds, clock_time)]
    said += [f"{_ends(each, short)} tokens {kind}" for kind, each in found["tokens"].items() if kind in SAID]
    if price is not None:
        said.append(f"cost {_ends([price * each / 3600 for each in seconds], '{:,.2f}'.format)}")
    unseen = f"; without {', '.join(found['unseen'])}, which has not run yet" if found["unseen"] else ""
    return f"after {found['after']}, left: {', '.join(said)}{unseen}"


def _ends(values: Sequence[float], show: Callable[[float], str]) -> str:
    value, low, high = map(show, values)
    return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Compared:
    """The forecast of a run beside what was spent since. `rows`: its name, the forecast, and what was spent."""

    after: str
    complete: bool  # whether all that was forecast is done
    rows: list[tuple[str, Expected, float]]


def compared(path: Path) -> Compared | None:
    """What a run folder's forecast came to; None without one. Raises Damaged if a file is."""
    if not (path / integrity.FORECAST).exists():
        return None
    found, spent = store.read_json(path / integrity.FORECAST), defaultdict[str, float](float)
    first, end = found["passes"]
    done = set[int]()
    for file in integrity.manifests(path):
        manifest = store.read_json(file)
        number, phase = manifest.get("where", {}).get("pass", -1), manifest.get("phase")
        if not first <= number < end:
            continue
        done.add(number)
        for kind, count in counted(phase, manifest["metrics"]).items():
            spent[f"tokens {kind}"] += count
        spent[f"seconds {phase}"] += manifest["seconds"] + manifest.get("seconds_hashing", 0.0)
    spent["seconds"] = sum(value for name, value in spent.items() if name.startswith("seconds "))
    seconds = {phase: Expected(*each) for phase, each in found["seconds"].items()}
    rows = {f"tokens {kind}": Expected(*each) for kind, each in found["tokens"].items()}
    rows |= {f"seconds {phase}": each for phase, each in seconds.items()} | {"seconds": total(seconds.values())}
    complete = done >= set(range(first, end))
    return Compared(found["after"], complete, [(name, each, spent[name]) for name, each in rows.items()])


def summed_up(found: Compared) -> str:
    """A forecast and what came of it in one line: seconds, and tokens."""
    said = {f"tokens {kind}": short for kind in SAID} | {"seconds": clock_time}
    rows = [
        f"{name} {_ends(each, said[name])}, {said[name](spent)} spent"
        for name, each, spent in found.rows
        if name in said
    ]
    return f"after {found.after}: {'; '.join(rows)}"
