"""The scale benchmarks of scripts/bench.py: what ten times the problems cost, and a million trajectories.

Every run is `selfimprove run` in a process of its own; seconds are those of its summary.json, memory is what the whole
tree of its processes held at its peak.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from children import command, environment

from selfimprove.store import count_records, read_json
from selfimprove.train import TrainContext
from selfimprove.types import Example

LOOP = ("generate", "verify", "filter")


def nothing(rows: Sequence[Example], context: TrainContext) -> dict[str, float]:
    """A train slot that learns nothing, for an engine without weights."""
    shutil.copytree(context.start, context.out, dirs_exist_ok=True)
    return {"loss": 0.0, "steps": 0.0, "tokens": float(sum(row.tokens for row in rows))}


def time_10x(repeats: int = 3) -> dict[str, Any]:
    """Seconds of generate, verify and filter (tiny model, the default method) for 10 times the problems over those for
    as many as fill two shards: the ratio of medians over `repeats`. `by_phase` has the ratio of each phase."""
    runs = _scaled(repeats)
    medians = {
        size: {phase: statistics.median(run["seconds"][phase] for run in found) for phase in LOOP}
        for size, found in runs.items()
    }
    small, large = medians["1x"], medians["10x"]
    return {
        "value": sum(large.values()) / sum(small.values()),
        "by_phase": {phase: large[phase] / small[phase] for phase in LOOP},
        "seconds": medians,
        "runs": runs,
    }


def memory_10x(repeats: int = 3) -> dict[str, Any]:
    """Peak memory of the same runs, training and evaluation among their phases: 10 times the problems over 1 time."""
    runs = _scaled(repeats)
    peaks = {size: statistics.median(run["peak_gb"] for run in found) for size, found in runs.items()}
    return {"value": peaks["10x"] / peaks["1x"], "peak_gb": peaks}


@functools.cache
def _scaled(repeats: int, problems: int = 512) -> dict[str, list[dict[str, Any]]]:
    """The runs of both figures, the sizes by turns."""
    found: dict[str, list[dict[str, Any]]] = {"1x": [], "10x": []}
    for _ in range(repeats):
        for size, count in (("1x", problems), ("10x", 10 * problems)):
            with tempfile.TemporaryDirectory() as folder:
                asked = [f"dataset.train_size={count}", "dataset.heldout_size=100", "rounds=1", "verify.workers=1"]
                peak = _run(Path(folder) / "run", asked)
                seconds = read_json(Path(folder) / "run" / "summary.json")["rounds"][0]["seconds"]
                load = os.getloadavg()[0]  # above the number of cores, seconds say little
                found[size].append({"problems": count, "seconds": seconds, "peak_gb": peak, "load": load})
    return found


def million(trajectories: int = 1_000_000, samples: int = 16) -> dict[str, Any]:
    """A scripted policy's short answers to arithmetic problems through verify, filter, report.html and compare. The
    value is the largest memory, in GB, that any of the processes' trees held; `seconds` has each step's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = [
            "engine=scripted",
            "engine.wrong_values=8",
            "method.needs=[]",
            f"dataset.train_size={trajectories // samples}",
            "dataset.levels=[4,5,6]",
            f"method.generate.n={samples}",
            "+train._target_=bench_scale.nothing",
            "rounds=1",
        ]
        begun = time.perf_counter()
        peaks = {"run": _run(folder / "run", asked)}
        whole = time.perf_counter() - begun
        summary = read_json(folder / "run" / "summary.json")
        seconds = summary["rounds"][0]["seconds"]
        for words in (["report"], ["compare", "--out", str(folder / "compare.html")]):
            begun = time.perf_counter()
            peaks[words[0]] = _peak([*words, str(folder / "run")], folder)
            seconds[words[0]] = time.perf_counter() - begun
        path = folder / "run" / "rounds" / "000"
        return {
            "value": max(peaks.values()),
            "peak_gb": peaks,
            "seconds": seconds,
            "run_seconds": whole,
            "trajectories": count_records(path / "trajectories.parquet"),
            "examples": count_records(path / "examples.parquet"),
            "file_gb": sum(f.stat().st_size for f in path.glob("*.parquet")) / 1e9,
        }


def passes_256() -> dict[str, Any]:
    """Seconds a pass of a run of 256 passes ÷ those of a run of 16: the exact model of 20 outcomes, a pass a round."""
    each = {}
    with tempfile.TemporaryDirectory() as scratch:
        for passes in (16, 256):
            path = Path(scratch) / str(passes)
            sizes = ["dataset.train_size=64", "dataset.heldout_size=20", "verify.workers=1"]
            _run(path, ["experiment=curated_categorical", f"rounds={passes}", *sizes])
            begun = (path / "base" / "evaluate.manifest.json").stat().st_mtime
            ended = (path / "rounds" / f"{passes - 1:03d}" / "metrics.json").stat().st_mtime
            each[passes] = (ended - begun) / passes
    return {"value": each[256] / each[16], "seconds_a_pass": {str(n): round(s, 4) for n, s in each.items()}}


def _run(path: Path, overrides: Sequence[str]) -> float:
    """`selfimprove run` into the folder `path`: its peak memory in GB."""
    return _peak(["run", f"hydra.run.dir={path}", "tracker=none", *overrides], path.parent)


def _peak(arguments: Sequence[str], folder: Path) -> float:
    """Run `selfimprove ARGUMENTS`: the most memory in GB that it and its children held together, looked at ten times a
    second. Pages that several of them share are counted once (PSS). Raises RuntimeError where the command fails."""
    import psutil

    own = environment() | {"OMP_NUM_THREADS": "1"}
    with (folder / "said").open("w+") as said:
        process = psutil.Popen(command(*arguments), stdout=said, stderr=said, stdin=subprocess.DEVNULL, env=own)
        most = 0
        while process.poll() is None:
            held = 0
            for one in (process, *_children(process)):
                try:
                    held += one.memory_full_info().pss
                except psutil.Error:  # it ended while it was looked at
                    continue
            most = max(most, held)
            time.sleep(0.1)
        said.seek(0)
        if process.returncode:
            raise RuntimeError(f"selfimprove {' '.join(arguments)} failed: {said.read()[-2000:]}")
    return most / 1e9


def _children(process: Any) -> list[Any]:
    import psutil

    try:
        return process.children(recursive=True)  # type: ignore[no-any-return]
    except psutil.Error:
        return []
