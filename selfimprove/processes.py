"""Processes that end when the process that started them ends, however that happens."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOOK = 0.5  # seconds between two looks at whether a process is still there


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the thread or the process that started it ends, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGKILL)


def parent_of(pid: int) -> int:
    """A process's parent: the process that started it, or that took its place. 0 if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def children_of(pid: int, name: str) -> list[int]:
    """The processes that a process started and whose names begin with a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "comm").read_text().startswith(name) and parent_of(int(entry.name)) == pid:
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def end_together(child: int, parent: int, others: Sequence[int] = ()) -> None:
    """Watch `child`, which may be this process, from a thread.

    When `parent` is no longer its parent, kill `others`, `child` and this process. Unlike in `die_with` it does not
    matter which thread of `parent` started it.
    """

    def watch() -> None:
        while parent_of(child) == parent:
            time.sleep(LOOK)
        for pid in (*others, child, os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    threading.Thread(target=watch, daemon=True, name="end_together").start()
