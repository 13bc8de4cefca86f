"""The steps of scripts/gpu_check.py: what a run does on a GPU, each by itself, in a process of its own.

On a GPU the model has the shape of a 1 B Llama and random weights, on a CPU (`--device cpu`) that of a toy, so that the
same code is tried. Both are trained in bfloat16. A step returns what it `Found`, or raises.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LARGE = {
    "vocab_size": 32768,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
SMALL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear", "quantize": None}
ROUNDING = 0.1  # nats a token: the mean gap between sampler and trainer that a run allows in bfloat16
BATCH = 16  # rows of an optimizer step


@dataclass(frozen=True)
class Found:
    """What a step found. `holds` None: it could not be tried here, and `said` is why."""

    holds: bool | None
    said: str = ""
    tokens_s: float | None = None
    estimate_gb: float | None = None  # what selfimprove.memory says that its training needs


@dataclass(frozen=True)
class Place:
    """Where steps run: the device, a folder for all that they write, and how large they are there."""

    device: Any
    folder: Path

    @property
    def gpu(self) -> bool:
        return bool(self.device == "cuda")

    @property
    def row(self) -> int:
        """Tokens of a training row."""
        return 512 if self.gpu else 24

    @property
    def base(self) -> str:
        """The folder of the random model, which is made by the first step that asks."""
        from random_model import save

        folder = self.folder / "base"
        if not (folder / "tokenizer_config.json").exists():
            save(folder, LARGE if self.gpu else SMALL, ends=0.0, device=self.device, dtype="bfloat16")
        return str(folder)

    def context(self, out: str, losses: list[float] | None = None, **fields: Any) -> Any:
        """A TrainContext as hardware=gpu_80gb makes it. Each step's loss is added to `losses`."""
        from selfimprove.train import TrainContext

        def log(figures: dict[str, float]) -> None:
            if losses is not None:
                losses.append(figures["loss"])

        given = {"micro_batch": 8, "gradient_checkpointing": True, "lora": None, "dtype": "bfloat16", "log": log}
        return TrainContext(
            **{"start": self.base, "base": self.base, "out": self.folder / out, "seed": 0, "device": self.device}
            | given
            | fields
        )

    def rows(self, count: int, *, pairs: bool = False, seed: int = 0) -> list[Any]:
        """Rows of random ids, a quarter of them prompt, out of few ids, so that there is something to learn."""
        from selfimprove.types import Example

        rng = random.Random(seed)

        def ids(most: int) -> list[int]:
            return [rng.randrange(2, 250) for _ in range(rng.randint(most // 2, most))]

        prompt, answer = self.row // 4, self.row - self.row // 4
        return [Example(f"p{i}", [], ids(prompt), ids(answer), ids(answer) if pairs else None) for i in range(count)]

    def estimate(self, train: str, lora: bool) -> float:
        """GB that selfimprove.memory expects a trainer to hold."""
        from selfimprove.config import compose
        from selfimprove.memory import GB, estimate

        asked = ["hardware=gpu_80gb" if self.gpu else "hardware=cpu", "model=other", f"model.path={self.base}"]
        asked += [f"train={train}", "engine=transformers", f"model.max_tokens={self.row}", "model.dtype=bfloat16"]
        asked += ["hardware.micro_batch=8", "hardware.gradient_checkpointing=true", f"train.batch_size={BATCH}"]
        asked += ["model.lora={r: 16, alpha: 32}"] if lora else []
        found = estimate(compose(asked, needs=False), row=self.row)
        assert found is not None
        return sum(found.trainer.values()) / GB


def model(place: Place) -> Found:
    """The model of random weights is made, and its files can be read."""
    from selfimprove.memory import _shape_in

    shape = _shape_in(place.base)
    return Found(shape is not None, f"{shape.parameters / 1e9:.2g} B parameters" if shape else "no shape")


# Sampling


def _engine(place: Place, path: str | None = None, **options: Any) -> Any:
    from selfimprove.policy.hf import TransformersEngine

    given = {"device": place.device, "dtype": "bfloat16", "max_batch": 64, "max_length": 1024}
    return TransformersEngine(path or place.base, **given | options)


async def _sampled(engine: Any, place: Place, count: int, **options: Any) -> tuple[list[Any], float]:
    """A sample of each of `count` prompts, and tokens a second."""
    from selfimprove.policy import Policy

    policy = Policy(engine, seed=0, max_tokens=128 if place.gpu else 12)
    prompts = [row.prompt_ids for row in place.rows(count, seed=1)]
    begun = time.perf_counter()
    groups = await asyncio.gather(*(policy.sample(prompt, 1, **options) for prompt in prompts))
    samples = [group[0] for group in groups]
    return samples, sum(len(s.completion_ids) for s in samples) / (time.perf_counter() - begun)


async def _gap(scorer: Any, said: Sequence[tuple[list[int], list[int], list[float]]]) -> float:
    """Mean nats a token between what is said of (prompt, completion) and what `scorer` says."""
    found = await asyncio.gather(*(scorer.logprobs(prompt, completion) for prompt, completion, _ in said))
    gaps = [
        abs(a - b) for (_, _, mine), other in zip(said, found, strict=True) for a, b in zip(mine, other, strict=True)
    ]
    return statistics.fmean(gaps)


def _said(samples: Sequence[Any]) -> list[tuple[list[int], list[int], list[float]]]:
    return [(s.prompt_ids, s.completion_ids, s.logprobs) for s in samples]


def sample_embedded(place: Place) -> Found:
    """The embedded policy's greedy answers in float32 are those of a CPU."""
    from selfimprove.policy.models import PACKAGED

    async def both() -> tuple[int, float, float]:
        asked = {"path": str(PACKAGED / "tiny"), "dtype": "float32", "max_length": 512}
        here, there = _engine(place, **asked), _engine(place, **asked | {"device": "cpu"})
        mine, speed = await _sampled(here, place, 32, temperature=0.0)
        theirs, _ = await _sampled(there, place, 32, temperature=0.0)
        same = sum(a.completion_ids == b.completion_ids for a, b in zip(mine, theirs, strict=True))
        return same, await _gap(there, _said(mine)), speed

    same, gap, speed = asyncio.run(both())
    return Found(same >= 30 and gap < 1e-3, f"{same} of 32 answers the same, {gap:.1g} nats apart", speed)


def sample_large(place: Place) -> Found:
    """Samples' log-probabilities are what the same engine says when it scores them."""

    async def work() -> tuple[float, float]:
        engine = _engine(place)
        await _sampled(engine, place, 8)  # the first kernels are slow
        samples, speed = await _sampled(engine, place, 128 if place.gpu else 8)
        return await _gap(engine, _said(samples)), speed

    gap, speed = asyncio.run(work())
    return Found(gap < ROUNDING, f"{gap:.1g} nats between sampling and scoring", speed)


def sleep(place: Place) -> Found:
    """An engine that slept gives the memory back, and answers as before."""
    import torch

    def held() -> float:
        return torch.cuda.memory_reserved() / 1e9 if place.gpu else 0.0

    async def work() -> tuple[bool, float, float]:
        engine = _engine(place)
        before, _ = await _sampled(engine, place, 8, temperature=0.0)
        awake = held()
        await engine.sleep()
        asleep = held()
        after, _ = await _sampled(engine, place, 8, temperature=0.0)
        return [s.completion_ids for s in before] == [s.completion_ids for s in after], awake, asleep

    same, awake, asleep = asyncio.run(work())
    freed = asleep < 0.1 * awake or not place.gpu
    said = f"{awake:.2f} GB awake, {asleep:.2f} asleep" if place.gpu else "a CPU gives nothing back"
    return Found(same and freed, said + ("" if same else "; other answers after it"))


# Training


def _trained(place: Place, kind: str, losses: list[float], context: Any, **options: Any) -> dict[str, float]:
    from selfimprove.train.dpo import dpo
    from selfimprove.train.sft import sft

    rows = place.rows(4 * BATCH, pairs=kind == "dpo")
    how: Any = {"sft": sft, "dpo": dpo}[kind]
    given = {"batch_size": BATCH, "epochs": 2, "learning_rate": 1e-3 if context.lora else 1e-4}
    result: dict[str, float] = how(rows, context, **given | options)
    return result


def _learns(losses: Sequence[float]) -> bool:
    return all(map(math.isfinite, losses)) and losses[-1] < losses[0]


def sft_full(place: Place) -> Found:
    """Full fine-tuning: the loss falls."""
    losses: list[float] = []
    result = _trained(place, "sft", losses, place.context("sft", losses))
    said = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return Found(_learns(losses), said, result["tokens"] / result["seconds"], place.estimate("sft", lora=False))


def lora(place: Place) -> Found:
    """An adapter: the loss falls, also where it is continued, and nothing reaches the GPU before training does."""
    losses: list[float] = []
    _trained(place, "sft", [], place.context("lora0", lora=LORA), epochs=0.25)
    again = place.context("lora1", losses, lora=LORA, start=str(place.folder / "lora0"))
    code = f"import gpu_steps; gpu_steps.load_only({place.device!r}, {str(place.folder)!r}, {again.start!r})"
    early = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    quiet = early.returncode == 0
    result = _trained(place, "sft", losses, again)
    said = f"loss {losses[0]:.2f} to {losses[-1]:.2f}"
    said += "" if quiet else f"; loading it: {_last(early.stderr)}"
    return Found(
        _learns(losses) and quiet, said, result["tokens"] / result["seconds"], place.estimate("sft", lora=True)
    )


def load_only(device: str, folder: str, start: str) -> None:
    """Load a policy as a trainer does. Raises RuntimeError where that begins with CUDA."""
    import torch

    from selfimprove.train import load

    load(Place(device, Path(folder)).context("unused", lora=LORA, start=start))
    if torch.cuda.is_initialized():
        raise RuntimeError("loading an adapter opened CUDA in its process")


def dpo_lora(place: Place) -> Found:
    """DPO of an adapter: the reference is the policy itself, so that the first loss is log 2; then it falls."""
    losses: list[float] = []
    result = _trained(place, "dpo", losses, place.context("dpo", losses, lora=LORA))
    first = abs(losses[0] - math.log(2)) < 0.01
    said = f"loss {losses[0]:.4f} (log 2 is {math.log(2):.4f}) to {losses[-1]:.4f}"
    return Found(
        first and _learns(losses), said, result["tokens"] / result["seconds"], place.estimate("dpo", lora=True)
    )


def gradient(place: Place) -> Found:
    """A policy gradient on what the engine sampled: sampler and trainer give the same log-probabilities."""
    from selfimprove.train.policy_gradient import policy_gradient
    from selfimprove.types import Example

    async def work() -> list[Any]:
        engine = _engine(place)
        samples, _ = await _sampled(engine, place, 2 * BATCH)
        engine.close()
        return samples

    rows = [
        Example(
            str(i),
            [],
            s.prompt_ids,
            s.completion_ids,
            advantages=[(-1.0) ** i] * len(s.completion_ids),
            logprobs=s.logprobs,
        )
        for i, s in enumerate(asyncio.run(work()))
    ]
    losses: list[float] = []
    context = place.context("gradient", losses, lora=LORA)
    result = policy_gradient(rows, context, batch_size=BATCH, learning_rate=1e-5)
    ratio = result["sampler_ratio"]
    holds = all(map(math.isfinite, losses)) and abs(ratio - 1) < ROUNDING
    return Found(holds, f"ratio of sampler to trainer {ratio:.4f}", result["tokens"] / result["seconds"])


def checkpointing(place: Place) -> Found:
    """Gradient checkpointing changes the memory and not the losses."""
    import torch

    losses: dict[bool, list[float]] = {True: [], False: []}
    peaks: dict[bool, float] = {}
    for on, own in losses.items():
        if place.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        _trained(place, "sft", own, place.context(f"on{on}", own, gradient_checkpointing=on, lora=LORA), epochs=0.5)
        peaks[on] = torch.cuda.max_memory_allocated() / 1e9 if place.gpu else 0.0
    apart = max(abs(a - b) / b for a, b in zip(losses[True], losses[False], strict=True))
    said = f"losses {apart:.1g} apart" + (f", {peaks[True]:.1f} GB instead of {peaks[False]:.1f}" if place.gpu else "")
    return Found(apart < 0.01 and (peaks[True] < peaks[False] or not place.gpu), said)


# Sampler and trainer


def train(rows: Sequence[Any], context: Any, *, kind: str, die_at: int = 0, rate: float = 1e-4) -> dict[str, float]:
    """A train function for processes of its own. The main process kills itself after step `die_at`."""
    from selfimprove.train.dpo import dpo
    from selfimprove.train.sft import sft

    if context.device == "cpu" and context.training.strategy == "fsdp2":
        # accelerate has FSDP on GPUs only, though torch's runs over gloo: a CPU passes for one of those devices.
        from accelerate import state

        kinds = state.DistributedType
        shown: Any = SimpleNamespace(**{kind.name: kind for kind in kinds} | {"MULTI_NEURON": kinds.MULTI_CPU})
        state.DistributedType = shown

    def log(figures: dict[str, float]) -> None:
        context.log(figures)
        if figures["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    how: Any = {"sft": sft, "dpo": dpo}[kind]
    result: dict[str, float] = how(rows, replace(context, log=log), batch_size=BATCH, learning_rate=rate)
    return result


def _launched(place: Place, out: str, losses: list[float], *, kind: str = "sft", die_at: int = 0, **fields: Any) -> Any:
    """Train in processes of their own, as runs on GPUs do. Returns the context."""
    from selfimprove import store
    from selfimprove.schema import Training
    from selfimprove.train import launch, unfinished
    from selfimprove.types import Example

    fields["training"] = fields.get("training") or Training(own_process=True)
    context = place.context(out, losses, parts=unfinished(place.folder / f"{out}.parts", out), **fields)
    path = place.folder / f"{out}.parquet"
    store.write_records(path, place.rows(6 * BATCH, pairs=kind == "dpo"), Example)
    launch.train({"_target_": "gpu_steps.train", "kind": kind, "die_at": die_at}, path, context)
    return context


async def _turns(place: Place, engine: Any, out: str) -> Found:
    """Sample, sleep, train in another process, take the new weights: what the engine then says of a few answers, beside
    what the trainer said."""
    from gpu_check import used_gb

    from selfimprove import store
    from selfimprove.train.probed import HANDOVER

    await _sampled(engine, place, 8)
    samples, speed = await _sampled(engine, place, 128 if place.gpu else 8)
    awake = used_gb()
    await engine.sleep()
    asleep = used_gb()
    probe = [(s.prompt_ids, s.completion_ids[:32]) for s in samples[:4]]
    trained = await asyncio.to_thread(_launched, place, out, [], probe=probe)
    said = store.read_json(trained.out / HANDOVER)
    engine.load(str(trained.out))
    answers = [(prompt, completion, after) for (prompt, completion), after in zip(probe, said["after"], strict=True)]
    moved = statistics.fmean(
        abs(a - b) for x, y in zip(said["before"], said["after"], strict=True) for a, b in zip(x, y, strict=True)
    )
    gap = await _gap(engine, answers)
    figures = f"{gap:.2g} nats from the trainer, which moved {moved:.2g}"
    if awake is not None and asleep is not None:
        figures += f"; the card had {awake:.1f} GB awake, {asleep:.1f} asleep"
    return Found(gap < ROUNDING and gap < moved, figures, speed)


def handover(place: Place) -> Found:
    """The engine takes weights that another process trained, and says of answers what the trainer said."""
    return asyncio.run(_turns(place, _engine(place), "handover"))


def kill(place: Place) -> Found:
    """A training phase that is killed goes on from its checkpoint and ends as one that was left alone."""
    from selfimprove.errors import RunError
    from selfimprove.schema import Training

    how = {"training": Training(own_process=True, checkpoint_steps=2), "lora": LORA}
    alone: list[float] = []
    again: list[float] = []
    _launched(place, "alone", alone, **how)
    try:
        _launched(place, "killed", [], die_at=3, **how)
        return Found(False, "it was not killed")
    except RunError as problem:
        if "SIGKILL" not in str(problem):
            raise
    _launched(place, "killed", again, **how)
    apart = max(abs(a - b) for a, b in zip(alone, again, strict=True))
    return Found(apart < (1e-2 if place.gpu else 1e-9), f"{len(again)} steps, losses {apart:.1g} apart")


def two_processes(place: Place) -> Found:
    """Two processes have the losses of one: an adapter by ddp, and in full by fsdp2."""
    import torch

    from selfimprove.schema import Training

    if place.gpu and torch.cuda.device_count() < 2:
        return Found(None, "there is one GPU")
    found = []
    for strategy, kind, own in (("ddp", "sft", LORA), ("fsdp2", "sft", None), ("fsdp2", "dpo", None)):
        one: list[float] = []
        two: list[float] = []
        _launched(place, f"one-{strategy}-{kind}", one, kind=kind, lora=own)
        shared: Any = Training(processes=2, strategy=strategy)  # type: ignore[arg-type]
        _launched(place, f"two-{strategy}-{kind}", two, kind=kind, lora=own, micro_batch=4, training=shared)
        apart = max(abs(a - b) / b for a, b in zip(two, one, strict=True))
        found.append((apart, f"{strategy} {kind} {apart:.1g}"))
    return Found(all(apart < 0.01 for apart, _ in found), "losses apart: " + ", ".join(said for _, said in found))


# vLLM


def _vllm(place: Place, eager: bool) -> Any:
    from selfimprove.policy.vllm import VllmEngine
    from selfimprove.schema import Hardware, Model

    model = Model(
        name="random",
        path=place.base,
        max_length=1024,
        max_tokens=128,
        dtype="bfloat16",
        lora=None,
        learning_rate={"sft": 1e-4, "dpo": 1e-5},
        trust_remote_code=False,
    )
    hardware = Hardware(
        name="check",
        device=place.device,
        gpus=1 if place.gpu else 0,
        max_batch=128,
        micro_batch=8,
        gradient_checkpointing=True,
        shard=64,
        sleep=True,
    )
    return VllmEngine(place.base, model, hardware, memory=0.8, eager=eager)


def vllm(place: Place) -> Found:
    """vLLM samples, sleeps, takes weights that another process trained, and says what the trainer said."""
    if find_spec("vllm") is None:
        return Found(None, "vllm is not installed")
    engine = _vllm(place, eager=not place.gpu)
    try:
        return asyncio.run(_turns(place, engine, "vllm"))
    finally:
        engine.close()


def hold(device: str, folder: str) -> None:
    """Open vLLM, have it answer, say so, and wait to be killed."""
    place = Place(device, Path(folder))
    engine = _vllm(place, eager=True)

    async def work() -> None:
        await _sampled(engine, place, 4)
        print("ready", flush=True)
        await asyncio.sleep(3600)

    asyncio.run(work())


def vllm_killed(place: Place) -> Found:
    """No process of vLLM's outlives a runner that is killed."""
    if find_spec("vllm") is None:
        return Found(None, "vllm is not installed")
    code = f"import gpu_steps; gpu_steps.hold({place.device!r}, {str(place.folder)!r})"
    with (place.folder / "hold.log").open("wb") as log:
        runner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log)
    assert runner.stdout
    if b"ready" not in runner.stdout.read(5):
        return Found(False, f"it did not start: {_last((place.folder / 'hold.log').read_text())}")
    below = _below(runner.pid)
    runner.kill()
    runner.wait()
    begun = time.monotonic()
    while (left := [pid for pid in below if _alive(pid)]) and time.monotonic() - begun < 30:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    said = f"{len(left)} of {len(below)} processes were left" if left else f"all {len(below)} processes ended"
    return Found(bool(below) and not left, said)


def _below(pid: int) -> list[int]:
    """The processes that a process started, and theirs."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for own in found:
        found += [child for child, parent in parents.items() if parent == own]
    return found[1:]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# A whole run


def _run(place: Place, *more: str) -> Found:
    from children import selfimprove

    engine = "vllm" if find_spec("vllm") else "transformers"
    asked = ["hardware=gpu_24gb"] if place.gpu else ["hardware=cpu", "hardware.training.own_process=true"]
    asked += [f"engine={engine}", *["engine.eager=true"] * (engine == "vllm"), "rounds=1", "tracker=none", *more]
    asked += ["dataset.train_size=16", "dataset.heldout_size=8", "hardware.max_batch=32"]
    summary = selfimprove(place.folder / f"run{len(more)}", *asked)
    spent = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["rounds"][0]["seconds"].items())
    return Found(summary["status"] == "complete", f"engine={engine}; seconds: {spent}")


def run(place: Place) -> Found:
    """A round of the default method on the embedded policy, as `selfimprove run` does it."""
    return _run(place)


def judge(place: Place) -> Found:
    """The same with a judge that is a second model beside the sampler."""
    return _run(place, "verifier=judge_arithmetic", "verifier.model=base")


def _last(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")


STEPS: dict[str, Callable[[Place], Found]] = {  # what matters most comes first, for a card may be slow
    "model": model,
    "sampling, embedded": sample_embedded,
    "sampling, 1 B": sample_large,
    "SFT": sft_full,
    "LoRA": lora,
    "DPO, LoRA": dpo_lora,
    "policy gradient": gradient,
    "hand-over": handover,
    "vLLM, hand-over": vllm,
    "vLLM, killed": vllm_killed,
    "run": run,
    "run, judge": judge,
    "kill and resume": kill,
    "two processes": two_processes,
    "sleep": sleep,
    "checkpointing": checkpointing,
}
