"""Supervised fine-tuning on sampled completions, through TRL's SFTTrainer.

Example.mask says which completion tokens bear loss, and Example.weight is a factor of a row's loss. It does full
fine-tuning and LoRA, in one process or several. Methods that retrain from the base each round pass the base as
`context.start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from selfimprove.train import Optimization, TrainContext, arguments, packs, planned
from selfimprove.train.fitting import run
from selfimprove.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def row(example: Example) -> dict[str, Any]:
    """Token ids and labels of one example. A label is -100 on the prompt, on a first token, and where the mask is 0."""
    mask = example.mask or [1] * len(example.completion_ids)
    labels = [-100] * len(example.prompt_ids)
    labels += [token if kept else -100 for token, kept in zip(example.completion_ids, mask, strict=True)]
    ids = [*example.prompt_ids, *example.completion_ids]
    return {"input_ids": ids, "labels": [-100, *labels[1:]], "weight": example.weight}


BLANK = {"input_ids": [0, 0], "labels": [-100, -100], "weight": 0.0}


def sft(
    rows: Sequence[Example],
    context: TrainContext,
    **options: Unpack[Optimization],
) -> dict[str, float]:
    """Train on `rows` and save the policy in `context.out`.

    A step's loss is the sum of weight * NLL (nats) over its labelled tokens, divided by their number. Returns `loss`
    (mean over steps), `steps`, `seconds`, `tokens` (read) and `loss_tokens`. Raises ValueError if no token of `rows`
    bears loss, ConfigError and RunError as `selfimprove.train` does.
    """
    table = [row(example) for example in rows]
    labelled = [sum(label != -100 for label in r["labels"]) for r in table]
    if not sum(labelled):
        raise ValueError("there is no token to train on: the rows are empty or masked out")
    lengths = [len(r["input_ids"]) for r in table]
    order = planned(lengths, context, options)

    def make(folder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        from datasets import Dataset
        from trl.trainer.sft_config import SFTConfig

        from selfimprove.train.trainers import SupervisedTrainer, WeightedCollator

        config = SFTConfig(
            dataset_kwargs={"skip_prepare_dataset": True},
            **arguments(context, folder, len(order), options),
        )
        return SupervisedTrainer(
            order=order,
            blank=len(table),
            context=context,
            model=model,
            args=config,
            train_dataset=Dataset.from_list(table if context.training.processes == 1 else [*table, BLANK]),
            data_collator=WeightedCollator(tokenizer.pad_token_id or 0, padding_free=packs(context)),
            processing_class=tokenizer,
        )

    result = run(make, context)
    result["tokens"] = float(sum(lengths[i] for i in order))
    result["loss_tokens"] = float(sum(labelled[i] for i in order))
    return result
