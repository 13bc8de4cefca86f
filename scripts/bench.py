"""Benchmarks, each beside the obvious alternative on the same work.

Ratios: engines, hooks and adapters, the hand-over, tree search, episodes and their trees, the trainer, a step of
reinforcement learning, a round with ten times the problems. Figures of their own: a check in the sandbox in seconds,
programs of the tool python and checks of the verifier a second, a million trajectories in GB, the error of forecasts.

    python scripts/bench.py [--only KEY ...] [--out FILE]

A benchmark is a function that returns a dict with `value` and the raw figures behind it; BENCHMARKS names them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench_agents import episodes_together, trees_together
from bench_decoder import hook_vs_plain, memory_of_adapters, tune_batched, tune_batched_135m
from bench_forecast import forecast_error
from bench_mcts import bench_mcts
from bench_rl import rl_step_vs_parts, rl_vs_trl
from bench_round import round_vs_phases, serial_share
from bench_sandbox import sandbox_latency, tool_calls
from bench_scale import memory_10x, million, passes_256, time_10x
from bench_streams import stream_vs_bare
from bench_train import train_vs_bare, train_vs_trl
from bench_verify import verify_hidden, verify_throughput
from bench_vllm import handover_vs_cold_start, runner_vs_vllm, vllm_vs_transformers
from random_model import save

Result = dict[str, Any]  # "value": the figure that counts; the rest: what it was computed from

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 258,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "tokens": 96,
        "problems": 256,
    },
    "135m": {  # SmolLM2-135M
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tokens": 32,
        "problems": 16,
    },
}


def random_model(folder: Path, shape: str) -> str:
    """Save a model of random weights in one of `SHAPES`. Returns its path."""
    size = {key: value for key, value in SHAPES[shape].items() if key not in ("tokens", "problems")}
    return save(folder, size)


def transformers_vs_generate(repeats: int = 3, samples: int = 4) -> Result:
    """Useful sampled tokens (up to and with the end token) a second: our engine over model.generate in static batches
    sorted by length, at the best of several batch sizes. The value is the worst shape's ratio of medians."""
    from selfimprove.policy.hf import TransformersEngine

    shapes: dict[str, Result] = {}
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            model = random_model(Path(folder), shape)
            shapes[shape] = sampling(model, TransformersEngine, SHAPES[shape], repeats, samples)
    return {"value": min(result["value"] for result in shapes.values()), **shapes}


