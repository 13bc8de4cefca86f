"""One training phase: build a trainer, train from the newest checkpoint on, save."""

from __future__ import annotations

import copy
import functools
import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

from selfimprove.errors import RunError
from selfimprove.train import Held, TrainContext, load, seed32
from selfimprove.train.checkpoints import PROBE, SAVING, checkpoint

FIGURES = {  # figures of steps, whose means are figures of the phase: name in TRL's log -> name here
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
    "kl": "kl",
    "sampler_ratio": "sampler_ratio",
    "accuracy": "pair_accuracy",
    "margin": "margin",
}

CONFIGS = ("config", "generation_config")  # a reward model has no second one

Maker = Callable[[str, Any, Any], Any]  # (folder to work in, model, tokenizer) -> trainer
Loader = Callable[[TrainContext], tuple[Any, Any]]  # -> model, tokenizer


def run(make: Maker, context: TrainContext, load: Loader = load) -> dict[str, float]:
    """Build a trainer with `make`, train from the newest checkpoint on, save. Returns mean loss, steps and seconds.

    `seconds_load` is the time to read the policy. `seconds_prepare` is the time to make the trainer, which also asks
    the reference. `seconds_steps` is the time of the steps, and `seconds_save` that of what comes after. `seconds` is
    the sum of all but the first. `selfimprove.train.probe` writes handover.json beside the weights. Raises ConfigError
    as `load` does. Raises RunError if the loss is no longer a number, or if training does not run as the configuration
    says.
    """
    from selfimprove.train import carry
    from selfimprove.train.probe import Probe

    _settle()
    clock = [time.monotonic()]
    model, tokenizer = _held(context) or load(context)
    clock.append(time.monotonic())
    if context.last_state:
        carry.restore_weights(model, context.last_state)
    # Trainers edit the configs they are given (special tokens, use_cache). A policy keeps its own.
    configs = copy.deepcopy({name: getattr(model, name) for name in CONFIGS if hasattr(model, name)})
    learned = {name: weight.data for name, weight in _adapters_on_bits(model)}
    last = checkpoint(context.parts)
    with tempfile.TemporaryDirectory(prefix="selfimprove-") as folder:
        trainer = make(str(context.parts / SAVING) if context.parts else folder, model, copy.deepcopy(tokenizer))
        trainer.processing_class = None
        for name, weight in _adapters_on_bits(model):
            weight.data = learned.pop(name).to(weight.device)
        kept = context.parts / PROBE if context.parts else None
        probe = Probe(context.probe, context.dtype, kept, last / PROBE if last else None)
        trainer.add_callback(probe)
        if context.last_state:
            trainer.add_callback(carry.Moments(context.last_state))
        clock.append(time.monotonic())
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    clock.append(time.monotonic())
    weights = whole_weights(trainer)
    context.out.mkdir(parents=True, exist_ok=True)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        require_finite(weights.items() if weights else model.named_parameters())
        if context.state:
            carry.save(trainer, model, context)
        if context.lora is None:
            import torch

            dtype = getattr(torch, context.dtype)
            for name, config in configs.items():
                setattr(model, name, config)
            if weights is None:
                model.to(dtype).save_pretrained(context.out)  # this rounds the model itself too
            else:
                model.config.dtype = dtype
                weights = {name: weight.to(dtype) for name, weight in weights.items()}
                model.save_pretrained(context.out, state_dict=weights)
        else:
            model.save_pretrained(context.out, state_dict=weights, save_embedding_layers=False)
        tokenizer.save_pretrained(context.out)
        if context.probe:
            probe.write(context.out)
        if context.held:
            _hold(context.held, model, tokenizer, context)
    steps = [record for record in trainer.state.log_history if "loss" in record]
    return {
        "loss": sum(record["loss"] for record in steps) / len(steps),
        "steps": float(trainer.state.global_step),
        "seconds": trainer.seconds,
        **_spent([*clock, time.monotonic()]),
        **{
            ours: sum(record[name] for record in steps) / len(steps)
            for name, ours in FIGURES.items()
            if all(record.get(name) is not None for record in steps)
        },
    }


def _spent(clock: list[float]) -> dict[str, float]:
    names = ("load", "prepare", "steps", "save")
    return {f"seconds_{name}": end - begin for name, (begin, end) in zip(names, itertools.pairwise(clock), strict=True)}


def _held(context: TrainContext) -> tuple[Any, Any] | None:
    """The model and tokenizer that the last phase left, in the state in which `load` gives them."""
    held = context.held
    if held is None or held.model is None:
        return None
    from transformers import set_seed

    set_seed(seed32(context))
    found = held.model, held.tokenizer
    held.model = held.tokenizer = None  # this phase changes them, so nobody else may take them
    return found


def _hold(held: Held, model: Any, tokenizer: Any, context: TrainContext) -> None:
    """Keep the model for the next phase, without what trainers put on it.

    Weights that were rounded, or are in 4 bits, are not kept: loading them would give other values.
    """
    if (context.lora is None and context.dtype != "float32") or getattr(model, "is_loaded_in_4bit", False):
        return
    model.zero_grad(set_to_none=True)
    for part in (model, model.get_base_model()) if context.lora else (model,):
        for patched in ("forward", "_original_forward"):
            vars(part).pop(patched, None)
    held.model, held.tokenizer = model.eval(), tokenizer


@functools.cache
def _settle() -> None:
    """Keep objects of imported modules out of garbage collection.

    accelerate collects garbage at the start of each training. To look through those objects takes about a fifth of a
    short phase.
    """
    import selfimprove.train.trainers  # noqa: F401  (with all that it imports)

    gc.collect()
    gc.freeze()


def _adapters_on_bits(model: Any) -> list[tuple[str, Any]]:
    """The adapters of a base in 4 bits, which TRL's trainers would round to bfloat16. Empty for another base."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return []
    return [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]


def whole_weights(trainer: Any) -> dict[str, Any] | None:
    """The weights of a model that is split over processes, gathered in the main process. Every process must call this.

    None if each process holds all weights.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return trainer.accelerator.get_state_dict(trainer.model_wrapped)  # type: ignore[no-any-return]
    return None


def require_finite(weights: Iterable[tuple[str, Any]]) -> None:
    """Raises RunError for trained weights that are not finite.

    A step can leave such weights though its loss is finite.
    """
    for name, weight in weights:
        if weight.is_floating_point() and not weight.isfinite().all():
            raise RunError(
                f"train: the weights {name} are not finite after the last step; the learning rate is too high"
            )
