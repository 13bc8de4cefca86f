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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import types
from selfimprove.errors import ConfigError


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
    """A run folder, and which of its phases are done.

    Phases are numbered by pass: a round has `refresh` of them, each by the policy that the one before trained.
    """

    def __init__(self, path: Path, refresh: int = 1) -> None:
        self.path, self.refresh = path, refresh
        self.found: list[str] = []  # phases that this process found whole

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

    def round(self, number: int) -> Path:
        """The folder of a pass; -1 is the base policy's, which is only evaluated."""
        return self.path / "base" if number < 0 else self.path / "rounds" / self._label(number, 3)

    def _label(self, number: int, digits: int = 1) -> str:
        round_number, part = divmod(number, self.refresh)
        width = len(str(self.refresh - 1))  # so that names sort
        return f"{round_number:0{digits}d}" + (f".{part:0{width}d}" if self.refresh > 1 else "")

    def prefix(self, number: int) -> str:
        """What the ids of a pass's trajectories begin with: "base", "r2", or "r2.1" where a round has several."""
        return "base" if number < 0 else f"r{self._label(number)}"

    def where(self, number: int) -> dict[str, int]:
        """Which round a pass belongs to, for a line of metrics.jsonl; and which part of it, where it has several."""
        if self.refresh == 1 or number < 0:
            return {"round": number}
        return {"round": number // self.refresh, "part": number % self.refresh}

    def manifest(self, number: int, phase: str) -> dict[str, Any] | None:
        path = self.round(number) / f"{phase}.manifest.json"
        return read_json(path) if path.exists() else None

    def made(self, number: int, phase: str) -> dict[str, str]:
        """The hashes of what a finished phase wrote: what the phases after it depend on."""
        manifest = self.manifest(number, phase)
        assert manifest is not None, f"{phase} of round {number} is not done"
        return manifest["outputs"]  # type: ignore[no-any-return]

    def discard(self, number: int, phase: str) -> None:
        """Forget what an earlier configuration made of a phase, before it is done again."""
        if self.manifest(number, phase) is not None:
            (self.round(number) / f"{phase}.manifest.json").unlink()
            self.trim_log()

    def done(self, number: int, phase: str, key: str) -> dict[str, Any] | None:
        """The manifest of a phase that is whole and was made from the same things; else None."""
        manifest = self.manifest(number, phase)
        if manifest is None or manifest["key"] != key:
            return None
        folder = self.round(number)
        for name, expected in manifest["outputs"].items():
            if not (folder / name).exists() or file_digest(folder / name) != expected:
                return None
        self.found.append(f"{folder.name}/{phase}")
        return manifest

    def finish(
        self, number: int, phase: str, key: str, outputs: list[str], metrics: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Write a phase's manifest, which makes it done."""
        folder = self.round(number)
        manifest = {
            "phase": phase,
            "key": key,
            "outputs": {name: file_digest(folder / name) for name in outputs},
            "metrics": metrics,
            "seconds": round(seconds, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(folder / f"{phase}.manifest.json", manifest)
        for name in outputs:  # until now the parts were what a resume would have started from
            shutil.rmtree((folder / name).with_suffix(".parts"), ignore_errors=True)
        return manifest

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def trim_log(self) -> None:
        """Drop the lines of phases that are not done: a resumed phase writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # a line that a kill cut short
                continue
            number = record["round"]
            number = number if number < 0 else number * self.refresh + record.get("part", 0)
            if self.manifest(number, record["phase"]) is not None:
                kept.append(line + "\n")
        write_text(path, "".join(kept))
