"""What the tests of engines that ask vLLM share: the tiny model, other weights and adapters of its shape, and how two
engines compare."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfimprove.datasets import arithmetic
from selfimprove.policy import Engine, Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED, load_model, load_tokenizer
from selfimprove.schema import Hardware, Lora, Model
from selfimprove.types import Sample

TINY = str(PACKAGED / "tiny")
WINDOW = 512
CLOSE = 1e-3  # nats, between two engines in float32
PREAMBLE = "Here is a chain of steps. Work through it line by line, and be careful with each of the lines. " * 3


def model(lora: int | None = None) -> Model:
    """The tiny model's configuration, with adapters of rank `lora`."""
    return Model(
        name="tiny",
        path="package",
        max_length=WINDOW,
        max_tokens=60,
        dtype="float32",
        lora=Lora(r=lora, alpha=2 * lora) if lora else None,
        learning_rate={"sft": 1e-4, "dpo": 1e-5},
        trust_remote_code=False,
    )


def hardware(**more: Any) -> Hardware:
    given = {"name": "test", "device": "cpu", "max_batch": 64, "micro_batch": 8, "gradient_checkpointing": False}
    return Hardware(**given | {"shard": 64} | more)


def reference(path: str = TINY) -> TransformersEngine:
    return TransformersEngine(path, device="cpu", dtype="float32", max_length=WINDOW)


def questions(count: int, preamble: str = "") -> list[str]:
    return [preamble + p.metadata["question"] for p in arithmetic.load(train_size=count, heldout_size=0, seed=0)]


def other_weights(folder: Path) -> str:
    """Weights of the tiny model's shape that say something else."""
    import torch

    changed = load_model(TINY)
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in changed.parameters():
            weights += 0.1 * weights.std() * torch.randn_like(weights)
    changed.save_pretrained(folder)
    load_tokenizer(TINY).save_pretrained(folder)
    return str(folder)


def adapter(folder: Path, seed: int, rank: int = 8, targets: str | list[str] = "all-linear") -> str:
    """An adapter of the tiny model that says something else."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    made: Any = get_peft_model(load_model(TINY), config)
    for name, weights in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.05)
    made.peft_config["default"].base_model_name_or_path = TINY
    made.save_pretrained(folder, save_embedding_layers=False)
    return str(folder)


async def answers(engine: Engine, prompts: Sequence[str], n: int = 1, **sampling: Any) -> list[list[Sample]]:
    """n samples of each prompt, all asked for at once."""
    policy = Policy(engine, seed=0, max_tokens=60)
    return await asyncio.gather(
        *(policy.through(engine, str(i)).sample(p, n, **sampling) for i, p in enumerate(prompts))
    )


def greedy(loop: asyncio.Runner, engine: Engine, prompts: Sequence[str]) -> list[Sample]:
    return [group[0] for group in loop.run(answers(engine, prompts, temperature=0.0))]


def gap(loop: asyncio.Runner, samples: Sequence[Sample], scorer: Engine) -> float:
    """The largest difference, in nats, between what samples say of their log-probabilities and what a scorer says."""

    async def scores() -> list[list[float]]:
        return await asyncio.gather(*(scorer.logprobs(s.prompt_ids, s.completion_ids) for s in samples))

    return max(
        abs(a - b)
        for sample, scored in zip(samples, loop.run(scores()), strict=True)
        for a, b in zip(sample.logprobs, scored, strict=True)
    )


def same_answers(mine: Sequence[Sample], theirs: Sequence[Sample]) -> int:
    """How many of two engines' answers have the same ids. Of those, all else has to be the same too."""
    same = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.completion_ids == b.completion_ids]
    for a, b in same:
        assert (a.text, a.finish, a.prompt_ids) == (b.text, b.finish, b.prompt_ids)
        assert max(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True)) < CLOSE
    return len(same)
