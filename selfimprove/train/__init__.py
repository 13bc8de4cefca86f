"""Training: thin over TRL. Rows carry token ids, and those ids are what the model sees.

What `sft` and `dpo` share is here: the context of a training phase, the order of rows, the arguments of a Hugging Face
trainer, loading and saving. torch, transformers and TRL are imported inside functions, so importing this is cheap.

Precision. `dtype` is what a policy is saved in and what matrix products run in. In bfloat16, full fine-tuning still
keeps float32 weights while it trains (autocast), since a step of 1e-5 relative to a bfloat16 weight rounds to nothing,
and rounds once, when the policy is saved. With LoRA the frozen base is held in `dtype`, and the adapter in float32.
"""

from __future__ import annotations

import copy
import math
import os
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Required, TypedDict

from selfimprove.errors import ConfigError
from selfimprove.policy.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Schedule = Literal["constant", "linear", "cosine"]
BATCH_SIZE = 64


@dataclass(frozen=True)
class TrainContext:
    """Where a training phase starts, where it saves, and what it runs on; the same for every algorithm."""

    start: str  # model or policy folder (or hub id) to start from
    base: str  # the base model: what an adapter in `start` belongs to; the reference of DPO by choice
    out: Path  # folder for the new policy: empty, or not there yet
    seed: int
    device: Literal["cpu", "cuda"]
    dtype: Literal["float32", "bfloat16"]
    micro_batch: int  # most rows in one device step: changes speed and memory, the result by rounding only
    gradient_checkpointing: bool
    lora: dict[str, Any] | None  # r, alpha, dropout, target_modules; None is full fine-tuning
    log: Callable[[dict[str, float]], None]  # called once an optimizer step; `progress` is the share of steps done
    round: int = 0  # which of
    rounds: int = 1  # the run's training phases this is, for schedules that span them


class Optimization(TypedDict, total=False):
    """The options that every algorithm has."""

    epochs: float  # default 1
    learning_rate: Required[float]
    batch_size: int  # rows of one optimizer step; default 64
    warmup_ratio: float  # default 0
    schedule: Schedule  # default constant
    weight_decay: float  # default 0
    max_grad_norm: float  # default 1


def planned(lengths: Sequence[int], seed: int, options: Optimization) -> list[int]:
    """`plan` for these options."""
    return plan(lengths, options.get("epochs", 1), options.get("batch_size", BATCH_SIZE), seed)


def plan(lengths: Sequence[int], epochs: float, batch_size: int, seed: int) -> list[int]:
    """Row numbers in the order they are trained on, `batch_size` to an optimizer step.

    Each epoch is a new shuffle, and the next follows without a gap: round(epochs * rows) row numbers, of which only
    the last step can have fewer than `batch_size`. Inside a step rows are sorted by length, longest first, which saves
    padding and leaves the sum over the step as it was.
    """
    total = max(1, round(epochs * len(lengths)))
    rng, order = random.Random(seed), list[int]()
    while len(order) < total:
        order += rng.sample(range(len(lengths)), len(lengths))
    del order[total:]
    steps = [order[i : i + batch_size] for i in range(0, total, batch_size)]
    return [row for step in steps for row in sorted(step, key=lengths.__getitem__, reverse=True)]


