"""A cgroup for each sandboxed program, if this process may make one.

The kernel then counts the memory of all its processes together, with shared memory, files in memory and kernel buffers.
"""

from __future__ import annotations

import functools
import os
import secrets
from contextlib import ExitStack, suppress
from pathlib import Path

PREFIX = "selfimprove-"


@functools.cache
def parent() -> Path | None:
    """The nearest cgroup (version 2) above this process in which it may make cgroups that count memory, if any."""
    for folder in _above():
        with suppress(OSError):
            if "memory" not in (folder / "cgroup.subtree_control").read_text().split():
                continue
            if not os.access(folder / "cgroup.procs", os.W_OK):
                continue
            trial = folder / f"{PREFIX}{os.getpid()}-trial"
            trial.mkdir()
            trial.rmdir()
            for left in folder.glob(f"{PREFIX}*-*"):  # left by a killed run
                if not Path("/proc", left.name.split("-")[1]).exists():
                    with suppress(OSError):
                        left.rmdir()
            return folder
    return None


def _above() -> list[Path]:
    """This process's own cgroup and those above it."""
    with suppress(OSError, StopIteration):
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        top = Path(next(fields[4] for fields in mounts if fields[fields.index("-") + 1] == "cgroup2"))
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        current = top / next(line for line in lines if line.startswith("0::"))[3:].lstrip("/")
        return [folder for folder in (current, *current.parents) if folder.is_relative_to(top)]
    return []


def make(stack: ExitStack, memory_mb: int) -> Path | None:
    """A new cgroup with this memory limit, removed by the exit stack; None if none can be made."""
    above = parent()
    if above is None:
        return None
    folder = above / f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    folder.mkdir()
    stack.callback(_remove, folder)
    (folder / "memory.max").write_text(str(memory_mb << 20))
    with suppress(FileNotFoundError):  # a kernel without swap
        (folder / "memory.swap.max").write_text("0")
    (folder / "memory.oom.group").write_text("1")
    return folder


def _remove(folder: Path) -> None:
    with suppress(OSError):  # the next run removes it
        folder.rmdir()


def ran_out(folder: Path) -> bool:
    """Whether the kernel killed processes of the cgroup for lack of memory."""
    events = dict(line.split() for line in (folder / "memory.events").read_text().splitlines())
    return events["oom_kill"] != "0"
