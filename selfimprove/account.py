"""The time that a round spends outside of sampling and training: measured after a run, or estimated before it.

On several GPUs sampling and training steps take less time, and all else takes as long as before. Then the time listed
here is a large part of a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfimprove.schema import Config

SAMPLING, STEPS = "sampling and checking", "optimizer steps"
_SERIAL = {  # of a training phase, in metrics.json: figure -> what it is
    "seconds_load": "loading the policy",
    "seconds_prepare": "making the trainer, asking the reference",
    "seconds_save": "saving the policy",
}
_SAMPLES = ("adapt", "generate", "verify", "evaluate", "drift", "also")

# Bytes a second of one process, and seconds; for `estimated`. None was measured on a GPU.
READ, WRITE = 2.0e9, 1.5e9  # of weights, from and to the page cache
HASH = 1.25e9  # sha256 on one core
ADD = 1.0e9  # parameters a second when an adapter is added to its base
PROCESS, PROCESSES = 18.0, 28.0  # one process until its first line of work, or several: imports, CUDA, NCCL
SLEEP, WAKE = 1.0, 3.0  # of vLLM, without the weights
READERS = 4  # so many processes read READERS times as fast as one


def measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a round by what took them, from its metrics.json. Everything but the first two is serial."""
    found: dict[str, float] = dict.fromkeys((SAMPLING, STEPS), 0.0)

    def add(name: str, seconds: float) -> None:
        found[name] = found.get(name, 0.0) + seconds

    for key, value in metrics.items():
        head, _, name = key.rpartition("/")
        phase = (name if head == "seconds" else head).rpartition(".")[2]  # behind the name of a stage
        if head == "seconds" and phase == "train":
            add("starting processes, putting engines to sleep", value)  # and what is taken off below
        elif head == "seconds" and phase in _SAMPLES:
            add(SAMPLING, value)
        elif head == "seconds":
            add("hand-over, merging adapters" if phase == "handover" else "filter and files", value)
        elif name == "hashing_seconds":
            add("hashing what was written", value)
        elif phase == "train" and name in (*_SERIAL, "seconds_steps"):
            add(_SERIAL.get(name, STEPS), value)
            add("starting processes, putting engines to sleep", -value)
    return found


def serial_share(spent: Mapping[str, float]) -> float:
    """The share of a round that is neither sampling nor training."""
    total = sum(spent.values())
    return 1 - (spent[SAMPLING] + spent[STEPS]) / total if total else 0.0


def estimated(config: Config) -> dict[str, float]:
    """Seconds of one round on GPUs outside of sampling and training.

    {} if there are no GPUs, nothing is trained, or the shape of the model is not known.
    """
    from selfimprove.memory import engine_of, lora_parameters, shape_of

    shape, hardware = shape_of(config.model), config.hardware
    if shape is None or hardware.device != "cuda" or not (config.train or config.method.train):
        return {}
    how, engine, lora = hardware.training, engine_of(config), config.model.lora
    e = 2 if config.model.dtype == "bfloat16" else 4
    weights = e * shape.parameters
    saved = 4 * lora_parameters(shape, lora.r, lora.target_modules) if lora else weights
    read = how.processes * (weights if lora else 4 * shape.parameters)
    found = {
        "starting processes, putting engines to sleep": SLEEP + (PROCESSES if how.processes > 1 else PROCESS),
        "loading the policy": read / (READ * min(how.processes, READERS)),
        "saving the policy": saved / WRITE * (2 if how.processes > 1 and not lora else 1),  # gathered before
        "hashing what was written": saved / HASH,
        "hand-over": WAKE + (weights / engine.get("parallel", 1) / READ if hardware.sleep or not lora else 0.0),
    }
    if lora and engine.get("adapters") == "merge":
        found["merging the adapter"] = weights / READ + weights / WRITE + shape.parameters / ADD
    return found
