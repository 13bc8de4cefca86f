"""Checks that hang, die, flood and lie, for test_pool.py. Light to import, since every new worker does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from selfimprove.verify import Outcome


def check(text, gold, metadata, *, reward=1.0):
    """Does what `text` says; `good` compares the gold with the metadata."""
    match text:
        case "good":
            right = gold == metadata["answer"]
            return Outcome("correct" if right else "wrong", reward if right else 0.0, extracted=f"{gold}\n\u2028\ud800")
        case "sleep":
            time.sleep(1000)
        case "regex":  # hangs in C, where no Python signal handler runs
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "power":
            return 9**9**9
        case "exit":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "recurse":
            return check(text, gold, metadata)
        case "memory":
            return bytearray(50 << 30)
        case "flood":
            for fd in (1, 2) * 512:  # a gigabyte
                os.write(fd, b"x" * (1 << 20))
            print("x" * (1 << 20), flush=True)
            os.write(1, b'["correct", 1.0, null, null, null]\n' * 1000)
            return Outcome("wrong", 0.0, extracted=sys.stdin.readline())
        case "raise":
            raise ValueError("no such thing")
        case "leave":
            sys.exit()
        case "garbage":
            return {"status": "correct", "reward": 1.0}
        case "nan":
            return Outcome("correct", float("nan"))
        case "pid":
            return Outcome("correct", 1.0, extracted=str(os.getpid()))
        case "child":
            child = subprocess.Popen(["sleep", "1000"])
            Path(metadata["file"]).write_text(str(child.pid))
            time.sleep(1000)


def leak(text, gold, metadata, *, held=[]):  # noqa: B006
    """Keeps 400 MiB a call, so that a second call in the same process does not fit."""
    if text == "big":
        held.append(bytearray(400 << 20))
    return Outcome("correct", 1.0)
