"""Reward models, through TRL's RewardTrainer: a number for a prompt and its completion, read at the last token.

`reward` learns from pairs, by the loss of Bradley and Terry (Ouyang et al. 2022, arXiv 2203.02155, eq. 1):

    L = -log sigmoid(r(x, y_w) - r(x, y_l))

`classifier` learns from single rows with a label b, so that sigmoid(r) is a probability:

    L = -b log sigmoid(r(x, y)) - (1 - b) log sigmoid(-r(x, y))

Both train a role of `kind: sequence`. The first phase starts from a language model and replaces its head by one with a
single output. A later phase goes on from the last reward model. A verifier reads the model (`verifier=reward_model`
with `role`, or Scorer). Token ids reach the model unchanged. Full fine-tuning and LoRA, in one process. Dropout is the
model's own, `model.lora.dropout`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from selfimprove.errors import ConfigError
from selfimprove.policy.models import adapter_base, is_adapter, load_tokenizer, not_found
from selfimprove.train import Optimization, TrainContext, adapted, arguments, planned, require, seed32
from selfimprove.train.fitting import Loader, run
from selfimprove.types import Example, NonNegative

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from selfimprove.schema import Config, Stage

LABEL = "label"  # in the metadata of a row for `classifier`: 1 or 0


def require_stage(config: Config, stage: Stage, where: str, wanted: str = "sequence") -> None:
    """Raises ConfigError unless the stage's learner is a reward model of the `wanted` kind, trained by one process."""
    kind = config.roles[str(stage.role)].kind
    if kind != wanted:
        raise ConfigError(
            f"{where}.role={stage.role}: {where}.train makes a reward model, and this role is of kind {kind}; give the "
            f"method a role of `kind: {wanted}` and name it here",
            where,
        )
    if config.hardware.training.processes > 1:
        raise ConfigError(
            f"hardware.training.processes={config.hardware.training.processes}: a reward model is trained by one "
            "process",
            "hardware.training.processes",
        )
    lora = config.model_of(str(stage.role)).lora
    if lora and lora.quantize:
        raise ConfigError(
            f"model.lora.quantize={lora.quantize}: a reward model's base cannot be in 4 bits; give the role "
            f"{stage.role} a model of its own without it",
            "model",
        )


def pair_row(example: Example) -> dict[str, Any]:
    """Token ids of both sides of a pair, each with its prompt.

    Raises ValueError for a row that is not a pair, and ConfigError for a mask or a weight.
    """
    _require_plain(example)
    if not example.completion_ids or not example.rejected_ids or not example.prompt_ids:
        raise ValueError(f"a row of problem {example.problem_id} is no preference pair: it lacks tokens on one side")
    return {
        "chosen_ids": [*example.prompt_ids, *example.completion_ids],
        "rejected_ids": [*example.prompt_ids, *example.rejected_ids],
    }


def labelled_row(example: Example) -> dict[str, Any]:
    """Token ids of one row, and its label.

    Raises ValueError for a label other than 0 or 1, and ConfigError for a mask, a weight or a pair.
    """
    _require_plain(example)
    label = example.metadata.get(LABEL)
    if label not in (0, 1) or not example.prompt_ids or example.rejected_ids:
        raise ValueError(f"a row of problem {example.problem_id} has no label 0 or 1, no prompt, or is a pair")
    ids = [*example.prompt_ids, *example.completion_ids]
    return {"chosen_ids": ids, "rejected_ids": ids, LABEL: float(label)}  # TRL asks for two sides; one is read


def _require_plain(example: Example) -> None:
    if example.weight != 1 or example.mask is not None:
        raise ConfigError(
            f"a row of problem {example.problem_id} has a weight or a mask, which reward models do not support: use a "
            "filter that makes plain rows"
        )


def reward(
    rows: Sequence[Example], context: TrainContext, *, center: NonNegative = 0.0, **options: Unpack[Optimization]
) -> dict[str, float]:
    """Train a reward model on preference pairs and save it in `context.out`.

    A step's loss is the mean over its pairs of the Bradley-Terry loss, plus `center` times (r_w + r_l)^2, which keeps
    scores near 0 (Eisenstein et al. 2023, arXiv 2312.09244, eq. 2). Returns `loss` (mean over steps), `steps`,
    `seconds`, `tokens` (read), and means over steps of `pair_accuracy` (share of pairs with r_w > r_l) and `margin`
    (r_w - r_l). Raises ValueError for empty rows, ConfigError and RunError as `selfimprove.train` does.
    """
    table = [pair_row(example) for example in rows]
    return fit([example.tokens for example in rows], table, context, options, partial(_pair_trainer, center))


