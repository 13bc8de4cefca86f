"""Files that are complete or not there, and JSON and YAML that show whether they were changed.

A file appears by atomic rename. A JSON object ends in a checksum, and a run's configuration begins with one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from selfimprove import types
from selfimprove.errors import ConfigError, Damaged

log = logging.getLogger("selfimprove")


def write_text(path: Path, text: str) -> None:
    """Write a file at once. A reader sees the old file or the new one, even if this process is killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


_SEAL = re.compile(r',\n  "checksum": "([0-9a-f]{16})"\n}\n\Z')


def sealed(text: str) -> str:
    """The text of a JSON object, as `write_json` writes it, with the schema's version and a checksum of the rest."""
    body = text.removesuffix("\n}\n") + f',\n  "schema": {types.SCHEMA}'
    return f'{body},\n  "checksum": "{_checksum(body)}"\n}}\n'


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object that is not empty, with a checksum by which `read_json` knows when it is damaged."""
    write_text(path, sealed(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))


def _checksum(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises Damaged if it is not JSON, or not what `write_sealed` wrote."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
    except FileNotFoundError:
        raise Damaged(path, "is missing") from None
    except (ValueError, RecursionError) as problem:
        raise Damaged(path, f"is damaged: not JSON ({problem})") from None
    if (seal := _SEAL.search(text)) and _checksum(text[: seal.start()]) != seal[1]:
        raise Damaged(path, "was changed after it was written: its checksum does not fit")
    if isinstance(value, dict) and value.pop("checksum", None) and value.pop("schema", 1) > types.SCHEMA:
        raise Damaged(path, f"is of a newer version of selfimprove; this one reads schemas up to {types.SCHEMA}")
    return value


_HEAD = re.compile(r"# selfimprove schema (\d+), sha256 ([0-9a-f]{64})\b.*\n")


def write_config(path: Path, text: str) -> None:
    """Write a run's configuration, YAML, under a line with the schema's version and a checksum."""
    said = f"# selfimprove schema {types.SCHEMA}, sha256 {sha256(text.encode()).hexdigest()}"
    write_text(path, f"{said} of what follows. After an edit by hand, remove this line.\n{text}")


def read_config(path: Path) -> dict[str, Any]:
    """A run's configuration as plain data. Raises Damaged if it is not YAML, or not what `write_config` wrote."""
    try:
        text = path.read_text(encoding="utf-8")
        head = _HEAD.match(text)
        if head and int(head[1]) > types.SCHEMA:
            raise Damaged(path, f"is of a newer version of selfimprove; this one reads schemas up to {types.SCHEMA}")
        if head and sha256(text[head.end() :].encode()).hexdigest() != head[2]:
            raise Damaged(path, "was changed after the run wrote it; if you meant to, remove its first line")
        found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent}: no run folder (it has no {path.name})") from None
    except (ValueError, RecursionError, yaml.YAMLError) as problem:
        raise Damaged(path, f"is damaged: not YAML ({' '.join(str(problem).split())})") from None
    if not isinstance(found, dict):
        raise Damaged(path, "is no run's configuration")
    return found


def read_or_none(path: Path) -> Any:
    """As `read_json`, for a file that can be made again. None if it is missing or damaged; the log says the latter."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except Damaged as problem:
        log.warning("%s; it is made again", problem)
        return None


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
    rename(temporary, path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The same for a folder. The rest of an interrupted attempt is removed first."""
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
    rename(temporary, path)


def rename(path: Path, name: Path) -> None:
    """Rename a file or folder, over what had that name."""
    os.replace(path, name)
    _sync(name.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
