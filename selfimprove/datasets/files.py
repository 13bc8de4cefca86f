"""Reads rows of JSON lines (also gzipped) and Parquet files. The content, not only the name, decides the format."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from selfimprove.errors import ConfigError

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".pq")
DEEP = 100  # most levels of lists and objects in a row: more than real data has, less than Python's JSON can read


def read_rows(path: Path, key: str = "dataset.path") -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", fields) of each row of a .jsonl, .jsonl.gz or .parquet file, one at a time, without blank lines.

    Values of Parquet that JSON lacks become text: dates in ISO 8601, decimals digit by digit, bytes as UTF-8 if they
    are, else in base64. Raises ConfigError if the file cannot be read or a line is not a JSON object; `key` is the
    key that names the file.
    """
    require_file(path, key)
    rows = _parquet(path) if _is_parquet(path) else _lines(path, key)
    try:
        yield from rows
    except UnicodeDecodeError as error:
        wide = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        fault = "it is UTF-16; save it as UTF-8" if wide else f"it is no UTF-8 text: {error.reason}"
        raise ConfigError(f"{key}: {path} cannot be read ({fault})", key) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise ConfigError(f"{key}: {path} cannot be read ({reason})", key) from error
    except (ValueError, OverflowError, NotImplementedError) as error:  # from pyarrow
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key}: {path} cannot be read as Parquet ({reason:.200})", key) from error


def require_file(path: Path, key: str) -> None:
    """Raises ConfigError if a path is not a readable file, and says what would be right."""
    if path.is_dir():
        files = sorted(p.name for p in path.rglob("*") if is_data(p))
        inside = f"; it has {len(files)}, the first is {files[0]}: name one, or join them" if files else ""
        raise ConfigError(f"{key}: {path} is a folder; it must be one file ({', '.join(SUFFIXES)}){inside}", key)
    if path.exists() and not path.is_file():
        raise ConfigError(f"{key}: {path} is a device or a pipe; it must be a file", key)
    try:
        path.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: the name has a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{key}: {path} cannot be read ({reason})", key) from None


def is_data(path: Path) -> bool:
    """Whether a path has the suffix of a file of rows."""
    return path.name.lower().endswith(SUFFIXES)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1" or path.suffix.lower() in (".parquet", ".pq")


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        rows = (fields for batch in table.iter_batches() for fields in batch.to_pylist())
        for number, fields in enumerate(rows, start=1):
            yield f"{path}:{number}", {str(name): _plain(value) for name, value in fields.items()}


def _plain(value: Any) -> Any:
    """A value from Parquet as one that JSON has."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)  # durations, UUIDs


def _lines(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", _parse(line.lstrip("\ufeff"), f"{path}:{number}", key)


def _open_text(path: Path) -> IO[str]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b" or path.suffix.lower() == ".gz"
    return gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8")


def _parse(line: str, where: str, key: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error.msg} at column {error.colno})", key) from None
    except ValueError as error:  # a number with thousands of digits
        raise ConfigError(f"{where}: cannot be read ({error})", key) from None
    except RecursionError:
        raise ConfigError(f"{where}: is nested too deeply, {DEEP} levels at most", key) from None
    if not isinstance(fields, dict):
        kind = {list: "list", str: "text", type(None): "null"}.get(type(fields), type(fields).__name__)
        raise ConfigError(f"{where}: a JSON object is needed on each line, and this is a {kind}", key)
    if line.count("[") + line.count("{") > DEEP and _depth(fields) > DEEP:
        raise ConfigError(f"{where}: is nested too deeply, {DEEP} levels at most", key)
    if "\\ud" in line.lower():
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{where}: has half a surrogate pair (\\ud8..), which is no text", key) from None
    return fields


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
