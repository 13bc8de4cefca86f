"""Training that goes on: what a phase leaves for the policy's next phase, with the option `carry` of a train slot.

It leaves the optimizer's moments and the number of steps. If the policy is saved in less than float32, it also leaves
float32 weights: in bfloat16 a step of 1e-6 would be rounded away each time. They are safetensors and JSON files in the
folder `state`, beside `policy`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from selfimprove import store

if TYPE_CHECKING:
    from selfimprove.train import TrainContext

MOMENTS, WEIGHTS, STEPS = "moments.safetensors", "weights.safetensors", "steps.json"


class Moments(TrainerCallback):
    """Gives the optimizer the moments of the last phase before the first step."""

    def __init__(self, last: Path) -> None:
        self.last = last

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            return  # training goes on from a checkpoint, which has the moments
        from safetensors.torch import load_file

        named: dict[str, dict[str, Any]] = {}
        for name, tensor in load_file(self.last / MOMENTS).items():
            key, _, parameter = name.partition("/")
            named.setdefault(parameter, {})[key] = tensor
        optimizer, names = _bare(kwargs["optimizer"]), _names(kwargs["model"])
        order = [names[weight] for group in optimizer.param_groups for weight in group["params"]]
        known = {number: named[name] for number, name in enumerate(order) if name in named}
        optimizer.load_state_dict({"state": known, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_weights(model: Any, last: Path) -> None:
    """Put the float32 weights of the last phase into a model that was loaded from rounded ones."""
    if not (last / WEIGHTS).exists():
        return
    import torch
    from safetensors.torch import load_file

    found = load_file(last / WEIGHTS)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(found[name])


def save(trainer: Any, model: Any, context: TrainContext) -> None:
    """Write `context.state`. Call it before the weights are rounded."""
    from safetensors.torch import save_file

    folder, last = context.state, context.last_state
    assert folder is not None
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(model)
    moments = {
        f"{key}/{names[weight]}": value.detach().cpu().contiguous()
        for weight, kept in _bare(trainer.optimizer).state.items()
        for key, value in kept.items()
    }
    save_file(moments, folder / MOMENTS)
    if context.lora is None and context.dtype != "float32":
        save_file({name: w.detach().cpu().contiguous() for name, w in model.named_parameters()}, folder / WEIGHTS)
    store.write_json(folder / STEPS, {"steps": steps_of(last) + trainer.state.global_step})


def steps_of(state: Path | None) -> int:
    """Optimizer steps of all phases up to the one that wrote this folder; 0 without a folder."""
    return int(store.read_json(state / STEPS)["steps"]) if state else 0


def _names(model: Any) -> dict[Any, str]:
    model = getattr(model, "module", model)  # within DDP
    return {weight: name for name, weight in model.named_parameters() if weight.requires_grad}


def _bare(optimizer: Any) -> Any:
    return getattr(optimizer, "optimizer", optimizer)  # within accelerate
