"""Python as a tool: what a program prints is observed, whatever becomes of it, and it never leaves the sandbox."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from selfimprove.errors import ConfigError, RunError
from selfimprove.tools.python import FAULTS, Python, bounded, cell, escaped, python, require_python
from selfimprove.verify import Outcome
from selfimprove.verify.pool import Pool
from selfimprove.verify.sandbox import Result

SECONDS, MEMORY = 1.0, 256


@pytest.fixture(scope="module")
def tool() -> Iterator[Python]:
    opened = python(seconds=SECONDS, memory_mb=MEMORY, chars=200, workers=2)
    yield opened
    opened.close()


def ask(tool: Python, *programs: str) -> list[str]:
    async def everything() -> list[str]:
        return list(await asyncio.gather(*map(tool, programs)))

    return asyncio.run(everything())


HOSTILE = {
    "secret": "import os\nprint(os.environ.get('SECRET'))",
    "file": "print(open('SOMEWHERE').read())",
    "write": "open('SOMEWHERE', 'w').write('x')",
    "network": "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)",
    "hang": "while True: pass",
    "deaf": "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(99)",
    "memory": "x = bytearray(1 << 40)",
    "flood": "while True: print('x' * 1000)",
    "exit": "import sys\nsys.exit(3)",
    "kill": "import os\nos.kill(os.getpid(), 9)",
    "syntax": "print(1",
    "surrogate": "print('\ud800')",
    "zero": "print(5)\n1 / 0",
    "fine": "print(6 * 7)",
}
SEEN = {
    "secret": "None",
    "file": "FileNotFoundError",
    "write": "FileNotFoundError",
    "network": "Error",
    "hang": "TimeoutError: took more than 1 s",
    "deaf": "TimeoutError: took more than 1 s",
    "memory": "MemoryError",
    "flood": "characters left out",
    "exit": "SystemExit: 3",
    "kill": "OSError: the program was killed",
    "syntax": "SyntaxError: '(' was never closed",
    "surrogate": "Error",
    "zero": "5\nZeroDivisionError: division by zero",
    "fine": "42",
}


def test_whatever_a_program_does_is_observed_and_stays_in_the_sandbox(tool: Python, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    os.environ["SECRET"] = "of the host"
    tool.take()
    try:
        programs = [text.replace("SOMEWHERE", str(secret)) for text in HOSTILE.values()]
        found = dict(zip(HOSTILE, ask(tool, *programs), strict=True))
    finally:
        del os.environ["SECRET"]
    assert secret.read_text() == "of the host"
    for name, seen in SEEN.items():
        assert seen in found[name], name
        assert "of the host" not in found[name]
        assert len(found[name]) < 250
    ended = tool.take()
    assert ended == {"ok": 2, "failed": len(HOSTILE) - 4, "timeout": 2}
    assert tool.take() == {}


def test_the_last_cell_is_observed_behind_those_before_it(tool: Python) -> None:
    cells = "x = 2\nprint('first')\n# %%\n1 / 0\n# %% again\nprint(x + 1)"
    assert ask(tool, cells, "# %%\nprint(7)") == ["3", "7"]


def test_the_same_program_is_run_once(tool: Python) -> None:
    program = "import time\nprint(time.time_ns())"
    tool.take()
    assert len(set(ask(tool, program, program) + ask(tool, program))) == 1
    assert tool.take() == {"ok": 1}


def test_what_cannot_be_seen_is_written_out_and_long_output_is_cut_in_the_middle() -> None:
    assert escaped("a\tb\n\x1b[2Jc\r\x00\u200b\ud800é") == "a\tb\n\\x1b[2Jc\\r\\x00\\u200b\\ud800é"
    assert bounded("x" * 10, 10) == "x" * 10
    assert bounded("abcdefghijk", 5) == "abc\n[6 characters left out]\njk"


def test_a_fault_of_the_sandbox_is_counted_and_stops_the_run_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[str]()

    async def broken(self: Pool, text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
        asked.append(text)
        return Outcome("error", 0.0, reason="no sandbox today")

    monkeypatch.setattr(Pool, "check_one", broken)
    tool = Python(Pool(f"{Python.__module__}.cell", {}, workers=1))
    try:
        for number in range(FAULTS):
            assert ask(tool, f"print({number})") == ["error: no sandbox today"]
        assert len(asked) == 2 * FAULTS  # each is tried twice
        assert tool.take() == {"error": FAULTS}
        with pytest.raises(RunError, match="the tool python failed 11 times, the last time: no sandbox today"):
            ask(tool, "print(99)", "print(99)")
    finally:
        monkeypatch.undo()
        tool.close()


def test_a_check_of_a_program_tells_the_sandboxs_faults_from_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"seconds": 1, "memory_mb": 128, "chars": 99, "sandbox": "bubblewrap", "image": ""}
    fault = Result("error", None, "", "it did not start", 0.0, 0.0)
    monkeypatch.setattr("selfimprove.tools.python.run", lambda *_, **__: fault)
    found = cell("print(1)", None, {}, **options)
    assert (found.status, found.extracted, found.reason) == ("error", None, "the sandbox failed: it did not start")


def test_a_machine_without_the_sandbox_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    from selfimprove.verify import sandbox

    sandbox._tool.cache_clear()
    sandbox._fixed_options.cache_clear()
    with pytest.raises(ConfigError, match=r"method\.tools\.python\.sandbox=bubblewrap: .*apt-get install") as caught:
        require_python()
    assert "\n" not in str(caught.value)
    assert "verifier" not in str(caught.value)


def test_a_call_that_is_given_up_leaves_no_call_waiting(tool: Python) -> None:
    async def given_up() -> None:
        calls: list[Coroutine[Any, Any, str]] = [tool("while True: 1"), tool("while True: 1")]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)

    asyncio.run(given_up())
    assert ask(tool, "print(8)") == ["8"]
