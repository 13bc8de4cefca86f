"""Rows of random ids, and what a saved policy says of them, for the training tests."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from selfimprove.types import Example

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def rows(n: int, *, pairs: bool = False, seed: int = 0) -> list[Example]:
    """n examples of random ids and lengths. Completions neither start with BOS nor end with EOS."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(256) for _ in range(rng.randint(low, high))]

    return [
        Example(f"p{i}", [f"t{i}"], ids(3, 12), ids(2, 14), rejected_ids=ids(2, 14) if pairs else None)
        for i in range(n)
    ]


def advantaged(n: int, seed: int = 0) -> list[Example]:
    """Rows whose tokens have an advantage each, one token of each third row masked out."""
    data = rows(n, seed=seed)
    for i, e in enumerate(data):
        length = len(e.completion_ids)
        e.advantages = [(-1) ** i * (1 + i / 5) + t / 10 for t in range(length)]
        e.logprobs = [-5.0] * length
        e.mask = [0, *[1] * (length - 1)] if i % 3 == 0 else None
    return data


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    files = list(Path(folder).glob("*.safetensors"))
    assert len(files) == 1
    return load_file(files[0])


def logprob(folder: str | Path, prompt: list[int], completion: list[int], lora: bool = False) -> torch.Tensor:
    """log pi of each completion token, by a plain forward of a model loaded as a user would load it."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    model = (AutoPeftModelForCausalLM if lora else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    table = logits.log_softmax(-1)
    return torch.stack([table[len(prompt) + i - 1, token] for i, token in enumerate(completion)])


def timeless(figures: dict[str, float]) -> dict[str, float]:
    """The figures of a training phase without its times."""
    return {name: value for name, value in figures.items() if "seconds" not in name}
