"""What commands share: errors of one line, and the files that they are going to write."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from selfimprove.errors import ConfigError, RunError, of_the_disk, page
from selfimprove.printable import one_line


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def guarded(command: Any) -> int:
    """Run a command; a ConfigError, a RunError or an error of the disk is one line on standard error, no traceback."""
    try:
        return int(command() or 0)
    except ConfigError as problem:
        return _fail(problem, 2)
    except RunError as problem:
        return _fail(problem, 1)
    except BrokenPipeError:  # the reader of our output went away, as in `selfimprove methods | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as problem:
        said = of_the_disk(problem)
        if said is None:
            raise
        return _fail(said, 1 if isinstance(said, RunError) else 2)


def _fail(problem: Exception, code: int) -> int:
    said = one_line(problem)
    print(f"selfimprove: {said}{page(said)}", file=sys.stderr)
    return code


def require_out(*paths: Path | None) -> None:
    """Raises ConfigError for a file or folder that cannot be written to. Asked first, before hours go by."""
    for path in filter(None, paths):
        there = next(folder for folder in path.absolute().parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{path}: cannot be written, for {there} is no folder that can be written to")


def require_out_file(path: Path | None) -> None:
    require_out(path)
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ConfigError(
            f"{path}: cannot be written, {'it is a folder' if path.is_dir() else 'its folder is not there'}"
        )
