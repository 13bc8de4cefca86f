"""The small models that studies use: the shipped one, and models that a study trains once and finds again.

What such a model learns is in `studies/made/`, a file a model: its documents, and the folder where it is kept.
"""

from __future__ import annotations

import logging
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.policy.models import PACKAGED
from selfimprove.store import new_folder
from selfimprove.train import TrainContext
from selfimprove.train.sft import sft
from selfimprove.types import Example, Message

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

    from selfimprove.policy.hf import TransformersEngine

log = logging.getLogger("selfimprove")

SHIPPED = PACKAGED / "tiny"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


def small_llama(tokenizer: PreTrainedTokenizerBase, layers: int, window: int) -> LlamaForCausalLM:
    """A decoder of random weights, 96 wide: what the scripts of the small shipped policies begin with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=3,
        head_dim=32,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        initializer_range=0.08,  # with the usual 0.02 a model of this size hardly learns to copy
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
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
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=2,
            head_dim=64,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    log.info("study: training a model of %d parameters", model.num_parameters())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def batched(
    rng: random.Random, rows: Iterable[tuple[list[int], list[int]]], tokens: int, padding: int
) -> Iterator[tuple[Any, Any]]:
    """(input_ids, labels) of about `tokens` tokens each, padded on the right, rows of like length together, shuffled.

    A row is its ids, and labels that are -100 where nothing is learnt.
    """
    import torch

    groups: list[list[tuple[list[int], list[int]]]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if (len(groups[-1]) + 1) * len(row[0]) > tokens:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        width = len(group[-1][0])
        inputs = torch.full((len(group), width), padding)
        targets = torch.full((len(group), width), -100)
        for i, (ids, labels) in enumerate(group):
            inputs[i, : len(ids)], targets[i, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
        yield inputs, targets


def make_tokenizer(texts: Iterable[str], vocabulary: int, window: int, words: bool = False) -> Any:
    """Byte-level BPE of these texts, in which digits and line breaks stand alone, with the shipped chat template.

    With `words` no token goes across the end of a word.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<bos>", "<eos>", *ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=list(ROLES),
        model_max_length=window,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (SHIPPED / "chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def dialogue_row(tokenizer: Any, messages: list[Message], learnt: Sequence[str], name: str) -> Example:
    """A dialogue as an example. Of each assistant's turn the start that `learnt` names bears loss.

    Of the last turn that is all of it, and then its end token bears loss too.
    """
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    opened = tokenizer.convert_tokens_to_ids(ROLES[-1])
    starts = [i + 1 for i, token in enumerate(ids) if token == opened]
    mask = [0] * len(ids)
    for start, text in zip(starts, learnt, strict=True):
        length = len(tokenizer(text, add_special_tokens=False)["input_ids"]) + (start == starts[-1])
        mask[start : start + length] = [1] * length
    cut = starts[0]
    return Example(name, [name], ids[:cut], ids[cut:], mask=mask[cut:])


def answer_row(tokenizer: Any, prompt: str | list[Message], reply: str, name: str = "") -> Example:
    """A prompt and the reply to learn, its end token included."""
    from selfimprove.policy import chat

    return Example(name, [], chat.render(tokenizer, prompt), [*chat.encode(tokenizer, reply), tokenizer.eos_token_id])
