"""Inside the decoder: what an idle hook costs, and what training temporary adapters together saves."""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]
ADAPTERS, LENGTH, ANSWER = 16, 48, 10  # adapters trained together, tokens of their one row, and of its completion


@dataclass(frozen=True)
class Idle:
    """A hook that changes nothing."""

    reads = False

    def logits(self, rows: Any) -> Any:
        return rows.logits


def hook_vs_plain(repeats: int = 5, samples: int = 4) -> Result:
    """Sampled tokens a second where each request has a hook that changes nothing, over those without one, on the tiny
    shape, whose steps are the cheapest: by turns, the median of the ratios."""
    from bench import SHAPES, random_model

    from selfimprove.policy import Policy
    from selfimprove.policy.hf import TransformersEngine

    rng, size = random.Random(0), SHAPES["tiny"]
    prompts = [[rng.randrange(2, 250) for _ in range(rng.randint(20, 80))] for _ in range(size["problems"])]
    with tempfile.TemporaryDirectory() as folder:
        engine = TransformersEngine(random_model(Path(folder), "tiny"), device="cpu")

    async def everything(seed: int, hook: Idle | None) -> int:
        policy = Policy(engine, seed)
        asked = (policy.sample(prompt, samples, max_tokens=size["tokens"], hook=hook) for prompt in prompts)
        return sum(len(sample.completion_ids) for answer in await asyncio.gather(*asked) for sample in answer)

    with asyncio.Runner() as loop:

        def speed(seed: int, hook: Idle | None) -> float:
            start = time.perf_counter()
            return loop.run(everything(seed, hook)) / (time.perf_counter() - start)

        speed(99, None)
        pairs = [(speed(seed, Idle()), speed(seed, None)) for seed in range(repeats)]
    return {"value": statistics.median(a / b for a, b in pairs), "tokens_per_second": pairs}


def tune_batched() -> Result:
    """Seconds to train 16 adapters of the shipped model one by one over seconds to train them together: by turns, the
    median of the ratios. Each has one row of 48 tokens, of which 10 bear loss, and five steps."""
    from selfimprove.policy.models import resolve

    return together(resolve("tiny", "package"), 5)


def tune_batched_135m() -> Result:
    """The same on the shape of SmolLM2-135M."""
    from bench import random_model

    with tempfile.TemporaryDirectory() as folder:
        return together(random_model(Path(folder), "135m"), 1)


def together(path: str, repeats: int) -> Result:
    from selfimprove.policy.models import load_model
    from selfimprove.policy.tune import Adapters, trained

    model: Any = load_model(path, dtype="float32", device="cpu").requires_grad_(False)
    layers = Adapters(model, 0).layers
    tunings = some_tunings(ADAPTERS)

    def seconds(parts: Sequence[Sequence[Any]]) -> float:
        start = time.perf_counter()
        for part in parts:
            trained(model, layers, part)
        return time.perf_counter() - start

    seconds([tunings[:1]])
    pairs = [(seconds([[one] for one in tunings]), seconds([tunings])) for _ in range(repeats)]
    return {"value": statistics.median(a / b for a, b in pairs), "seconds": pairs}


def some_tunings(count: int) -> list[Any]:
    from selfimprove.policy import Tuning

    rng = random.Random(0)
    rows = [tuple(rng.randrange(2, 250) for _ in range(LENGTH)) for _ in range(count)]
    return [Tuning(((row[:-ANSWER], row[-ANSWER:]),), seed=i) for i, row in enumerate(rows)]


def memory_of_adapters(count: int = 64) -> Result:
    """Peak memory in GB that training and holding 64 adapters takes beyond the weights, on the shape of SmolLM2-135M:
    the engine trains them in batches."""
    import resource

    from bench import random_model

    from selfimprove.policy import Policy
    from selfimprove.policy.hf import TransformersEngine

    with tempfile.TemporaryDirectory() as folder:
        engine = TransformersEngine(random_model(Path(folder), "135m"), device="cpu", max_batch=count)
    tunings = some_tunings(count)

    async def everything(adapters: Sequence[Any]) -> None:
        policy = Policy(engine, 0)
        rows = [tuning.rows[0][0] for tuning in tunings]
        await asyncio.gather(
            *(policy.sample(row, max_tokens=4, adapter=one) for row, one in zip(rows, adapters, strict=True))
        )

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    asyncio.run(everything([None] * count))
    before = peak()
    asyncio.run(everything(tunings))
    return {"value": (peak() - before) / 1e9, "held_gb": engine._adapters.peak / 1e9, "plain_peak_gb": before / 1e9}