def sampling(
    folder: str,
    open_engine: Callable[[str], Any],
    size: dict[str, int],
    repeats: int,
    samples: int,
    dtype: str = "float32",
) -> Result:
    """Sampled tokens a second by an engine for the model in `folder`, and by its `generate`, by turns: their ratio."""
    import torch

    from selfimprove.policy import Policy
    from selfimprove.policy.models import load_model

    rng = random.Random(0)
    tokens, problems = size["tokens"], size["problems"]
    prompts = [[rng.randrange(2, 250) for _ in range(rng.randint(20, 80))] for _ in range(problems)]
    engine, stock = open_engine(folder), load_model(folder, dtype=dtype)
    ends = torch.tensor(stock.generation_config.eos_token_id)

    async def run(policy: Policy, some: list[list[int]]) -> int:
        answers = await asyncio.gather(*(policy.sample(p, samples, max_tokens=tokens) for p in some))
        return sum(len(sample.completion_ids) for answer in answers for sample in answer)

    def ours(seed: int, some: list[list[int]] = prompts) -> float:
        start = time.perf_counter()
        count = loop.run(run(Policy(engine, seed), some))
        return count / (time.perf_counter() - start)

    def theirs(seed: int, rows: int, some: list[list[int]] = prompts) -> float:
        torch.manual_seed(seed)
        ordered, step, count = sorted(some, key=len), max(1, rows // samples), 0
        start = time.perf_counter()
        for i in range(0, len(ordered), step):
            part = ordered[i : i + step]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(p)) + p for p in part])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
            with torch.inference_mode():
                out = stock.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    top_k=0,
                    top_p=1.0,
                    temperature=1.0,
                    max_new_tokens=tokens,
                    num_return_sequences=samples,
                    pad_token_id=0,
                )[:, width:]
            end = torch.isin(out, ends).int()
            count += int((end.cumsum(1) - end == 0).sum())
        return count / (time.perf_counter() - start)

    with asyncio.Runner() as loop:
        ours(99, prompts[: problems // 4])
        sizes = [rows for rows in (32, 64, 128, 256) if rows <= problems * samples][-3:]
        speeds = {rows: theirs(99, rows) for rows in sizes}
        best = max(speeds, key=lambda rows: speeds[rows])
        pairs = [(ours(seed), theirs(seed, best)) for seed in range(repeats)]
        engine.close()
    mine, other = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    return {
        "value": mine / other,
        "ours_tokens_per_second": mine,
        "generate_tokens_per_second": other,
        "generate_batch": best,
        "generate_by_batch": speeds,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
    }


BENCHMARKS: dict[str, Callable[[], Result]] = {
    "runner_vs_vllm": runner_vs_vllm,
    "vllm_vs_transformers": vllm_vs_transformers,
    "handover_vs_cold_start": handover_vs_cold_start,
    "transformers_vs_generate": transformers_vs_generate,
    "hook_vs_plain": hook_vs_plain,
    "tune_batched": tune_batched,
    "tune_batched_135m": tune_batched_135m,
    "memory_of_adapters": memory_of_adapters,
    "mcts_vs_sequential": bench_mcts,
    "train_vs_trl": train_vs_trl,
    "train_vs_bare": train_vs_bare,
    "round_vs_phases": round_vs_phases,
    "serial_share": serial_share,
    "rl_step_vs_parts": rl_step_vs_parts,
    "rl_vs_trl": rl_vs_trl,
    "time_10x": time_10x,
    "memory_10x": memory_10x,
    "million": million,
    "passes_256": passes_256,
    "sandbox_latency": sandbox_latency,
    "tool_calls": tool_calls,
    "episodes_together": episodes_together,
    "tree_vs_sequential": trees_together,
    "stream_vs_bare": stream_vs_bare,
    "verify_throughput": verify_throughput,
    "verify_hidden": verify_hidden,
    "forecast_error": forecast_error,
}
BOUNDS = {  # what the project holds itself to
    "runner_vs_vllm": ">= 0.95",
    "vllm_vs_transformers": ">= 2.5",
    "handover_vs_cold_start": "<= 0.1",
    "hook_vs_plain": ">= 0.97",
    "tune_batched": ">= 2",
    "tune_batched_135m": ">= 1.3",
    "memory_of_adapters": "<= 4 (GB)",
    "mcts_vs_sequential": ">= 10",
    "train_vs_trl": ">= 0.95",
    "train_vs_bare": ">= 0.8",
    "round_vs_phases": "<= 1.05",
    "rl_step_vs_parts": "<= 1.10",
    "rl_vs_trl": "<= 0.8",
    "time_10x": "<= 10.5",
    "memory_10x": "<= 1.2",
    "million": "< 2 (GB)",
    "passes_256": "<= 1.3",
    "episodes_together": ">= 10",
    "tree_vs_sequential": ">= 5",
    "stream_vs_bare": "<= 1.15",
    "verify_hidden": "<= 1.05",
    "forecast_error": "<= 0.25",
}
VLLM = (
    "runner_vs_vllm",
    "vllm_vs_transformers",
    "handover_vs_cold_start",
)  # need vLLM: .venv-vllm, of `make bench-vllm`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), help="run these (default: all)")
    parser.add_argument("--out", type=Path, help="write the results there as JSON, by key")
    args = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    table = Table("benchmark", "value", "bound", "seconds")
    results: dict[str, Result] = {}
    for key in args.only or BENCHMARKS:
        bound = BOUNDS.get(key, "")
        if key in VLLM and find_spec("vllm") is None:
            table.add_row(key, "vLLM is not installed", bound, "")
            continue
        start = time.perf_counter()
        results[key] = BENCHMARKS[key]()
        table.add_row(key, f"{results[key]['value']:.4g}", bound, f"{time.perf_counter() - start:.0f}")
        if args.out:  # after each: all of them take most of an hour
            args.out.write_text(json.dumps(results, indent=2) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
