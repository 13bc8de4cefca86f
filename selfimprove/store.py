"""The run folder: every file in and out goes through here.

A file appears by atomic rename or not at all. A phase is done when its manifest is there and still fits: the manifest
holds a hash of what the phase depends on and the hashes of what it wrote. Long phases write numbered parts, so that a
kill loses at most one part; the parts become one file when the phase ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import types
from selfimprove.errors import ConfigError

if TYPE_CHECKING:
    from selfimprove.plan import Pass


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a process killed in the middle, sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        yield temporary
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: whatever an interrupted attempt left is removed first."""
    temporary = path.with_name(f".{path.name}.new")
    for leftover in (temporary, path):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for file in temporary.rglob("*"):
        if file.is_file():
            _sync(file)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file, or of every file below a folder."""
    if path.is_dir():
        return digest({str(f.relative_to(path)): file_digest(f) for f in sorted(path.rglob("*")) if f.is_file()})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# Records


def write_records(
    path: Path, records: Iterable[Any], kind: type, chunk: int = 1024, note: dict[str, int] | None = None
) -> int:
    """Stream records of one type into a Parquet file, `note` into its metadata; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    schema = types.schemas()[kind]
    if note is not None:
        schema = schema.with_metadata({"note": json.dumps(note)})
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches(records, chunk):
            writer.write_table(types.to_table(batch, kind).cast(schema))
            count += len(batch)
    return count


def read_records(path: Path, kind: type, chunk: int = 1024, start: int = 0) -> Iterator[Any]:
    """Stream the records of a Parquet file, from row `start` on; memory holds one chunk at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=chunk):
            if start >= batch.num_rows:
                start -= batch.num_rows
                continue
            yield from types.from_rows(batch.slice(start).to_pylist(), kind)
            start = 0


def count_records(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class Parts:
    """A Parquet file in the making: parts `from-to` of consecutive inputs, in a folder beside the final file."""

    def __init__(self, path: Path, key: str, kind: type) -> None:
        """`key` is the phase's: parts that another configuration left are thrown away."""
        self.path, self.kind = path, kind
        self.folder = path.with_suffix(".parts")
        if self.folder.exists() and self._key() != key:
            shutil.rmtree(self.folder)
        if not self.folder.exists():
            with new_folder(self.folder) as folder:
                (folder / "key").write_text(key)

    def _key(self) -> str:
        try:
            return (self.folder / "key").read_text()
        except OSError:
            return ""

    def _files(self) -> list[tuple[int, int, Path]]:
        found = [(*map(int, f.stem.split("-")), f) for f in self.folder.glob("[0-9]*-*.parquet")]
        return sorted(found)  # type: ignore[arg-type]

    @property
    def done(self) -> int:
        """How many inputs have their outputs on disk."""
        return max((end for _, end, _ in self._files()), default=0)

    def add(self, start: int, end: int, records: list[Any], note: dict[str, int] | None = None) -> None:
        """Inputs `start` to `end` have these outputs; `note` is what they cost."""
        write_records(self.folder / f"{start:09d}-{end:09d}.parquet", records, self.kind, note=note)

    def notes(self) -> dict[str, int]:
        """The sum of all parts' notes."""
        total: Counter[str] = Counter()
        for _, _, file in self._files():
            total.update(json.loads((pq.read_schema(file).metadata or {}).get(b"note", b"{}")))
        return dict(total)

    def finish(self, change: Callable[[pa.Table], pa.Table] | None = None) -> None:
        """Make the parts one file; `change` is applied to the whole table."""
        files = [file for _, _, file in self._files()]
        with (
            new_file(self.path) as temporary,
            pq.ParquetWriter(temporary, types.schemas()[self.kind], compression="zstd") as writer,
        ):
            if change is None:
                for file in files:
                    writer.write_table(pq.read_table(file).replace_schema_metadata())
            else:
                writer.write_table(
                    change(pa.concat_tables([pq.read_table(file).replace_schema_metadata() for file in files]))
                )


# Phases


class Run:
    """A run folder, and which of its phases are done. A phase belongs to a pass (`selfimprove.plan`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []  # phases that this process found whole
        self._manifests: dict[tuple[str, str], dict[str, Any]] = {}  # those read so far; none changes but by `discard`

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises ConfigError when it is held already."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a+") as file:
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
                fcntl.flock(file, fcntl.LOCK_UN)  # closing does not do where a forked process has the file too

    def folder(self, step: Pass) -> Path:
        """The folder of a pass; that of the base policy, which is only evaluated, is `base`."""
        return self.path / "base" if step.number < 0 else self.path / "rounds" / step.label

    def prefix(self, step: Pass) -> str:
        """What the ids of a pass's trajectories begin with."""
        return step.prefix

    def where(self, step: Pass) -> dict[str, int | str]:
        """Which pass a line of metrics.jsonl is about."""
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
        """The hashes of what a finished phase wrote: what the phases after it depend on."""
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
        """Forget what an earlier configuration made of a phase, before it is done again."""
        if (manifest := self.manifest(step, phase)) is not None:
            (self.folder(step) / f"{phase}.manifest.json").unlink()
            for name in manifest["outputs"]:
                self._mark(step, name).unlink(missing_ok=True)
            del self._manifests[step.label, phase]
            self.trim_log(lambda record: (record.get("pass"), record["phase"]) != (step.number, phase))

    def done(self, step: Pass, phase: str, key: str) -> dict[str, Any] | None:
        """The manifest of a phase that is whole and was made from the same things; else None."""
        manifest = self.manifest(step, phase)
        if manifest is None or manifest["key"] != key:
            return None
        folder = self.folder(step)
        for name, expected in manifest["outputs"].items():
            if not self._mark(step, name).exists() and not self._is(step, name, expected):
                return None
        self.found.append(f"{folder.name}/{phase}")
        return manifest

    def let_go(self, step: Pass, phase: str) -> None:
        """Remove the folders that a finished phase wrote; it stays done. Each leaves a mark, NAME.let_go."""
        for name in self.made(step, phase):
            mark = self._mark(step, name)
            if not mark.exists():
                write_text(mark, "")
            shutil.rmtree(self.folder(step) / name, ignore_errors=True)

    def whole(self, step: Pass, phase: str) -> bool:
        """Whether all that a finished phase wrote is there. What was let go of and made again is compared by hash."""
        return all(
            self._is(step, name, expected) if self._mark(step, name).exists() else (self.folder(step) / name).exists()
            for name, expected in self.made(step, phase).items()
        )

    def _is(self, step: Pass, name: str, expected: str) -> bool:
        path = self.folder(step) / name
        return path.exists() and file_digest(path) == expected

    def _mark(self, step: Pass, name: str) -> Path:
        return self.folder(step) / f"{name}.let_go"

    def finish(
        self, step: Pass, phase: str, key: str, outputs: list[str], metrics: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Write a phase's manifest, which makes it done."""
        folder = self.folder(step)
        manifest = {
            "phase": phase,
            "key": key,
            "outputs": {name: file_digest(folder / name) for name in outputs},
            "metrics": metrics,
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(folder / f"{phase}.manifest.json", manifest)
        self._manifests[step.label, phase] = manifest
        for name in outputs:  # until now the parts were what a resume would have started from
            shutil.rmtree((folder / name).with_suffix(".parts"), ignore_errors=True)
        return manifest

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def trim_log(self, keeps: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines of metrics.jsonl that `keeps` is false of, and one that a kill cut short."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line that a kill cut short
                continue
            if keeps(record):
                kept.append(line + "\n")
        write_text(path, "".join(kept))
