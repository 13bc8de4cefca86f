"""What small models learn from: tokenizers of their own, and documents as rows of token ids."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from selfimprove.studies.tiny import SHIPPED
from selfimprove.types import Example, Message

ROLES = ("<|system|>", "<|user|>", "<|assistant|>")


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