def classifier(rows: Sequence[Example], context: TrainContext, **options: Unpack[Optimization]) -> dict[str, float]:
    """Train a reward model on rows with a label, `Example.metadata["label"]`, and save it in `context.out`.

    A step's loss is the mean over its rows. Returns as `reward` does, without `margin`. `pair_accuracy` is the share of
    rows whose probability is on the label's side of 1/2. Raises as `reward` does.
    """
    table = [labelled_row(example) for example in rows]
    return fit([example.tokens for example in rows], table, context, options, _label_trainer)


def _pair_trainer(center: float) -> tuple[Any, dict[str, Any]]:
    from selfimprove.train.reward_trainer import PairTrainer

    return PairTrainer, {"center_rewards_coefficient": center or None}


def _label_trainer() -> tuple[Any, dict[str, Any]]:
    from selfimprove.train.reward_trainer import LabelTrainer

    return LabelTrainer, {}


def fit(
    lengths: Sequence[int],
    table: list[dict[str, Any]],
    context: TrainContext,
    options: Optimization,
    kind: Callable[[], tuple[Any, dict[str, Any]]],
    loader: Loader | None = None,
) -> dict[str, float]:
    """Train on a table of rows and save. `kind` gives the trainer's class and more arguments of its RewardConfig.

    `loader` gives the model to train. None means a sequence classifier with one output, from `load`.
    """
    if not table:
        raise ValueError("there are no rows to train on")
    order = planned(lengths, context, options)

    def make(folder: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> Any:
        from datasets import Dataset
        from trl.trainer.reward_config import RewardConfig

        trainer, more = kind()
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.get_text_config().pad_token_id)
        return trainer(
            order=order,
            blank=len(table),
            context=context,
            model=model,
            args=RewardConfig(disable_dropout=False, **more, **arguments(context, folder, len(order), options)),
            train_dataset=Dataset.from_list(table),
            processing_class=tokenizer,
        )

    result = run(make, context, loader or load)
    result["tokens"] = float(sum(lengths[i] for i in order))
    return result


def load(
    context: TrainContext, kind: str = "SequenceClassification", outputs: int = 1, task: str = "SEQ_CLS"
) -> tuple[Any, PreTrainedTokenizerBase]:
    """The reward model to train, with its adapter if it has one, and its tokenizer.

    `kind` names the transformers class, `task` is PEFT's name for it, and `outputs` is the size of its head. The
    weights of a new head are drawn by the context's seed. Raises ConfigError for a model whose head has another size,
    or if `start` and `lora` do not fit.
    """
    from transformers import set_seed

    if context.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"model.dtype is {context.dtype}: training takes float32 or bfloat16")
    require(context.lora, context.training, context.device)
    set_seed(seed32(context))
    tokenizer = load_tokenizer(context.start)
    adapter = is_adapter(context.start)
    if bool(context.lora) != adapter and (adapter or context.start != context.base):
        raise ConfigError(
            f"model.lora and {context.start} do not fit: an adapter needs model.lora, and full weights go without"
        )
    dtype = context.dtype if context.lora else "float32"
    model = _with_head(adapter_base(context.start) if adapter else context.start, dtype, kind, outputs)
    text = model.config.get_text_config()
    if text.pad_token_id is None:  # it pads rows, and the model uses it to find the last token
        text.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if context.lora is None:
        return model, tokenizer
    from selfimprove.verify.scoring import HEADS

    head = [name for name in HEADS if hasattr(model, name)]
    return adapted(model, context, task, modules_to_save=head), tokenizer


def _with_head(path: str, dtype: str, kind: str, outputs: int) -> Any:
    """The model in `path` with a head of `outputs` outputs, a new one if it has none.

    Raises ConfigError for a head of another size.
    """
    import torch
    import transformers
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # a head that is new is no news
    try:
        trained = f"For{kind}" in str(AutoConfig.from_pretrained(path).architectures)
        model, info = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
            path,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            output_loading_info=True,
            **({} if trained else {"num_labels": outputs}),
        )
    except OSError as error:
        raise not_found(path, error) from error
    finally:
        logging.set_verbosity(said)
    if isinstance(getattr(model, "dropout", None), torch.nn.Dropout):
        model.dropout.p = 0.0  # transformers puts a dropout before this head, even if the model has none itself
    if model.config.num_labels != outputs:
        raise ConfigError(f"{path}: has {model.config.num_labels} labels, and a reward model is trained with {outputs}")
    if missing := sorted(set(info["missing_keys"]) - {"score.weight", "score.bias"}):
        raise ConfigError(f"{path}: a reward model cannot start from it, its weights lack {', '.join(missing)}")
    return model
