"""A tiny random Llama with a byte-level tokenizer, and rows of random ids, for the training tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfimprove.train import TrainContext
from selfimprove.types import Example

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a 2-layer Llama with float32 weights. Its tokenizer adds a BOS to text, and has no pad token."""
    folder = tmp_path_factory.mktemp("base")
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,  # differs from the tokenizer on purpose: a trainer must not edit it
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def context(base: str, tmp_path: Path) -> Callable[..., TrainContext]:
    """Makes a context on the CPU; keyword arguments replace its fields."""

    def make(out: str = "policy", **fields: Any) -> TrainContext:
        defaults: dict[str, Any] = {
            "start": base,
            "base": base,
            "seed": 2**40 + 3,  # as large as seeds.derive makes them
            "device": "cpu",
            "dtype": "float32",
            "micro_batch": 4,
            "gradient_checkpointing": False,
            "lora": None,
            "log": lambda figures: None,
        }
        return TrainContext(out=tmp_path / out, **(defaults | fields))

    return make


def rows(n: int, *, pairs: bool = False, seed: int = 0) -> list[Example]:
    """n examples of random ids and lengths. Completions neither start with BOS nor end with EOS."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(256) for _ in range(rng.randint(low, high))]

    return [
        Example(f"p{i}", [f"t{i}"], ids(3, 12), ids(2, 14), rejected_ids=ids(2, 14) if pairs else None)
        for i in range(n)
    ]


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
