"""Python as a tool: a policy's program runs in the sandbox, and its output is the observation.

A call is one program. It may have cells, divided by lines `# %%`. Then all cells are run, and only the last one's
output is observed. So the tool needs no state, and a search may go back to any earlier cell.

Programs run in the processes of `selfimprove.verify.pool`, each in its own sandbox (docs/sandbox.md). Whatever happens
to a program is an observation. A fault of the sandbox is not the program's fault: the program is run again, the fault
is counted, and too many faults stop the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import Any

from selfimprove.errors import RunError
from selfimprove.tools.pooled import Pooled
from selfimprove.types import Count, Seconds, Status
from selfimprove.verify import Outcome
from selfimprove.verify import sandbox as sandboxes
from selfimprove.verify.container import IMAGE
from selfimprove.verify.pool import Pool
from selfimprove.verify.sandbox import Result, run

KEEPS_TIME = True  # the sandbox ends what takes too long
OUTPUT_BYTES = 1 << 16  # a program that prints more is stopped
REMEMBERED = 4096  # programs
FAULTS, FAULT_SHARE = 10, 0.05  # the run stops if the sandbox's faults are more than both, a count and a share of calls
CELL = re.compile(r"^# %%.*\n?", re.MULTILINE)

_DRIVER = """
import contextlib, io, json
with open("cells.json") as file:
    *earlier, last = json.load(file)
scope = {"__name__": "__main__"}
for cell in earlier:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(BaseException):
        exec(compile(cell, "<cell>", "exec"), scope)
exec(compile(last, "<cell>", "exec"), scope)
"""


def require_python(*, sandbox: str = "bubblewrap", image: str = IMAGE, **options: Any) -> dict[str, str]:
    """What guards the programs, for the run's record. Raises ConfigError if the sandbox cannot run here."""
    sandboxes.require(sandbox, image, "method.tools.python")
    return sandboxes.describe(sandbox, image)


def python(
    *,
    seconds: Seconds = 5.0,
    memory_mb: Count = 512,
    chars: Count = 1000,
    workers: Count | None = None,
    sandbox: str = "bubblewrap",
    image: str = IMAGE,
) -> Python:
    """Open the tool.

    `seconds` and `memory_mb` (MiB) limit a program, as in the verifier `code`. `chars` is the most characters of an
    observation. `workers` is how many programs run at once; None means one a core. `image` is the container's image.
    """
    options = {"seconds": seconds, "memory_mb": memory_mb, "chars": chars, "sandbox": sandbox, "image": image}
    return Python(Pool(f"{__name__}.cell", options, workers=workers or os.cpu_count() or 1, seconds=seconds))


class Python(Pooled):
    """Gives a program's observation. A program is run once, and its observation is remembered."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self._known: dict[str, asyncio.Future[str]] = {}  # by program, oldest first
        self._calls = self._faults = 0

    async def __call__(self, text: str) -> str:
        """What the program `text` printed, and how it failed if it did.

        Raises RunError if the sandbox does not work.
        """
        if text not in self._known:
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            known = self._known[text] = asyncio.get_running_loop().create_future()
            try:
                known.set_result(await self._run(text))
            except BaseException as error:
                self._known.pop(text, None)
                known.set_exception(error if isinstance(error, RunError) else RunError("the call was given up"))
                known.exception()  # those who wait get it; without this, asyncio complains if nobody waits
                raise
        return await asyncio.shield(self._known[text])

    async def _run(self, text: str) -> str:
        outcome = await self.tried(text)
        self._calls += 1
        if outcome.status == "error":
            self._faults += 1
            if self._faults > max(FAULTS, FAULT_SHARE * self._calls):
                raise RunError(f"the tool python failed {self._faults} times, the last time: {outcome.reason}")
        return outcome.extracted if outcome.extracted is not None else f"{outcome.status}: {outcome.reason}"


def cell(
    text: str,
    gold: str | None,
    metadata: dict[str, Any],
    *,
    seconds: float,
    memory_mb: int,
    chars: int,
    sandbox: str,
    image: str,
) -> Outcome:
    """The observation of a program, in `extracted`.

    The status says how the program ended: `correct` without an error, `wrong` with an error of its own, `timeout`, or
    `error` for a fault of the sandbox.
    """
    cells = CELL.split(text)
    files = {"cells.json": json.dumps(cells)} if len(cells) > 1 else {}
    result = run(
        _DRIVER if files else text,
        files=files,
        seconds=seconds,
        memory_mb=memory_mb,
        output_bytes=OUTPUT_BYTES,
        sandbox=sandbox,
        image=image,
    )
    if result.status == "error":
        return Outcome("error", 0.0, reason=f"the sandbox failed: {result.stderr.strip()[-300:]}")
    status: Status = {"ok": "correct", "timeout": "timeout"}.get(result.status, "wrong")  # type: ignore[assignment]
    said = [part for part in (result.stdout.rstrip("\n"), _failure(result, seconds, memory_mb)) if part]
    return Outcome(status, 0.0, bounded(escaped("\n".join(said)), chars))


def _failure(result: Result, seconds: float, memory_mb: int) -> str:
    """What went wrong with a program, as the last line of its traceback says it. "" if nothing did."""
    if result.status == "ok":
        return ""
    if result.status == "exit":
        return result.stderr.rstrip().rpartition("\n")[2] or f"SystemExit: {result.exit_code}"
    return {
        "timeout": f"TimeoutError: took more than {seconds:g} s",
        "memory": f"MemoryError: needs more than {memory_mb} MiB",
        "output": f"OSError: printed more than {OUTPUT_BYTES} bytes",
    }.get(result.status, "OSError: the program was killed")


def escaped(text: str) -> str:
    """The text with invisible characters written out, such as `\\x1b`: control characters and lone surrogates."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def bounded(text: str, chars: int) -> str:
    """The text, or its two ends if it is longer than `chars` characters."""
    if len(text) <= chars:
        return text
    half = chars // 2
    return f"{text[: chars - half]}\n[{len(text) - chars} characters left out]\n{text[len(text) - half :]}"
