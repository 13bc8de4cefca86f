"""One process of a training phase: `python -m selfimprove.train.worker JOB PARENT`.

JOB is the file that `selfimprove.train.launch` wrote. PARENT is the id of the process that started this one; this one
dies with it. Beside JOB stand the main process's step figures and result, and each process's error.
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
PATHS = ("out", "parts", "state", "last_state")  # fields of the context that are paths, or None


def work(job: dict[str, Any], folder: Path) -> dict[str, float]:
    """Do a job. Returns the figures of its train function, and appends step figures to `STEPS`."""
    fields = job["context"]
    fields |= {key: fields[key] and Path(fields[key]) for key in PATHS} | {"training": Training(**fields["training"])}
    with (folder / STEPS).open("a", encoding="utf-8", buffering=1) as lines:  # a line at a time
        context = TrainContext(**fields, log=lambda figures: print(json.dumps(figures), file=lines))
        rows = list(store.read_records(Path(job["rows"]), Example))
        return bind(job["node"], "train")(rows, context)  # type: ignore[no-any-return]


def main() -> None:
    path, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    rank = os.environ.get("RANK", "0")
    try:
        result = work(store.read_json(path), path.parent)
    except Exception as problem:
        said = {"kind": type(problem).__name__, "message": str(problem), "key": getattr(problem, "key", "")}
        store.write_json(path.with_name(f"error-{rank}.json"), said | {"time": time.monotonic()})
        raise
    if rank == "0":
        store.write_json(path.parent / RESULT, result)


if __name__ == "__main__":
    main()
