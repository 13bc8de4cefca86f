"""The vLLM benchmarks of scripts/bench.py, on a model of SmolLM2-135M's shape in float32.

Runs are `selfimprove run` in a process of its own, and their seconds are those of its summary.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from children import python, selfimprove

from selfimprove import store
from selfimprove.types import Attempt, Example, Trajectory

TOKENS, BATCH = 64, 128  # of a completion; sequences in flight
DTYPE = "float32"  # not every CPU multiplies bfloat16 numbers


def everything(groups: Iterable[list[Attempt]], *, seed: int) -> Iterator[Example]:
    """A filter slot that keeps the first answer to each problem, right or wrong: random weights are never right."""
    for first, *_ in groups:
        (sample,) = first.trajectory.samples
        yield Example(first.problem.id, [first.trajectory.id], sample.prompt_ids, sample.completion_ids)


def runner_vs_vllm(repeats: int = 3, problems: int = 32, samples: int = 4) -> dict[str, Any]:
    """Sampled tokens a second of a run's generation phase over those of `vllm.LLM.generate` on the same requests (ids,
    seeds, limits, log-probabilities), each in a process of its own, by turns; the ratio of medians. Before both are
    timed their engines have answered something."""
    speeds: dict[str, list[float]] = {"runner": [], "vllm": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(folder)
        for repeat in range(repeats):
            path = folder / f"run{repeat}"
            summary = _run(
                path, model, f"seed={repeat}", f"dataset.train_size={problems}", f"method.generate.n={samples}"
            )
            spent = summary["rounds"][0]
            speeds["runner"].append(spent["tokens"]["sampled"] / spent["seconds"]["generate"])
            asked = path / "requests.json"
            store.write_json(
                asked,
                [
                    {"ids": sample.prompt_ids, "seed": sample.seed % 2**63}
                    for t in store.read_records(path / "rounds" / "000" / "trajectories.parquet", Trajectory)
                    for sample in t.samples
                ],
            )
            said = python("bench_vllm", "raw", model, str(asked))
            speeds["vllm"].append(float(said))
    ours, theirs = (statistics.median(speeds[name]) for name in ("runner", "vllm"))
    return {"value": ours / theirs, "tokens_per_second": speeds, "requests": problems * samples}


def raw(model: str, requests: str) -> None:
    """Print the tokens a second of `vllm.LLM.generate` on these requests, by vLLM with the settings that a run has."""
    from selfimprove.policy.vllm import cpu_settings, engine_args, require

    require()
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs

    from selfimprove.policy.vllm_draw import drawn

    asked = json.loads(Path(requests).read_text())
    config = _config(model)
    args = engine_args(model, config.model, config.hardware, eager=True)
    own = {field.name: getattr(args, field.name) for field in fields(EngineArgs)}
    with cpu_settings(args):
        llm = LLM(**own | {"worker_extension_cls": ""})
    prompts = [{"prompt_token_ids": request["ids"]} for request in asked]
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    params = [
        SamplingParams(**drawn({"seed": request["seed"], **how}), max_tokens=TOKENS, logprobs=0, detokenize=False)
        for request in asked
    ]
    llm.generate(prompts[:8], params[:8], use_tqdm=False)
    llm.reset_prefix_cache()
    begun = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begun
    print(sum(len(output.outputs[0].token_ids) for output in outputs) / seconds)


def handover_vs_cold_start(repeats: int = 3) -> dict[str, Any]:
    """Seconds of a run's handover phase (new weights read into the living engine, and the probe's answers scored) over
    those from making a vLLM engine for the same weights to its first token; the ratio of medians."""
    seconds: dict[str, list[float]] = {"handover": [], "cold_start": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = _model(folder)
        for repeat in range(repeats):
            path = folder / f"run{repeat}"
            summary = _run(path, model, "dataset.train_size=8", "method.generate.n=1", f"seed={repeat}", *LEARNS)
            seconds["handover"].append(summary["rounds"][0]["seconds"]["handover"])
            said = python("bench_vllm", "cold", str(path / "rounds" / "000" / "policy"))
            seconds["cold_start"].append(float(said))
    handover, cold = (statistics.median(seconds[name]) for name in ("handover", "cold_start"))
    return {"value": handover / cold, "seconds": seconds, "probe": summary["rounds"][0]["handover"]}


LEARNS = [
    "method.filter._target_=bench_vllm.everything",
    "~method.filter.per_problem",
    "method.train.learning_rate=1e-4",
    "method.train.batch_size=8",
]


def cold(model: str) -> None:
    """Print the seconds from making a vLLM engine to its first token; vLLM is imported before."""
    import asyncio

    import vllm  # noqa: F401
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: F401

    from selfimprove.policy import Request
    from selfimprove.session import open_engine

    config = _config(model)
    begun = time.perf_counter()
    engine = open_engine(config, model, ())
    asyncio.run(engine.sample(Request((5, 6, 7), 1, seed=0)))
    print(time.perf_counter() - begun)
    engine.close()


def vllm_vs_transformers(repeats: int = 3, samples: int = 8) -> dict[str, Any]:
    """Sampled tokens a second through the vLLM engine over those of transformers' `generate` in static batches, at the
    best of several batch sizes, both in float32; the ratio of medians."""
    from bench import SHAPES, sampling

    from selfimprove.session import open_engine

    def engine(folder: str) -> Any:
        return open_engine(_config(folder), folder, ())

    with tempfile.TemporaryDirectory() as name:
        return sampling(
            _model(Path(name)),
            engine,
            SHAPES["135m"] | {"tokens": TOKENS, "problems": 16},
            repeats,
            samples,
            DTYPE,
        )


SETTING = [
    "model=other",
    "model.name=smollm2_shape",
    f"model.dtype={DTYPE}",
    "model.max_length=512",
    f"model.max_tokens={TOKENS}",
    "model.trust_remote_code=false",
    f"hardware.max_batch={BATCH}",
    "engine=vllm",
    "engine.eager=true",
    "tracker=none",
]


def _model(folder: Path) -> str:
    from bench import random_model

    return random_model(folder / "model", "135m")


def _config(model: str) -> Any:
    from selfimprove.config import compose

    return compose([f"model.path={model}", *SETTING])


def _run(path: Path, model: str, *overrides: str) -> dict[str, Any]:
    """summary.json of one round on arithmetic problems."""
    return selfimprove(path, f"model.path={model}", "rounds=1", "dataset.heldout_size=8", *SETTING, *overrides)
