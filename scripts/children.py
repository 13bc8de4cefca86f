"""Processes that benchmarks start: what is timed does not share an interpreter with what it is timed against."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfimprove.store import read_json


def environment() -> dict[str, str]:
    """This process's, in which modules of scripts/ can be imported."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def command(*arguments: str) -> list[str]:
    """That of `selfimprove ARGUMENTS` by this interpreter."""
    return [sys.executable, "-c", "from selfimprove.cli import main; main()", *arguments]


def selfimprove(path: Path, *overrides: str) -> dict[str, Any]:
    """summary.json of `selfimprove run OVERRIDES` into a folder."""
    printed(command("run", f"hydra.run.dir={path}", *overrides))
    found: dict[str, Any] = read_json(path / "summary.json")
    return found


def python(module: str, function: str, *arguments: str) -> str:
    """The last line that a function of a module prints."""
    call = f"import sys, {module}; {module}.{function}(*sys.argv[1:])"
    return printed([sys.executable, "-c", call, *arguments]).splitlines()[-1]


def printed(asked: Sequence[str]) -> str:
    """What a command prints. Raises RuntimeError with its last words where it fails."""
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{' '.join(asked[2:])}: {done.stderr[-2000:]}")
    return done.stdout