def arguments(context: TrainContext, folder: str, rows: int, options: Optimization) -> dict[str, Any]:
    """Arguments for a TRL config that trains on `rows` planned rows, writes nothing to `folder`, and reports nothing.

    `batch_size` rows make one optimizer step, over all processes. A device step holds the largest number of rows that
    divides a process's share of them and is at most `micro_batch`, so the global batch is always what was asked for.
    Raises ConfigError when the processes cannot share `batch_size` evenly.
    """
    batch_size, schedule = options.get("batch_size", BATCH_SIZE), options.get("schedule", "constant")
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate
    if batch_size % processes:
        raise ConfigError(f"train.batch_size is {batch_size}: it must be a multiple of the {processes} processes")
    share = batch_size // processes
    micro = max(n for n in range(1, min(context.micro_batch, share) + 1) if share % n == 0)
    return {
        "output_dir": folder,
        "num_train_epochs": 1,  # `plan` has all epochs in it
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "learning_rate": options["learning_rate"],
        "lr_scheduler_type": "constant_with_warmup" if schedule == "constant" else schedule,
        # Rounded down: a warm-up step may have a learning rate of 0, and a short phase must not be all warm-up.
        "warmup_steps": math.floor(options.get("warmup_ratio", 0.0) * math.ceil(rows / batch_size)),
        "weight_decay": options.get("weight_decay", 0.0),
        "max_grad_norm": options.get("max_grad_norm", 1.0),
        "seed": _seed32(context),
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
        "save_strategy": "no",
    }


def load(context: TrainContext) -> tuple[Any, PreTrainedTokenizerBase]:
    """The policy to train, in training precision, with its adapter where there is one, and its tokenizer.

    With LoRA, an adapter in `start` is continued; otherwise `start` must be the base, and gets a new one. Raises
    ConfigError when `start` and `lora` do not fit.
    """
    from transformers import AutoTokenizer, set_seed

    if context.dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"model.dtype is {context.dtype}: training takes float32 or bfloat16")
    set_seed(_seed32(context))
    tokenizer = AutoTokenizer.from_pretrained(context.start)
    adapter = (Path(context.start) / "adapter_config.json").exists()
    if context.lora is None:
        if adapter:
            raise ConfigError(f"{context.start} holds a LoRA adapter and model.lora is null: set model.lora or merge")
        return load_model(context.start, dtype="float32", device="cpu"), tokenizer

    from peft import LoraConfig, PeftModel, get_peft_model

    if not adapter and context.start != context.base:
        raise ConfigError(
            f"model.lora is set and {context.start} holds full weights: start from an adapter or from {context.base}"
        )
    model: Any = load_model(context.base, dtype=context.dtype, device="cpu")
    if adapter:
        model = PeftModel.from_pretrained(model, context.start, is_trainable=True)
        rank = model.peft_config["default"].to_dict()["r"]
        if rank != context.lora["r"]:
            raise ConfigError(f"model.lora.r is {context.lora['r']}: the adapter in {context.start} has rank {rank}")
    else:
        config = LoraConfig(
            r=context.lora["r"],
            lora_alpha=context.lora["alpha"],
            lora_dropout=context.lora["dropout"],
            target_modules=context.lora["target_modules"],
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
    model.peft_config["default"].base_model_name_or_path = context.base
    return model, tokenizer


Maker = Callable[[str, Any, Any], Any]  # (folder to work in, model, tokenizer) -> trainer


def run(make: Maker, context: TrainContext) -> dict[str, float]:
    """Build a trainer with `make`, train, save. Returns mean loss, steps and seconds.

    Raises RunError when the loss stops being a number.
    """
    from transformers import AutoTokenizer

    model, tokenizer = load(context)
    # Trainers edit the configs they are given (special tokens, use_cache); a policy keeps those it came with.
    configs = copy.deepcopy((model.config, model.generation_config))
    with tempfile.TemporaryDirectory(prefix="selfimprove-") as folder:
        trainer = make(folder, model, tokenizer)
        trainer.processing_class = None
        result = trainer.train()
    context.out.mkdir(parents=True, exist_ok=True)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if context.lora is None:
            import torch

            model.config, model.generation_config = configs
            model.to(getattr(torch, context.dtype)).save_pretrained(context.out)
        else:
            model.save_pretrained(context.out, save_embedding_layers=False)
        AutoTokenizer.from_pretrained(context.start).save_pretrained(context.out)
    return {
        "loss": result.training_loss,
        "steps": float(result.global_step),
        "seconds": result.metrics["train_runtime"],
    }


def _seed32(context: TrainContext) -> int:
    return context.seed % 2**32  # what NumPy's generator takes
