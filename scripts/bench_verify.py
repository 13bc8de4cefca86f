"""The verifier benchmarks of scripts/bench.py: checks through their pool of killable processes."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from children import selfimprove

from selfimprove.policy import Request
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.schema import Hardware, Model
from selfimprove.types import Problem, Sample
from selfimprove.verify import Outcome
from selfimprove.verify.math import check
from selfimprove.verify.pool import Item, Pool

WARM = 64  # checks before the clock starts: imports, and the size of the batches


def short(i: int) -> Item:
    """An answer that is a plain number; every other one is wrong."""
    return f"So there are {i} of them.\nThe answer is {i}.", str(i + i % 2), {}


def long(i: int) -> Item:
    """An answer that math-verify has to parse; every other one is wrong."""
    answer = rf"Hence \boxed{{\frac{{{2 * i}}}{{{2 * i + 2}}} + \sqrt{{{i}}}}}"
    return answer, rf"\sqrt{{{i}}} + \frac{{{i}}}{{{i + 1 + i % 2}}}", {}


def verify_throughput(repeats: int = 3, shorts: int = 40_000, longs: int = 1_000) -> dict[str, Any]:
    """Checks a second, medians of `repeats`, each with answers of its own. The value is the short way's for each core:
    checks over the processor seconds of the one worker and of this process, which feeds it.

    loss: of one worker's rate against calling the check in this process. scaling: the rate of two workers over twice
    that of one; `scaling_by_cpu` is the same by processor seconds. `others` is the share of the machine that other
    processes used meanwhile: from a few percent on, the figures by the wall clock say little.
    """
    begun, before = time.perf_counter(), _others()
    results: dict[str, Any] = {}
    for name, make, count in (("short", short, shorts), ("long", long, longs)):
        rounds = []
        for i in range(repeats):
            items = [make(1000 + n) for n in range(i * (WARM + count), (i + 1) * (WARM + count))]
            rounds.append([_direct(items), _pool(items, 1), _pool(items, 2)])
        alone, one, two = (
            [statistics.median(figure) for figure in zip(*kind, strict=True)] for kind in zip(*rounds, strict=True)
        )
        results[name] = {
            "checks": count,
            "in_process_per_second": count / alone[0],
            "one_worker_per_second": count / one[0],
            "two_workers_per_second": count / two[0],
            "per_second_and_core": count / one[1],
            "loss": 1 - statistics.median(own[0] / pooled[0] for own, pooled, _ in rounds),
            "scaling": statistics.median(single[0] / double[0] for _, single, double in rounds) / 2,
            "scaling_by_cpu": one[1] / two[1],
            "rounds": rounds,  # [in process, one worker, two workers], each [seconds, processor seconds]
        }
    everything = (time.perf_counter() - begun) * (os.cpu_count() or 1)
    return {
        "value": results["short"]["per_second_and_core"],
        "targets": "value >= 5000, long.loss <= 0.25, scaling >= 0.9 on two idle cores",
        **results,
        "cores": len(os.sched_getaffinity(0)),
        "others": (_others() - before) / everything,
    }


def _direct(items: list[Item]) -> tuple[float, float]:
    for item in items[:WARM]:
        check(*item)
    return _timed(lambda: [check(*item).status for item in items[WARM:]], len(items) - WARM)


def _pool(items: list[Item], workers: int) -> tuple[float, float]:
    with Pool("selfimprove.verify.math.check", {}, workers=workers, seconds=60) as pool:
        list(pool.run(items[:WARM]))
        return _timed(lambda: [outcome.status for outcome in pool.run(items[WARM:])], len(items) - WARM)


def _timed(run: Callable[[], list[str]], count: int) -> tuple[float, float]:
    """Seconds by the wall clock, and processor seconds of this process and its children. Raises RuntimeError unless
    every other answer is correct."""
    begun, used = time.perf_counter(), _used()
    statuses = run()
    seconds, used = time.perf_counter() - begun, _used() - used
    if [status == "correct" for status in statuses] != [i % 2 == 0 for i in range(count)]:
        raise RuntimeError("the benchmark's verdicts are not what they should be")
    return seconds, used


def _used() -> float:
    """Processor seconds so far of this process and of its living children."""
    total = time.process_time()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            for pid in (task / "children").read_text().split():
                total += int(Path("/proc", pid, "schedstat").read_text().split()[0]) / 1e9
    return total


def _others() -> float:
    """Processor seconds used so far on this machine, but for those of this process and its ended children."""
    user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def verify_hidden(repeats: int = 3) -> dict[str, Any]:
    """Seconds of generate and verify ÷ seconds of generate alone, medians of passes of 2,000 answers.

    Sampling takes none of this machine's cores, as on a GPU: it is a scripted policy that waits. The check needs a
    fifth of its time on one core. If verification waited for the last answer, the value would be 1.2.
    """
    alone, both = [], []
    for seed in range(repeats):
        alone.append(_generate_and_verify(seed, 0.0)[0])
        both.append(_generate_and_verify(seed, 0.2 * alone[-1] / (4 * 500)))
    together = [sum(seconds) for seconds in both]
    value = statistics.median(together) / statistics.median(alone)
    return {"value": value, "alone": alone, "generate_and_verify": both}


def _generate_and_verify(seed: int, seconds: float) -> tuple[float, float]:
    """Seconds of both phases, with a check that needs `seconds`."""
    words = ["++method.verifier._target_=bench_verify.spin", f"++method.verifier.seconds={seconds}", "verify.workers=1"]
    words += ["engine=scripted", "engine._target_=bench_verify.waiting", "engine.gives=[weights]", "+engine.url=none"]
    words += [f"~engine.{key}" for key in ("p_correct", "p_improve", "p_degrade", "tpr", "fpr", "wrong_values")]
    words += ["rounds=1", f"seed={seed}", "tracker=none", "dataset.heldout_size=4"]
    with tempfile.TemporaryDirectory() as name:
        found = selfimprove(Path(name) / "run", *words)["rounds"][0]["seconds"]
    return found["generate"], found["verify"]


class Waiting(ScriptedEngine):
    """Answers 64 requests at once, each in a third of a second."""

    room = asyncio.Semaphore(64)

    async def sample(self, request: Request) -> Sample:
        async with self.room:
            await asyncio.sleep(1 / 3)
        return await super().sample(request)


def waiting(path: str, model: Model, hardware: Hardware, problems: Sequence[Problem], *, url: str) -> Waiting:
    texts = (p.prompt if isinstance(p.prompt, str) else p.prompt[-1]["content"] for p in problems)
    return Waiting(dict(zip(texts, (str(p.gold) for p in problems), strict=True)))


def spin(text: str, gold: str | None, metadata: dict[str, Any], *, seconds: float) -> Outcome:
    """A check that does nothing for some processor seconds."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return Outcome("wrong", 0.0)
