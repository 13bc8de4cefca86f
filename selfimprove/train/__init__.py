"""Training: a thin layer over TRL. Rows carry token ids, and the model sees exactly those ids.

This module holds what `sft` and `dpo` share: the context of a training phase, the order of rows, the arguments of a
Hugging Face trainer, loading and saving. It imports torch, transformers and TRL inside functions, so that an import of
this module is cheap.

Precision. A policy is saved in `dtype`, and matrix products run in it. In bfloat16, full fine-tuning keeps float32
weights while it trains (autocast), because a step of 1e-5 relative to a bfloat16 weight rounds to nothing. It rounds
once, when the policy is saved. With LoRA the frozen base is held in `dtype`, or in 4 bits (QLoRA), and the adapter in
float32.

Several processes share a phase by one of accelerate's strategies. `launch` starts them. Each device step's loss is
scaled so that the sum over all device steps equals the loss of one process. `TrainContext.parts` holds unfinished work:
checkpoints, from which a killed phase goes on.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict

from selfimprove.errors import ConfigError
from selfimprove.policy.models import is_adapter, load_model
from selfimprove.schema import Training
from selfimprove.train.checkpoints import checkpoint as checkpoint
from selfimprove.train.checkpoints import unfinished as unfinished
from selfimprove.train.probed import Answer
from selfimprove.train.schedules import Infinite, Schedule
from selfimprove.types import Batch, Epochs, NonNegative, Rate, Share

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 64


@dataclass
class Held:
    """What stays in memory between phases: the model as it was saved, and its tokenizer.

    To take it gives the same as to load the policy again, bit for bit. The runner sets `path` once the policy is in its
    place, and `node` to the configuration that trained it.
    """

    path: str = ""
    node: Any = None
    model: Any = None
    tokenizer: Any = None
    reference: dict[str, Any] = field(default_factory=dict)  # the base model by its path, for a KL term

    def only(self, path: str, node: Any) -> None:
        """Let go of the model unless it is this policy and was trained in this way."""
        if (self.path, self.node) != (path, node):
            self.model = self.tokenizer = None


@dataclass(frozen=True)
class TrainContext:
    """Where a training phase starts, where it saves, and what it runs on. It is the same for every algorithm."""

    start: str  # model or policy folder (or hub id) to start from
    base: str  # the base model, which an adapter in `start` belongs to; DPO can take it as its reference
    out: Path  # folder for the new policy: empty, or not there yet
    seed: int
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    micro_batch: int  # most rows in one device step; it changes speed and memory, and the result by rounding only
    gradient_checkpointing: bool
    lora: dict[str, Any] | None  # r, alpha, dropout, target_modules, quantize; None is full fine-tuning
    log: Callable[[dict[str, float]], None]  # called once an optimizer step; `progress` is the share of steps done
    probe: Sequence[Answer] = ()  # answers that the policy is asked about before and after training
    round: int = 0  # the number of this training phase in the run, from 0, for schedules that span all phases
    rounds: int = 1  # how many training phases the run has
    training: Training = field(default_factory=Training)  # `hardware.training`
    parts: Path | None = None  # folder for unfinished work, see `unfinished`; None: nothing is kept
    state: Path | None = None  # with `carry`: folder for what the next phase goes on with (selfimprove.train.carry)
    last_state: Path | None = None  # with `carry`: where the last phase left it; None: this is the first phase
    held: Held | None = None  # what a phase of this process leaves in memory for the next; None: nothing


class Optimization(TypedDict, total=False):
    """The options that every algorithm has."""

    epochs: Epochs  # default 1
    learning_rate: Required[Rate]
    batch_size: Batch  # rows of one optimizer step; default 64
    warmup_ratio: Share  # default 0
    schedule: Schedule  # default constant
    infinite: Infinite  # of schedule=infinite
    weight_decay: Share  # default 0
    max_grad_norm: NonNegative  # 0: gradients are not clipped; default 1
    carry: bool  # optimizer moments and schedule go on from the policy's last training phase; default false


def planned(lengths: Sequence[int], context: TrainContext, options: Optimization) -> list[int]:
    """`plan` for these options. Raises ConfigError as `require_shares` does."""
    batch_size = options.get("batch_size", BATCH_SIZE)
    require_shares(batch_size, context.training.processes)
    return plan(lengths, options.get("epochs", 1), batch_size, context.seed)


def require_shares(batch_size: int, processes: int) -> None:
    """Raises ConfigError if the processes cannot share a batch evenly."""
    if batch_size % processes:
        raise ConfigError(
            f"the train slot's batch_size is {batch_size}: it must be a multiple of "
            f"hardware.training.processes={processes}",
            "hardware.training.processes",
        )


def plan(lengths: Sequence[int], epochs: float, batch_size: int, seed: int) -> list[int]:
    """Row numbers in the order they are trained on, `batch_size` to an optimizer step.

    There are round(epochs * rows) row numbers. Each epoch is a new shuffle, and a step may span two epochs. So only the
    last step can have fewer than `batch_size` rows. In a step, rows are sorted by length, longest first. That saves
    padding and does not change the sum over the step.
    """
    total = max(1, round(epochs * len(lengths)))
    rng, order = random.Random(seed), list[int]()
    while len(order) < total:
        order += rng.sample(range(len(lengths)), len(lengths))
    del order[total:]
    steps = [order[i : i + batch_size] for i in range(0, total, batch_size)]
    return [row for step in steps for row in sorted(step, key=lengths.__getitem__, reverse=True)]


def device_steps(order: Sequence[int], batch_size: int, micro: int, processes: int, blank: int) -> list[list[int]]:
    """The rows of each device step, at most `micro`. Each process takes one of every `processes` steps in a row.

    If an optimizer step has too few rows to give every process a device step of `micro`, they are dealt out evenly. If
    it has fewer rows than there are processes, the others get the row `blank`, which must count for nothing.
    """
    found: list[list[int]] = []
    for start in range(0, len(order), batch_size):
        rows = list(order[start : start + batch_size])
        chunks = [rows[i : i + micro] for i in range(0, len(rows), micro)]
        if count := len(chunks) % processes:
            count = len(chunks) + processes - count
            bounds = [i * len(rows) // count for i in range(count + 1)]
            chunks = [rows[a:b] or [blank] for a, b in itertools.pairwise(bounds)]
        found += chunks
    return found


def arguments(context: TrainContext, folder: str, rows: int, options: Optimization) -> dict[str, Any]:
    """Arguments for a TRL config that trains on `rows` planned rows.

    The trainer writes only checkpoints, into `folder`, and reports nothing.
    `batch_size` rows make one optimizer step, over all processes. A device step holds the largest number of rows that
    divides a process's share and is at most `micro_batch`. So the global batch is always `batch_size`.
    """
    batch_size, schedule = options.get("batch_size", BATCH_SIZE), options.get("schedule", "constant")
    share = batch_size // context.training.processes
    micro = max(n for n in range(1, min(context.micro_batch, share) + 1) if share % n == 0)
    return {
        "output_dir": folder,
        "num_train_epochs": 1,  # `plan` has all epochs in it
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "learning_rate": options["learning_rate"],
        "lr_scheduler_type": {"constant": "constant_with_warmup", "infinite": "constant"}.get(schedule, schedule),
        "lr_scheduler_kwargs": {"infinite": options["infinite"]} if schedule == "infinite" else None,
        # Rounded down: a warm-up step may have a learning rate of 0, and a short phase must not be all warm-up.
        # With `carry` the trainer makes the schedule, and takes the ratio itself.
        "warmup_steps": options.get("warmup_ratio", 0.0)
        if context.state
        else math.floor(options.get("warmup_ratio", 0.0) * math.ceil(rows / batch_size)),
        "weight_decay": options.get("weight_decay", 0.0),
        "max_grad_norm": options.get("max_grad_norm", 1.0),
        "seed": seed32(context),
        "use_cpu": context.device == "cpu",
        "bf16": context.dtype == "bfloat16",
        "gradient_checkpointing": context.gradient_checkpointing,
        "max_length": None,  # rows were sampled inside the model's window: nothing is cut
        "remove_unused_columns": False,
        "dataloader_pin_memory": context.device == "cuda",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must show
        "disable_tqdm": True,
        "report_to": [],
        "save_strategy": "no",  # the trainer asks for its checkpoints itself
        "ddp_find_unused_parameters": False,
    }


def require(lora: dict[str, Any] | None, training: Training, device: str) -> None:
    """Raises ConfigError for options that this machine cannot serve. No model is loaded."""

    def need(package: str, key: str, extra: str) -> None:
        if importlib.util.find_spec(package) is None:
            said = f"{key} needs {package}, which is not installed: pip install 'selfimprove[{extra}]'"
            raise ConfigError(said, key.partition("=")[0])

    alone = training.processes == 1
    if lora and lora.get("quantize"):
        need("bitsandbytes", f"model.lora.quantize={lora['quantize']}", "qlora")
        if not alone and training.strategy != "ddp":
            raise ConfigError(
                f"model.lora.quantize={lora['quantize']}: weights of 4 bits are not split over processes: use "
                "hardware.training.strategy=ddp",
                "hardware.training.strategy",
            )
    if alone and training.strategy != "ddp":
        raise ConfigError(
            f"hardware.training.strategy={training.strategy}: divides a model among processes, and "
            "hardware.training.processes is 1; give more, or use ddp",
            "hardware.training.strategy",
        )
    if training.strategy in ("zero2", "zero3"):
        need("deepspeed", f"hardware.training.strategy={training.strategy}", "deepspeed")
    if training.liger:
        need("liger_kernel", "hardware.training.liger=true", "liger")
        if device != "cuda":
            raise ConfigError("hardware.training.liger=true: its kernels need a GPU", "hardware.training.liger")


def load(context: TrainContext) -> tuple[Any, PreTrainedTokenizerBase]:
    """The policy to train in training precision, with its adapter if it has one, and its tokenizer.

    With LoRA, an adapter in `start` is continued. Otherwise `start` must be the base, which gets a new adapter. Raises
    ConfigError if `start` and `lora` do not fit.
    """
    from transformers import AutoTokenizer, set_seed

    if context.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"model.dtype is {context.dtype}: training takes float32 or bfloat16")
    require(context.lora, context.training, context.device)
    set_seed(seed32(context))
    tokenizer = AutoTokenizer.from_pretrained(context.start)
    adapter = is_adapter(context.start)
    if context.lora is None:
        if adapter:
            raise ConfigError(f"{context.start} holds a LoRA adapter and model.lora is null: set model.lora or merge")
        return _kernels(load_model(context.start, dtype="float32", device="cpu"), context), tokenizer

    if not adapter and context.start != context.base:
        raise ConfigError(
            f"model.lora is set and {context.start} holds full weights: start from an adapter or from {context.base}"
        )
    if context.lora.get("quantize"):
        model: Any = _quantized(context)
    else:
        model = load_model(context.base, dtype=context.dtype, device="cpu")
    return adapted(_kernels(model, context), context, "CAUSAL_LM"), tokenizer


def adapted(model: Any, context: TrainContext, task: str, **more: Any) -> Any:
    """A frozen base with the adapter in `start`, or a new one if `start` has none. `more` has options of a new one.

    Raises ConfigError for an adapter of another rank.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    assert context.lora is not None
    if is_adapter(context.start):
        # By default, PEFT would read it onto the first GPU, from every process.
        model = PeftModel.from_pretrained(model, context.start, is_trainable=True, torch_device="cpu")
        rank = model.peft_config["default"].to_dict()["r"]
        if rank != context.lora["r"]:
            raise ConfigError(f"model.lora.r is {context.lora['r']}: the adapter in {context.start} has rank {rank}")
    else:
        config = LoraConfig(
            r=context.lora["r"],
            lora_alpha=context.lora["alpha"],
            lora_dropout=context.lora["dropout"],
            target_modules=context.lora["target_modules"],
            task_type=task,
            **more,
        )
        model = get_peft_model(model, config)
    made = model.peft_config["default"]
    made.base_model_name_or_path = context.base
    if isinstance(made.target_modules, set):  # each process would write a set in another order
        made.target_modules = sorted(made.target_modules)
    return model


