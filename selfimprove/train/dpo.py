"""Direct preference optimization (arXiv:2305.18290) and its relatives, through TRL's DPOTrainer.

It does full fine-tuning and LoRA, in one process or several, without dropout, as the authors did. It refuses
Example.mask on pairs, and losses that rank the pairs of a device step (aot). Example.weight is a factor of a pair's
whole loss. A step's loss stays a mean over its pairs, so weights that are 1 on average do not change a step's size.

A pair may carry its own label smoothing e in `Example.metadata["label_smoothing"]`, as in conservative DPO (Mitchell
2023). Its loss is -(1 - e) log sigmoid(z) - e log sigmoid(-z), with z = beta times the margin. That equals the sigmoid
loss plus e z.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from selfimprove.errors import ConfigError
from selfimprove.policy.models import load_model
from selfimprove.train import Optimization, TrainContext, arguments, planned
from selfimprove.train.fitting import run
from selfimprove.types import Example, NonNegative, Positive, Share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
]


def row(example: Example, skip_common: bool = False) -> dict[str, Any]:
    """Token ids of one pair, its label smoothing and its weight.

    With `skip_common`, the tokens that both completions begin with become part of the prompt. Each side keeps at least
    one token. Raises ValueError without two completions, for a smoothing outside 0..1 or a weight below 0. Raises
    ConfigError for a mask.
    """
    if not example.completion_ids or not example.rejected_ids or not example.prompt_ids:
        raise ValueError(f"a row of problem {example.problem_id} is no preference pair: it lacks tokens on one side")
    if example.mask is not None:
        raise ConfigError(
            f"a pair of problem {example.problem_id} has a mask, which train=dpo does not support: use a filter that "
            "makes plain pairs, or train=sft"
        )
    if not 0 <= example.weight < math.inf:
        raise ValueError(
            f"a pair of problem {example.problem_id} has the weight {example.weight}: it must be 0 or more"
        )
    chosen, rejected = example.completion_ids, example.rejected_ids
    smoothing = float(example.metadata.get("label_smoothing", 0.0))
    if not 0 <= smoothing <= 1:
        raise ValueError(f"a pair of problem {example.problem_id} has label_smoothing {smoothing}: it must be 0 to 1")
    common = 0
    if skip_common:
        most = min(len(chosen), len(rejected)) - 1
        common = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    return {
        "prompt_ids": example.prompt_ids + chosen[:common],
        "chosen_ids": chosen[common:],
        "rejected_ids": rejected[common:],
        "label_smoothing": smoothing,
        "weight": example.weight,
        "counts": 1.0,
    }


BLANK = {
    "prompt_ids": [0],
    "chosen_ids": [0],
    "rejected_ids": [0],
    "label_smoothing": 0.0,
    "weight": 1.0,
    "counts": 0.0,
}


def require_options(*, loss: Loss = "sigmoid", label_smoothing: float = 0.0, **options: Any) -> None:
    """Raises ConfigError for options that do not go together. The runner calls this before it begins."""
    if loss not in get_args(Loss):
        raise ConfigError(f"train.loss is {loss!r}: it must be one of {', '.join(get_args(Loss))}")
    if bool(label_smoothing) != (loss in ("robust", "exo_pair")):
        raise ConfigError(
            f"train.label_smoothing is {label_smoothing} and train.loss is {loss}: robust and exo_pair need a value "
            "above 0, and the other losses take none"
        )


def dpo(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    beta: Positive = 0.1,
    loss: Loss = "sigmoid",
    label_smoothing: Share = 0.0,
    sft_weight: NonNegative = 0.0,
    skip_common: bool = False,
    reference: Literal["start", "base"] = "start",
    **options: Unpack[Optimization],
) -> dict[str, float]:
    """Train on preference pairs and save the policy in `context.out`.

    A step's loss is the mean over its pairs of `loss` (one of TRL's, see `Loss`) plus `sft_weight` times the chosen
    completion's NLL per token. `reference` is the policy as the phase starts, or the base model. Its log-probabilities
    are computed once, before the first step. With `skip_common`, loss starts at the first token where the two
    completions differ: that changes averages over tokens, not sums. `label_smoothing` is for `robust` and `exo_pair`; a
    pair's own label smoothing or weight is for `sigmoid`. Returns `loss` (mean over steps), `steps`, `seconds`,
    `tokens` (read) and `loss_tokens`. Raises ValueError for empty rows, ConfigError and RunError as `selfimprove.train`
    does.
    """
    require_options(loss=loss, label_smoothing=label_smoothing)
    if not rows:
        raise ValueError("there are no rows to train on")
    table = [row(example, skip_common) for example in rows]
    if loss != "sigmoid" and any(r["label_smoothing"] for r in table):
        raise ConfigError(f"train.loss is {loss}: pairs with a label smoothing of their own need train.loss=sigmoid")
    if loss != "sigmoid" and any(r["weight"] != 1 for r in table):
        raise ConfigError(f"train.loss is {loss}: pairs with a weight of their own need train.loss=sigmoid")
    config = {"beta": beta, "loss_type": [loss], "label_smoothing": label_smoothing}
    return prefer(rows, table, context, options, config=config, reference=reference, sft_weight=sft_weight)


def prefer(
    rows: Sequence[Example],
    table: list[dict[str, Any]],
    context: TrainContext,
    options: Optimization,
    *,
    config: dict[str, Any],
    reference: Literal["start", "base"],
    sft_weight: float = 0.0,
    classes: Callable[[], tuple[Any, Any]] | None = None,
) -> dict[str, float]:
    """Train by a loss on pairs and save. `table` has the result of `row` for each of `rows`.

    `config` has arguments for TRL's DPOConfig. `classes` is called when training starts. It returns a trainer and a
    collator to use instead of PreferenceTrainer and PreferenceCollator. Returns and raises as `dpo` does.
    """
    order = planned([example.tokens for example in rows], context, options)

    def make(folder: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        from datasets import Dataset
        from trl.trainer.dpo_config import DPOConfig

        from selfimprove.train.trainers import PreferenceCollator, PreferenceTrainer

        trainer, collator = classes() if classes else (PreferenceTrainer, PreferenceCollator)
        other = context.lora is None and reference == "base" and context.start != context.base
        return trainer(
            order=order,
            blank=len(table),
            context=context,
            sft_weight=sft_weight,
            reference=reference,
            model=model,
            ref_model=load_model(context.base, dtype="float32", device="cpu") if other else None,
            args=DPOConfig(precompute_ref_log_probs=True, **config, **arguments(context, folder, len(order), options)),
            train_dataset=Dataset.from_list(table if context.training.processes == 1 else [*table, table[0] | BLANK]),
            data_collator=collator(pad_token_id=tokenizer.pad_token_id or 0),
            processing_class=tokenizer,
        )

    result = run(make, context)
    result["tokens"] = float(sum(rows[i].tokens for i in order))
    result["loss_tokens"] = float(sum(len(table[i]["chosen_ids"]) + len(table[i]["rejected_ids"]) for i in order))
    return result
