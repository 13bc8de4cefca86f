"""The unfinished work of a training phase: a folder of checkpoints. A checkpoint is complete or not there.

A checkpoint lists the hashes of its files. They are compared before training goes on from it, since a damaged one would
give other weights and no error. Checkpoints are read with `weights_only`. Two kinds of file are pickles, which cannot
be read in this way: FSDP's `.metadata`, which may hold only the plain classes that belong there, and all that DeepSpeed
writes.
"""

from __future__ import annotations

import logging
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

from selfimprove import store, trust
from selfimprove.digests import Digests, file_digest, files_below, unfit
from selfimprove.errors import ConfigError, Damaged

log = logging.getLogger("selfimprove")

SAVING = "saving"  # in the folder of unfinished work: the checkpoint that is being written
PROBE = "probe.json"  # in that folder and in each checkpoint: the probe's log-probabilities before the first step
WHOLE = "whole.json"  # in a checkpoint: the hash of each file, written last


def unfinished(folder: Path, key: str) -> Path:
    """The folder for a phase's unfinished work, without what another phase left there and without damaged files.

    What is removed is logged in one line each. Raises ConfigError for a checkpoint that may run code.
    """
    mark = folder / "key"
    if not mark.exists() or mark.read_bytes() != key.encode():
        if folder.exists():
            log.warning("%s: its checkpoints belong to another configuration; training starts again", folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(key)
    for made in folder.glob("checkpoint-*"):
        if problem := _damage(made):
            log.warning("%s; training goes on from before it", problem)
            shutil.rmtree(made)
        else:
            _require_plain(made)
    return folder


def seal(made: Path, parts: Path) -> None:
    """Write a checkpoint's other files, and then the hashes of all its files."""
    shutil.copyfile(parts / PROBE, made / PROBE)
    store.write_sealed(made / WHOLE, {str(f.relative_to(made)): file_digest(f) for f in files_below(made)})


def checkpoint(parts: Path | None) -> Path | None:
    """The newest checkpoint in a folder of unfinished work."""
    found = parts.glob("checkpoint-*") if parts else ()
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _damage(made: Path) -> Damaged | None:
    try:
        return unfit(made, {"outputs": store.read_json(made / WHOLE)}, Digests(made))
    except Damaged as problem:
        return problem


def _require_plain(made: Path) -> None:
    """Raises ConfigError for a checkpoint whose files could run code when they are read."""
    if any(made.glob("global_step*")) and not trust.allowed("deepspeed"):
        raise ConfigError(
            f"{made}: DeepSpeed's checkpoints are pickles, which can run code; --allow deepspeed reads it"
        )
    for file in made.rglob(".metadata"):
        with file.open("rb") as stream:
            try:
                _Plain(stream).load()
            except (pickle.UnpicklingError, AttributeError, ImportError, EOFError, IndexError, ValueError) as problem:
                raise ConfigError(f"{file}: is not what a checkpoint has: {problem}") from None


class _Plain(pickle.Unpickler):
    """Reads the metadata of a checkpoint of several processes. It allows only the classes that belong in it."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        kinds = (torch.Size, OrderedDict, set, frozenset, slice, type(Path()))
        plain = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
        own = module.startswith("torch.distributed.checkpoint.")
        if "." in name or not (own or module in ("torch", "torch.serialization") or f"{module}.{name}" in plain):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        found: Any = super().find_class(module, name)
        if f"{module}.{name}" in plain or found == torch.serialization._get_layout:
            return found
        if isinstance(found, torch.dtype | torch.layout) or (
            own and isinstance(found, type) and found.__module__ == module
        ):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")
