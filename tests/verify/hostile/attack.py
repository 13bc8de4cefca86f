"""What every hostile program may import: it is put beside the program, in the sandbox.

A program wraps what must not work in `with refused():`, and says `breach(...)` when it did. It stops at once where it
finds itself outside a sandbox, so that a sandbox that does not hold cannot be the end of the machine.
"""

import ctypes
import json
import os
import platform
import sys
from contextlib import contextmanager

with open("facts.json") as file:
    facts = json.load(file)  # of the machine outside: paths, ports, process ids
if os.getpid() > 100 or os.path.exists(facts["folder"]) or os.getuid() != 65534:
    print("BREACH this is no sandbox")
    sys.exit(99)

libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {  # (x86_64, arm64)
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clone3": (435, 435),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "userfaultfd": (323, 282),
}


def breach(what):
    print("BREACH", what, flush=True)


@contextmanager
def refused(*kinds):
    try:
        yield
    except (OSError, *kinds) as error:
        print("refused:", error, flush=True)
    else:
        breach("what should be refused was done")


def checked(result):
    """The result of a C function, or OSError."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def syscall(name, *arguments):
    number = NUMBERS[name][platform.machine() != "x86_64"]
    return checked(libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))
