"""The process in which checks run: `python -m selfimprove.verify.worker`, started by `selfimprove.verify.pool`.

It reads one line of JSON with the check to run. If the check's module has a function `begin`, that is called with the
check's options, before any limit holds. Then the worker answers that it is ready, or why it is not. A batch is a line
with its length in bytes, then one JSON item a line. The worker answers each item with a line as soon as it is done.
Standard input, output and error are closed off while a check runs.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import math
import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from selfimprove import trust
from selfimprove.types import STATUSES
from selfimprove.verify import Outcome

OUT_OF_MEMORY = 77  # exit code: after a failed allocation this process cannot be trusted
READY, KEEPS_TIME = "ready", "ready, and keeps its own time"
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def load(target: str, options: dict[str, Any]) -> Callable[..., Outcome]:
    """The check named `target`, with its options bound.

    Raises ImportError, AttributeError or TypeError when there is no such check or it does not take the options, and
    PermissionError when it may not be called (`selfimprove.trust`).
    """
    if not trust.may_call(target):
        raise PermissionError(f"{target}: not a function of this package's own methods, nor allowed")
    module, _, name = target.rpartition(".")
    check = getattr(importlib.import_module(module), name)
    inspect.signature(check).bind("", None, {}, **options)
    return partial(check, **options)


def run_one(check: Callable[..., Outcome], item: list[Any]) -> Outcome:
    """The check's outcome, or an `error` if it raised or returned none. Exits the process when memory runs out."""
    try:
        outcome = check(*item)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BaseException as error:  # SystemExit too: every item gets an answer
        outcome = Outcome("error", 0.0, reason=f"{type(error).__name__}: {error}"[:300])
    if not isinstance(outcome, Outcome) or outcome.status not in STATUSES or not math.isfinite(outcome.reward):
        return Outcome("error", 0.0, reason=f"the check returned no outcome: {outcome!r}"[:300])
    return outcome


def main() -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)

    def reply(line: str) -> None:
        data = line.encode() + b"\n"
        while data:
            data = data[os.write(replies, data) :]

    header = json.loads(requests.readline())
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != header["parent"]:  # the parent died before prctl was called
        return
    try:
        check = load(header["target"], header["options"])
        module = importlib.import_module(header["target"].rpartition(".")[0])
        if begin := getattr(module, "begin", None):
            begin(**header["options"])
    except Exception as error:
        reply(f"{type(error).__name__}: {error}".replace("\n", " "))
        return
    resource.setrlimit(resource.RLIMIT_AS, (header["memory"], header["memory"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reply(KEEPS_TIME if getattr(module, "KEEPS_TIME", False) else READY)
    while length := requests.readline():
        for line in requests.read(int(length)).split(b"\n"):
            outcome = run_one(check, json.loads(line))
            fields = (outcome.status, outcome.reward, outcome.extracted, outcome.step_rewards, outcome.reason)
            reply(json.dumps(fields))


if __name__ == "__main__":
    main()
