"""Errors that the user can fix. The CLI prints their message as one line and exits with code 2."""

import errno
import os
import re
from pathlib import Path


class ConfigError(Exception):
    """What is wrong, where (file and key), and what would be right, in one line.

    `key` is the configuration key that is to blame, if there is one: the CLI adds the file it is in.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message.replace("\n", "\\n").replace("\r", "\\r"))  # as where it shows a prompt
        self.key = key


class Damaged(ConfigError):
    """A file is not what was written there: it is cut short, changed, missing, or of a newer version."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


class RunError(Exception):
    """A run cannot go on for a reason that is not a bug, e.g. too many checks timed out. Exit code 1."""


class Stopped(BaseException):
    """SIGINT or SIGTERM: what is on disk stays, and the run's status becomes `stopped`."""


PAGES = {  # first words of a message (keys, or parts of the configuration) -> the page that explains them
    "method.train": "training",
    "method.verifier": "verifiers",
    "method.roles": "training",
    "method": "methods/",
    "dataset.verifier": "verifiers",
    "dataset": "data",
    "verifier": "verifiers",
    "verify": "verifiers",
    "judge": "verifiers",
    "overlap": "data",
    "engine": "engines",
    "hardware": "hardware",
    "model": "engines",
    "tracker": "tracking",
    "budget": "sweeps",
    "rates": "sweeps",
    "hydra.sweeper": "sweeps",
    "hydra.launcher": "sweeps",
    "eval": "compare",
    "handover": "design",
}


def page(message: str) -> str:
    """The page of docs/ about the key that a message begins with, to be put behind the message. Empty: none."""
    key = re.split(r"[^\w.]", message, maxsplit=1)[0]
    while key and key not in PAGES:
        key = key.rpartition(".")[0]
    name = PAGES.get(key, "")
    return f"; see docs/{name}{'' if name.endswith('/') else '.md'}" if name else ""


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_NOT_ALLOWED = {
    *(errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}


def of_the_disk(problem: BaseException) -> ConfigError | RunError | None:
    """One line for an error of the machine: a ConfigError if a file may not be written, a RunError if the disk is full.

    None for any other error.
    """
    number = problem.errno if isinstance(problem, OSError) else None
    if number is None and (found := re.search(r"\bOs \{ code: (\d+)|\[errno (\d+)\]", str(problem))):
        number = int(found[1] or found[2])  # of safetensors and of Arrow, which give it in words alone
    if number not in _NO_ROOM | _NOT_ALLOWED:
        return None
    file = getattr(problem, "filename", None)
    said = f"{file}: {os.strerror(number)}" if file else f"a file cannot be written: {os.strerror(number)}"
    return RunError(said) if number in _NO_ROOM else ConfigError(said)
