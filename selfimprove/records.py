"""Records in Parquet files: written and read as streams, read by column, and made part by part."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import types
from selfimprove.digests import file_digest
from selfimprove.errors import Damaged
from selfimprove.files import new_file, new_folder, rename

log = logging.getLogger("selfimprove")


def write_records(
    path: Path, records: Iterable[Any], kind: type, chunk: int = 1024, note: dict[str, int] | None = None
) -> int:
    """Stream records of one type into a Parquet file. `note` goes into its metadata. Returns the number of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    schema = types.schemas()[kind]
    if note is not None:
        schema = schema.with_metadata({**schema.metadata, "note": json.dumps(note)})
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches(records, chunk):
            writer.write_table(types.to_table(batch, kind).cast(schema))
            count += len(batch)
    return count


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file. Raises Damaged if it cannot be read, also inside the block."""
    try:
        with pq.ParquetFile(path) as file:
            require_schema(path, file.schema_arrow.metadata)
            yield file
    except FileNotFoundError:
        raise Damaged(path, "is missing") from None
    except KeyError as problem:
        raise Damaged(path, f"cannot be read: it has no column {problem}") from None
    except (OSError, ValueError, pa.ArrowException) as problem:
        raise Damaged(path, f"cannot be read ({' '.join(str(problem).split())})") from None


def require_schema(path: Path, metadata: Mapping[bytes, bytes] | None) -> None:
    """Raises Damaged for a Parquet file of a newer version."""
    version = (metadata or {}).get(b"schema", b"1")
    if not version.isdigit() or int(version) > types.SCHEMA:
        said = f"is of a newer version of selfimprove (schema {version.decode(errors='replace')})"
        raise Damaged(path, f"{said}; this one reads schemas up to {types.SCHEMA}")


def read_records(path: Path, kind: type, chunk: int = 1024, start: int = 0) -> Iterator[Any]:
    """Stream the records of a Parquet file, from row `start` on; memory holds one chunk at a time.

    A column that an older version did not write has its field's default. Raises Damaged.
    """
    with opened(path) as file:
        for batch in file.iter_batches(batch_size=chunk):
            if start >= batch.num_rows:
                start -= batch.num_rows
                continue
            yield from types.from_rows(batch.slice(start).to_pylist(), kind)
            start = 0


def read_columns(path: Path, kind: type, columns: Sequence[str]) -> pa.Table:
    """Some columns of a file of records. A column that an older version did not write has its field's default.

    Raises Damaged.
    """
    with opened(path) as file:
        table = file.read(columns=list(columns), use_threads=False)
        return completed(table, kind, columns)


def completed(table: pa.Table, kind: type, columns: Sequence[str]) -> pa.Table:
    """The table with these columns, in this order. Raises KeyError for a missing one whose field has no default."""
    for name in columns:
        if name not in table.column_names:
            make = types.defaults(kind)[name]
            if make is None:
                raise KeyError(name)
            value = json.dumps(make()) if name == "metadata" else make()
            kept = pa.array([value] * table.num_rows, types.schemas()[kind].field(name).type)
            table = table.append_column(name, kept)
    return table.select(list(columns))


def count_records(path: Path) -> int:
    with opened(path) as file:
        return int(file.metadata.num_rows)


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


_PART = re.compile(r"(\d+)-(\d+)-(\w+)\.parquet")


class Parts:
    """A Parquet file that is made in parts. Each part holds the outputs of consecutive inputs, in a folder beside the
    final file.

    A part is named `from-to-hash.parquet`. Only complete parts count, and only as far as they follow each other from 0.
    """

    def __init__(self, path: Path, key: str, kind: type) -> None:
        """`key` is the phase's key. Parts of another configuration are removed, and so are those behind a gap."""
        self.path, self.kind = path, kind
        self.folder = path.with_suffix(".parts")
        if self.folder.exists() and self._key() != key:
            log.warning("%s: its parts belong to another configuration; they are done again", self.folder)
            shutil.rmtree(self.folder)
        if not self.folder.exists():
            with new_folder(self.folder) as folder:
                (folder / "key").write_text(key)
        self._parts = self._whole()

    def _key(self) -> str:
        try:
            return (self.folder / "key").read_text()
        except (OSError, ValueError):
            return ""

    def _whole(self) -> list[tuple[int, Path]]:
        """End and file of each part that counts. The others are removed, with one line that names the first of them."""
        found = [(int(m[1]), int(m[2]), m[3], f) for f in self.folder.glob("*") if (m := _PART.fullmatch(f.name))]
        kept: list[tuple[int, Path]] = []
        reached, why = 0, ""
        for start, end, expected, file in sorted(found):
            if not why and start != reached:
                why = f"the part from {reached} on is missing"
            elif not why and file_digest(file) != expected:
                why = f"{file.name} is damaged"
            if why:
                file.unlink()
            else:
                kept.append((end, file))
                reached = end
        if why:
            log.warning("%s: %s; it is done again from %d on", self.folder, why, reached)
        return kept

    @property
    def done(self) -> int:
        """The number of inputs whose outputs are on disk."""
        return self._parts[-1][0] if self._parts else 0

    def add(self, start: int, end: int, records: list[Any], note: dict[str, int] | None = None) -> None:
        """Write the outputs of inputs `start` to `end`. `note` is what they cost."""
        unnamed = self.folder / "next"
        write_records(unnamed, records, self.kind, note=note)
        named = self.folder / f"{start:09d}-{end:09d}-{file_digest(unnamed)}.parquet"
        rename(unnamed, named)
        self._parts.append((end, named))

    def notes(self) -> dict[str, int]:
        """The sum of all parts' notes."""
        total: Counter[str] = Counter()
        for _, file in self._parts:
            total.update(json.loads((pq.read_schema(file).metadata or {}).get(b"note", b"{}")))
        return dict(total)

    def finish(self, change: Callable[[pa.Table], pa.Table] | None = None) -> None:
        """Join the parts into one file. `change` is applied to the whole table."""
        schema = types.schemas()[self.kind]
        files = [file for _, file in self._parts]
        with new_file(self.path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            if change is None:
                for file in files:
                    writer.write_table(pq.read_table(file).replace_schema_metadata(schema.metadata))
            else:
                tables = [pq.read_table(file).replace_schema_metadata(schema.metadata) for file in files]
                writer.write_table(change(pa.concat_tables(tables)))
