"""One process of a training phase: `python -m selfimprove.train.worker JOB PARENT`.

JOB is the file that `selfimprove.train.launch` wrote. PARENT is the id of the process that started this one, and this
one ends with it. The main process's step figures and result, and each process's error, are files beside JOB.

If JOB names a file `next`, this process stays when the job is done. It then does the jobs that the file names.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from selfimprove import store
from selfimprove.binding import bind
from selfimprove.processes import die_with
from selfimprove.schema import Training
from selfimprove.train import TrainContext
from selfimprove.types import Example

STEPS, RESULT = "steps.jsonl", "result.json"
PAUSE = 0.05  # seconds between two looks for the next job
PATHS = ("out", "parts", "state", "last_state")  # fields of the context that are paths, or None


def work(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Do a job. Returns the figures of its train function, and appends step figures to `STEPS`."""
    fields = job["context"]
    fields |= {key: fields[key] and Path(fields[key]) for key in PATHS} | {"training": Training(**fields["training"])}
    with (folder / STEPS).open("a", encoding="utf-8", buffering=1) as lines:  # a line at a time
        context = TrainContext(**fields, log=lambda figures: print(json.dumps(figures), file=lines))
        rows = list(store.read_records(Path(job["rows"]), Example))
        return bind(job["node"], "train")(rows, context)  # type: ignore[no-any-return]


def do(path: Path, rank: str) -> dict[str, Any]:
    """Do the job in the file `path` and write the result. Other processes write `done-RANK`. Returns the job."""
    job: dict[str, Any] = store.read_json(path)
    try:
        result = work(job, path.parent)
    except Exception as problem:
        said = {"kind": type(problem).__name__, "message": str(problem), "key": getattr(problem, "key", "")}
        store.write_json(path.with_name(f"error-{rank}.json"), said | {"time": time.monotonic()})
        raise
    if rank == "0":
        store.write_json(path.parent / RESULT, result)
    else:
        (path.parent / f"done-{rank}").touch()
    return job


def following(path: Path, number: int) -> Path:
    """Wait until the file `path` names the job of this number, and return it."""
    while not path.exists() or (found := store.read_json(path))["number"] != number:
        time.sleep(PAUSE)
    return Path(found["job"])


def main() -> None:
    path, parent, number = Path(sys.argv[1]), int(sys.argv[2]), 1
    die_with(parent)
    while (next_job := do(path, os.environ.get("RANK", "0")).get("next")) is not None:
        number += 1
        path = following(Path(next_job), number)


if __name__ == "__main__":
    main()
