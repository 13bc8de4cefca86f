"""Runs of a repository's tests in the sandbox. Each is done once, and remembered by all that it depends on."""

from __future__ import annotations

import functools
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from selfimprove.env import testing
from selfimprove.types import Count, Seconds
from selfimprove.verify import sandbox as sandboxes
from selfimprove.verify.container import IMAGE

OUTPUT_BYTES = 1 << 20
REMEMBERED = 4096  # runs
SHOWN = 5  # failures


class Sandboxed(TypedDict, total=False):
    """Limits of a run of the tests, and where it is run, as in the verifier `code`."""

    seconds: Seconds  # default 5
    memory_mb: Count  # MiB, default 512
    sandbox: str  # default bubblewrap
    image: str  # of a container


@dataclass(frozen=True)
class Ran:
    """What came of tests."""

    status: Literal["ok", "timeout", "stopped"]  # stopped: the programs ended before the last test
    failures: Mapping[str, str | None]  # test -> how it failed; None: it passed


_known: dict[str, Ran] = {}  # oldest first


def require(*, sandbox: str = "bubblewrap", image: str = IMAGE, **options: Any) -> None:
    """Raises ConfigError if the sandbox cannot run here."""
    sandboxes.require(sandbox, image, "dataset.env")


def tested(files: Mapping[str, str], *, tests: Sequence[str], **options: Unpack[Sandboxed]) -> Ran:
    """Run files of tests in the sandbox. Raises RuntimeError if the sandbox fails."""
    key = hashlib.blake2b(json.dumps([dict(files), list(tests), options]).encode()).hexdigest()
    if key not in _known:
        _known[key] = _tested(files, tests, **options)
        if len(_known) > REMEMBERED:
            del _known[next(iter(_known))]
    return _known[key]


def _tested(
    files: Mapping[str, str],
    tests: Sequence[str],
    *,
    seconds: float = 5.0,
    memory_mb: int = 512,
    sandbox: str = "bubblewrap",
    image: str = IMAGE,
) -> Ran:
    word = secrets.token_hex(16)  # the report begins with it
    result = sandboxes.run(
        driver(),
        stdin=f"{word}\n",
        files={"job.json": json.dumps({"files": dict(files), "tests": list(tests)})},
        seconds=seconds,
        memory_mb=memory_mb,
        output_bytes=OUTPUT_BYTES,
        sandbox=sandbox,
        image=image,
    )
    if result.status == "error":
        raise RuntimeError(f"the sandbox failed: {result.stderr.strip()[-300:]}")
    last = result.stdout.rstrip("\n").rpartition("\n")[2]
    if result.status == "ok" and last.startswith(word):
        return Ran("ok", json.loads(last.removeprefix(word)))
    return Ran("timeout" if result.status == "timeout" else "stopped", {})


@functools.cache
def driver() -> str:
    return Path(str(testing.__file__)).read_text(encoding="utf-8")


def shown(ran: Ran) -> str:
    """What an agent is shown of a run of the tests."""
    if ran.status != "ok":
        said = {"timeout": "timeout: the tests take too long", "stopped": "the program ended before the last test"}
        return said[ran.status]
    failed = [f"{name}\n{failure}" for name, failure in ran.failures.items() if failure is not None]
    return "\n".join([f"{len(ran.failures) - len(failed)} tests pass, {len(failed)} fail.", *failed[:SHOWN]])
