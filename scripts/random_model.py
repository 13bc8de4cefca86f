"""A Llama of random weights with a byte-level tokenizer, for benchmarks and checks that may not download one."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save(folder: Path, size: dict[str, int], *, ends: float = 0.02, device: str = "cpu", dtype: str = "float32") -> str:
    """Make the model on `device`, save it in `folder` and return its path.

    `size` is what LlamaConfig takes. A share `ends` of the vocabulary are end tokens, so that completions have lengths
    of all kinds.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", max_position_embeddings=1024, bos_token_id=0, eos_token_id=1, **size)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    last = size["vocab_size"] - 1
    model.generation_config.eos_token_id = [1, *range(last, last - int(ends * size["vocab_size"]), -1)]
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    vocabulary = {char: i + 2 for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, **vocabulary}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    fast = make(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    return str(folder)
