"""Kills runs at chosen instants, resumes them, and compares them with one that was left alone.

    python tests/kill_driver.py FOLDER OVERRIDES POINT...

OVERRIDES are one argument, separated by blanks, as in "method=iterative_dpo method.parts=2". A point is `replace:K`
(the K-th atomic rename of the run), `manifest:PASS/PHASE` (right after that phase is done), `step:K` (the K-th decoding
step), `train:K` (the K-th optimiser step) or `verdict:K` (the K-th check); `replace:all` is every rename. The process
that runs is a fork, so that imports are paid once, and dies by SIGKILL, which nothing can catch. Prints a line a point
and exits with 1 when any differs.

Tests ask for the same by `tests.forks.drive`. The run that is left alone is then made once for all questions with the
same overrides.
"""

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

import selfimprove.policy.hf
import selfimprove.run
import selfimprove.train.trainers  # noqa: F401  (imports that every child would pay for)
from selfimprove import files, store
from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.policy.hf import TransformersEngine
from selfimprove.verify.pool import Pool

OVERRIDES = [
    "rounds=2",
    "dataset.levels=[2,3]",
    "dataset.train_size=6",
    "dataset.heldout_size=5",
    "hardware.shard=4",
    "verify.workers=1",
    "tracker=none",
]


def child(work) -> int:
    """Run `work` in a fork; returns its exit code, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm() -> None:
    """Do once what each fork would do for itself."""
    compose([])  # Hydra's plugins and the tables of its grammar
    gc.collect()
    gc.freeze()  # or a fork that looks for garbage copies all that it looks at


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> None:
    """Have this process die at `point`."""
    kind, _, where = point.partition(":")
    calls = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == int(where):
                die()
            return function(*arguments, **keywords)

        return call

    if kind == "replace":
        files.os = type("os", (), {**vars(os), "replace": staticmethod(counted(os.replace))})
    elif kind == "step":
        TransformersEngine._decode = counted(TransformersEngine._decode)
    elif kind == "train":
        log, lines = store.Run.log, counted(lambda: None)

        def logged(self, record):
            log(self, record)
            if record["phase"] == "train" and "step" in record:
                lines()

        store.Run.log = logged
    elif kind == "verdict":
        run = Pool.run

        def outcomes(self, items):
            touch = counted(lambda: None)
            for outcome in run(self, items):
                touch()
                yield outcome

        Pool.run = outcomes
    elif kind == "manifest":
        finish = store.Run.finish

        def finished(self, step, phase, *rest):
            finish(self, step, phase, *rest)
            if f"{step.number}/{phase}" == where:
                die()

        store.Run.finish = finished
    else:
        sys.exit(f"unknown point {point}")


def start(folder: Path, overrides: str) -> int:
    words = overrides.split()
    other = any(word.startswith("dataset=") for word in words)  # which has no levels
    own = [word for word in OVERRIDES if not (other and word.startswith("dataset.levels"))]
    return _main(["run", *own, *words, f"hydra.run.dir={folder}"])


def timeless(value):
    """A JSON value without what a clock decides."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if "second" not in k and k not in ("finished", "runtime")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, object]:
    """Everything a run left, comparable: tables, metrics, weights."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        said = path.name in ("environment.json", "run.log", "train.log", "report.html", ".lock")
        if path.is_dir() or said:
            continue
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path).to_pylist()
        elif path.suffix == ".json":
            value = timeless(store.read_json(path))
            if name.endswith(".manifest.json"):
                # Parquet and JSON files are compared by content above and below; weights here, byte for byte.
                value["outputs"] = {k: v for k, v in value["outputs"].items() if k in ("policy", "state")}
            found[name] = value
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in path.read_text().splitlines()]
        else:
            found[name] = store.file_digest(path)
    return found


def left_alone(folder: Path, overrides: str) -> int:
    """Make the run that is left alone; returns how many renames it took."""
    counter = folder.with_suffix(".renames")

    def count() -> int:
        renames = 0
        replace = os.replace

        def counted(*arguments):
            nonlocal renames
            renames += 1
            replace(*arguments)

        files.os = type("os", (), {**vars(os), "replace": staticmethod(counted)})
        code = start(folder, overrides)
        counter.write_text(str(renames))
        return code

    if child(count):
        sys.exit(f"the run that was left alone failed: {overrides}")
    return int(counter.read_text())


def lines(folder: Path, reference: Path, renames: int, overrides: str, points: list[str]) -> Iterator[str]:
    """What becomes of a run that is killed at each point and resumed."""
    expected = contents(reference)
    if points == ["replace:all"]:
        points = [f"replace:{k}" for k in range(1, renames + 1)]
    for point in points:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)

        def killed(point=point, run=run) -> int:
            arm(point)
            return start(run, overrides)

        code = child(killed)
        left = "no run folder yet"
        if (run / "config.yaml").exists():
            again = child(lambda run=run: _main(["resume", str(run), "--allow", "tests"]))
            left = f"resume exits with {again}"
        else:  # died before the run began: nothing was done, and the same command starts it
            again = child(lambda run=run: start(run, overrides))
        found = contents(run)
        differing = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        good = code == -signal.SIGKILL and again == 0 and not differing
        yield f"{point}: exit {code}, {left}, {'equal' if good else f'DIFFERS: {sorted(differing)[:5]}'}"


def answer(folder: str, overrides: str, *points: str, made: dict[str, tuple[Path, int]]) -> list[str]:
    """What becomes of such runs. `made` keeps the runs that were left alone, by their overrides."""
    if overrides not in made:
        reference = Path(folder) / "reference"
        made[overrides] = reference, left_alone(reference, overrides)
    return list(lines(Path(folder), *made[overrides], overrides, list(points)))


def main() -> int:
    folder, overrides, *points = sys.argv[1:]
    reference = Path(folder) / "reference"
    renames = left_alone(reference, overrides)
    failed = False
    for line in lines(Path(folder), reference, renames, overrides, points):
        print(line, flush=True)
        failed |= not line.endswith("equal")
    return failed


if __name__ == "__main__":
    sys.exit(main())
