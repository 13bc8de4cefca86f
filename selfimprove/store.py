"""The run folder: every file in and out goes through here.

A phase is done when its manifest is there and still fits. The manifest holds a hash of what the phase depends on and
the hashes of what it wrote. Long phases write numbered parts, so that a kill loses at most one part. The parts become
one file when the phase ends. `selfimprove.files` has files, and `selfimprove.records` has records and parts.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.digests import LET_GO, Digests, digest, file_digest, hashes, unfit
from selfimprove.errors import ConfigError
from selfimprove.files import (
    new_file,
    new_folder,
    read_config,
    read_json,
    read_or_none,
    sealed,
    write_config,
    write_json,
    write_sealed,
    write_text,
)
from selfimprove.records import (
    Parts,
    batches,
    completed,
    count_records,
    opened,
    read_columns,
    read_records,
    write_records,
)

if TYPE_CHECKING:
    from selfimprove.plan import Pass

log = logging.getLogger("selfimprove")

__all__ = [
    "Parts",
    "Run",
    "batches",
    "completed",
    "count_records",
    "digest",
    "file_digest",
    "new_file",
    "new_folder",
    "opened",
    "read_columns",
    "read_config",
    "read_json",
    "read_or_none",
    "read_records",
    "sealed",
    "write_config",
    "write_json",
    "write_records",
    "write_sealed",
    "write_text",
]


WHERE = ("round", "part", "pass", "stage", "phase")  # fields of a line of metrics.jsonl that say where it belongs


class Run:
    """A run folder, and which of its phases are done. A phase belongs to a pass (`selfimprove.plan`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []  # phases that this process found complete
        self._manifests: dict[tuple[str, str], dict[str, Any]] = {}  # those read so far; only `discard` changes them
        self._steps: list[dict[str, Any]] = []  # the training steps that the current phase has logged

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def digests(self) -> Digests:
        return Digests(self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises ConfigError if it is held already."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+", errors="replace") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise ConfigError(
                    f"{self.path} is in use by process {file.read() or '?'}: wait for it or stop it"
                ) from None
            try:
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough if a forked process has the file open too

    def folder(self, step: Pass) -> Path:
        """The folder of a pass. The base policy, which is only evaluated, has the folder `base`."""
        return self.path / "base" if step.number < 0 else self.path / "rounds" / step.label

    def prefix(self, step: Pass) -> str:
        """What the ids of a pass's trajectories begin with."""
        return step.prefix

    def where(self, step: Pass) -> dict[str, int | str]:
        """The fields that say which pass a line of metrics.jsonl is about."""
        found: dict[str, int | str] = {"round": step.round, "pass": step.number}
        if step.stage:
            found["stage"] = step.stage
        if step.parts > 1:
            found["part"] = step.part
        return found

    def manifest(self, step: Pass, phase: str) -> dict[str, Any] | None:
        known = self._manifests.get((step.label, phase))
        if known is None and (path := self.folder(step) / f"{phase}.manifest.json").exists():
            known = self._manifests[step.label, phase] = read_json(path)
        return known

    def made(self, step: Pass, phase: str) -> dict[str, str]:
        """The hashes of what a finished phase wrote. Later phases depend on them."""
        manifest = self.manifest(step, phase)
        assert manifest is not None, f"{phase} of pass {step.label} is not done"
        return manifest["outputs"]  # type: ignore[no-any-return]

    def figures(self, step: Pass) -> Iterator[tuple[str, str, Any]]:
        """(phase, name, value) of all that the finished phases of a pass measured, in the order of their names."""
        for path in sorted(self.folder(step).glob("*.manifest.json")):
            phase = path.name.removesuffix(".manifest.json")
            manifest = self.manifest(step, phase)
            assert manifest is not None
            yield from ((phase, name, value) for name, value in manifest["metrics"].items())

    def discard(self, step: Pass, phase: str) -> None:
        """Remove what a phase wrote under an earlier configuration, before it is done again."""
        if (manifest := self.manifest(step, phase)) is not None:
            (self.folder(step) / f"{phase}.manifest.json").unlink()
            for name in manifest["outputs"]:
                self._mark(step, name).unlink(missing_ok=True)
            del self._manifests[step.label, phase]
            self.trim_log(lambda record: (record.get("pass"), record["phase"]) != (step.number, phase))

    def done(self, step: Pass, phase: str, key: str) -> dict[str, Any] | None:
        """The manifest of a phase that is complete and has the same key. Else None."""
        manifest = self.manifest(step, phase)
        if manifest is None or manifest["key"] != key:
            return None
        folder = self.folder(step)
        if problem := unfit(folder, manifest, self.digests):
            log.warning("%s; %s is done again", problem, phase)
            return None
        self.found.append(f"{folder.name}/{phase}")
        return manifest

    def let_go(self, step: Pass, phase: str) -> None:
        """Remove the folders that a finished phase wrote. The phase stays done. Each leaves a mark, NAME.let_go."""
        for name in self.made(step, phase):
            mark = self._mark(step, name)
            if not mark.exists():
                write_text(mark, "")
            shutil.rmtree(self.folder(step) / name, ignore_errors=True)

    def whole(self, step: Pass, phase: str) -> bool:
        """Whether all that a finished phase wrote is there.

        A folder that was removed and made again is compared by hash.
        """
        return all(
            self._is(step, name, expected) if self._mark(step, name).exists() else (self.folder(step) / name).exists()
            for name, expected in self.made(step, phase).items()
        )

    def _is(self, step: Pass, name: str, expected: str) -> bool:
        path = self.folder(step) / name
        return path.exists() and self.digests.of(path) == expected

    def _mark(self, step: Pass, name: str) -> Path:
        return self.folder(step) / f"{name}{LET_GO}"

    def finish(
        self, step: Pass, phase: str, key: str, outputs: list[str], metrics: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Write a phase's manifest, which makes it done."""
        folder, begin = self.folder(step), time.monotonic()
        made = hashes(folder, outputs, self.digests)
        manifest = {
            "phase": phase,
            "key": key,
            **made,
            "metrics": metrics,
            "seconds": round(seconds, 3),
            "seconds_hashing": round(time.monotonic() - begin, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "where": self.where(step),
        }
        if self._steps:
            manifest["steps"], self._steps = self._steps, []
        write_sealed(folder / f"{phase}.manifest.json", manifest)
        self._manifests[step.label, phase] = manifest
        for name in outputs:  # until now a resume would have started from the parts
            shutil.rmtree((folder / name).with_suffix(".parts"), ignore_errors=True)
        return manifest

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl. The line of a training step is also kept for the phase's manifest."""
        if "step" in record:
            self._steps.append({k: v for k, v in record.items() if k not in WHERE})
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def trim_log(self, keeps: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines of metrics.jsonl for which `keeps` is false, and a line that a kill cut short."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line that a kill cut short
                continue
            if keeps(record):
                kept.append(line + "\n")
        write_text(path, "".join(kept))