def _quantized(context: TrainContext) -> Any:
    """The frozen base on this process's device, its linear layers in 4-bit NormalFloat, their scales quantized too.

    QLoRA, arXiv:2305.14314, section 3.
    """
    import torch
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, context.dtype),
    )
    place: Any = int(os.environ.get("LOCAL_RANK", "0")) if context.device == "cuda" else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        context.base,
        quantization_config=config,
        dtype=getattr(torch, context.dtype),
        attn_implementation="sdpa",
        device_map={"": place},
    )
    return prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
        model, use_gradient_checkpointing=context.gradient_checkpointing
    )


def packs(context: TrainContext) -> bool:
    """Whether a device step's rows are laid end to end.

    On a GPU they are if flash attention is used. Other attention needs a mask as large as the square of all their
    tokens, and is then slower than padding.
    """
    flash = context.dtype == "bfloat16" and importlib.util.find_spec("flash_attn") is not None
    return context.training.packing and (context.device == "cpu" or flash)


def _kernels(model: Any, context: TrainContext) -> Any:
    """The model with the kernels that the configuration asks for.

    Of Liger only the kernels of layers are used, because its loss gives no log-probability of each token.
    """
    if context.training.liger:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, {"cross_entropy": False, "fused_linear_cross_entropy": False})  # type: ignore[no-untyped-call]
    if packs(context) and context.device == "cuda":
        model.set_attn_implementation("flash_attention_2")
    return model


def seed32(context: TrainContext) -> int:
    return context.seed % 2**32  # what NumPy's generator takes
