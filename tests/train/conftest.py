"""A tiny random Llama with a byte-level tokenizer, for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfimprove.train import TrainContext

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
