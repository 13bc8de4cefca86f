"""On what machine and how a run is done, for environment.json."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfimprove import config as configuration
from selfimprove import doctor, store


def environment() -> dict[str, Any]:
    """Versions, git commit, hardware and the exact command, for environment.json."""
    return configuration.redact(  # type: ignore[no-any-return]
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": shlex.join(sys.orig_argv),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": {name: doctor.installed(name) for name in ("selfimprove", *doctor.PACKAGES, "vllm", "numpy")},
            "git_commit": _git_commit(),
        }
    )


def note_resume(path: Path, more: Mapping[str, Any] | None = None) -> None:
    """Add this process to environment.json of a run folder.

    If that file is missing, write what is known of the start, and `more`.
    """
    known = store.read_or_none(path / "environment.json") or {**environment(), **(more or {})}
    known.setdefault("resumed", []).append(environment())
    store.write_sealed(path / "environment.json", known)


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None when it is installed from a wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
