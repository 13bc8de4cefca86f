"""The exact policy: a table with one probability for each outcome."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from selfimprove.errors import ConfigError
from selfimprove.policy import Request
from selfimprove.policy.draws import Distribution, Draw

WEIGHTS = "probabilities.safetensors"


def read(path: str) -> Distribution:
    """The table in a policy folder, as a function that draws from it. Raises ConfigError if there is none."""
    ends = np.cumsum(probabilities(path))
    logprobs = np.log(np.maximum(np.diff(ends, prepend=0.0), math.ulp(0.0)))

    def draw(requests: list[Request]) -> list[Draw]:
        uniforms = [np.random.default_rng(request.seed).random() for request in requests]
        chosen = np.searchsorted(ends, np.array(uniforms) * ends[-1], side="right").tolist()
        return [Draw(str(outcome), float(logprobs[outcome]), ids=(outcome,)) for outcome in chosen]

    return draw


def probabilities(path: str | Path) -> np.ndarray:
    """The table, shape (outcomes,), float64, summing to 1. Raises ConfigError if there is none."""
    from safetensors.numpy import load_file

    try:
        return load_file(Path(path) / WEIGHTS)["probabilities"]
    except (OSError, KeyError) as problem:
        raise ConfigError(f"{path}: no table of probabilities for engine=categorical ({problem})") from None


def save(table: np.ndarray, folder: Path) -> None:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({"probabilities": np.asarray(table, dtype=np.float64)}, folder / WEIGHTS)
