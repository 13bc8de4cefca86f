"""The small models that studies use: the shipped one, and models that a study trains once and finds again.

What such a model learns is in `studies/made/`, a file a model: its documents, and the folder where it is kept. Its
tokenizer and its rows are made by `studies/lessons.py`.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.policy.models import PACKAGED
from selfimprove.store import new_folder
from selfimprove.train import TrainContext
from selfimprove.train.sft import sft
from selfimprove.types import Example

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from selfimprove.policy.hf import TransformersEngine

log = logging.getLogger("selfimprove")

SHIPPED = PACKAGED / "tiny"


def small_llama(tokenizer: PreTrainedTokenizerBase, layers: int, window: int) -> LlamaForCausalLM:
    """A decoder of random weights, 96 wide: what the scripts of the small shipped policies begin with."""
    return random_llama(
        tokenizer,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=3,
        head_dim=32,
        max_position_embeddings=window,
        initializer_range=0.08,  # with the usual 0.02 a model of this size hardly learns to copy
    )


def random_llama(tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> LlamaForCausalLM:
    """A Llama with random weights for a tokenizer's vocabulary. Its input and output embeddings are the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def shipped(path: str | Path = SHIPPED, max_batch: int = 64, max_length: int | None = None) -> TransformersEngine:
    """An engine on a CPU for the shipped model, or for the one in `path`."""
    from selfimprove.policy.hf import TransformersEngine

    return TransformersEngine(str(path), device="cpu", max_batch=max_batch, max_length=max_length)


def trained(
    folder: Path,
    rows: Callable[[], Sequence[Example]],
    start: Callable[[Path], object] | None = None,
    micro_batch: int = 32,
    **options: Any,
) -> Path:
    """The folder of a model after supervised fine-tuning on `rows`, made now unless it is there.

    `start` writes the model to train into a folder; None: the shipped model is trained. `options` are those of
    `train.sft`.
    """
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix="selfimprove-") as fresh, new_folder(folder) as out:
            if start:
                start(Path(fresh))
            begin = fresh if start else str(SHIPPED)
            context = TrainContext(begin, begin, out, 0, "cpu", "float32", micro_batch, False, None, _progress)
            figures = sft(rows(), context, schedule="cosine", **options)
        log.info("study: %s: %s", folder.name, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    return folder


def _progress(record: dict[str, float]) -> None:
    if record["step"] % 100 == 0:
        log.info("study: step %d, loss %.3f", record["step"], record["loss"])


def untrained(folder: Path, **changes: int) -> None:
    """Write a model with random weights, of the shipped model's tokenizer and architecture, into `folder`.

    `changes` are other values of the architecture's configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # type: ignore[no-untyped-call]


def llama(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a Llama of a million parameters with random weights, and its tokenizer, into `folder`."""
    import torch

    torch.manual_seed(0)
    model = random_llama(
        tokenizer,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        head_dim=64,
        max_position_embeddings=tokenizer.model_max_length,
    )
    log.info("study: training a model of %d parameters", model.num_parameters())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
