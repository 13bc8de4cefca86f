"""Hashes of values and files. File hashes are remembered, so that weights of 15 GB are read once.

They are remembered in the user's cache, in a file for each folder, and never in the folder itself. So a folder that was
copied or sent is read again. A remembered hash is valid while the file's size, times and inode are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from selfimprove.errors import Damaged

LET_GO = ".let_go"  # behind a folder's name: a mark that it was removed to free disk space, and can be made again
SETTLED = 1.0  # a file is remembered so many seconds after its last change; earlier, a change may not show in its times


def digest(value: Any) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """A short hash of a file, or of every file below a folder."""
    if path.is_dir():
        return digest({str(f.relative_to(path)): file_digest(f) for f in files_below(path)})
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def files_below(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


class Digests:
    """`file_digest` for the files of one folder. It remembers the hashes that earlier processes computed."""

    def __init__(self, root: Path) -> None:
        from selfimprove.policy.models import cache_root

        self.root = root.resolve()
        self._file = cache_root() / "digests" / f"{digest(str(self.root))}.json"
        self._known = self._read()
        self._new = False

    def _read(self) -> dict[str, list[Any]]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        whole = isinstance(found, dict) and all(isinstance(entry, list) and len(entry) == 5 for entry in found.values())
        return found if whole else {}

    def of(self, path: Path) -> str:
        """As `file_digest`. Raises OSError for a missing file."""
        if path.is_dir():
            return digest({str(f.relative_to(path)): self.of(f) for f in files_below(path)})
        found = path.stat()
        state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        name = os.path.relpath(path.resolve().parent / path.name, self.root)
        known = self._known.get(name, [])
        if known[:-1] == state:
            return str(known[-1])
        begun = time.time_ns()
        made = file_digest(path)
        if begun - max(found.st_mtime_ns, found.st_ctime_ns) > SETTLED * 1e9:
            self._known[name], self._new = [*state, made], True
        return made

    def save(self) -> None:
        """Write new hashes to the cache. If it cannot be written, they are not kept."""
        if not self._new:
            return
        self._new = False
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(temporary, self._file)
        except OSError:
            with suppress(OSError):
                temporary.unlink()


def hashes(folder: Path, outputs: Sequence[str], digests: Digests) -> dict[str, dict[str, str]]:
    """A manifest's hashes: `outputs` has one of each file and folder of a phase, and `files` one of each file inside.

    By the second a damaged file can be named.
    """
    inside: dict[str, str] = {}
    found: dict[str, str] = {}
    for name in outputs:
        path = folder / name
        if path.is_dir():  # a folder's hash is made from its files' hashes, so each file is read once
            files = {str(f.relative_to(path)): digests.of(f) for f in files_below(path)}
            inside |= {f"{name}/{file}": value for file, value in files.items()}
            found[name] = digest(files)
        else:
            found[name] = digests.of(path)
    return {"outputs": found, "files": inside}


def unfit(folder: Path, manifest: Mapping[str, Any], digests: Digests) -> Damaged | None:
    """The first file of `folder` that is missing or differs from its manifest. None if all are as written."""
    outputs, inside = manifest["outputs"], manifest.get("files", {})
    for name in outputs:
        if (folder / f"{name}{LET_GO}").exists():
            continue
        if not (folder / name).exists():
            return Damaged(folder / name, "is missing")
        if digests.of(folder / name) != outputs[name]:
            for file in (folder / other for other in inside if other.startswith(f"{name}/")):
                if not file.exists():
                    return Damaged(file, "is missing")
                if digests.of(file) != inside[str(file.relative_to(folder))]:
                    return Damaged(file, "is damaged: it does not fit its manifest")
            return Damaged(folder / name, "is damaged: it does not fit its manifest")
    return None
