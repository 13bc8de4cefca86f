"""Policies that are torch modules: an array in, a class or numbers out.

A policy folder has config.json, which names the module's class and its options, and model.safetensors. A class is a
completion of one id, with its log-probability. Numbers are a sample's `array`. The engine of draws asks a net for many
draws at once.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from selfimprove import trust
from selfimprove.errors import ConfigError
from selfimprove.policy import Request
from selfimprove.policy.draws import Distribution, Draw

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Net(torch.nn.Module):
    """A module that `type(net)(**net.options)` makes again. `options` can be written as JSON."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def draws(self, inputs: torch.Tensor, requests: list[Request]) -> list[Draw]:
        """One draw for each request, from the stacked arrays of the requests, shape (n, *shape)."""
        raise NotImplementedError


class Classifier(Net):
    """`forward` gives logits, shape (n, classes). At temperature 0 the draw is the likeliest class."""

    def draws(self, inputs: torch.Tensor, requests: list[Request]) -> list[Draw]:
        logprobs = torch.log_softmax(self(inputs).float(), -1).cpu().numpy()
        found = []
        for row, request in zip(logprobs, requests, strict=True):
            chosen = _class(row, request)
            found.append(Draw(str(chosen), float(row[chosen]), ids=(chosen,)))
        return found


class Regressor(Net):
    """`forward` gives numbers, shape (n, k). A draw is these numbers; it has no probability."""

    def draws(self, inputs: torch.Tensor, requests: list[Request]) -> list[Draw]:
        rows = self(inputs).float().tolist()
        return [Draw(" ".join(f"{x:.6g}" for x in row), 0.0, array=tuple(row)) for row in rows]


def _class(logprobs: np.ndarray, request: Request) -> int:
    if request.temperature == 0:
        return int(logprobs.argmax())
    gumbel = np.random.default_rng(request.seed).gumbel(
        size=len(logprobs)
    )  # argmax(log p / T + g) ~ softmax(log p / T)
    return int((logprobs / request.temperature + gumbel).argmax())


def read(path: str, device: str = "cpu") -> Distribution:
    """The net in a policy folder, as a function that draws from it. Raises ConfigError if there is none.

    It computes in float64 and rounds to float32, so that a draw does not depend on the batch size.
    """
    net = load(path).double().eval().to(device)

    def draw(requests: list[Request]) -> list[Draw]:
        arrays = [request.array for request in requests]
        if any(array is None for array in arrays):
            raise ValueError("engine=net needs an array in each problem, and a problem has none")
        rows = [(array.shape, array.data) for array in arrays if array]
        if any(shape != rows[0][0] for shape, _ in rows):  # arrays of different shapes: one by one
            return [one for request in requests for one in draw([request])]
        inputs = torch.tensor([data for _, data in rows], dtype=torch.float64, device=device)
        with torch.inference_mode():
            return net.draws(inputs.reshape(len(rows), *rows[0][0]), requests)

    return draw


def load(path: str | Path) -> Net:
    """The net in a policy folder, in float32 on the CPU. Raises ConfigError if there is none."""
    try:
        config = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
        net = _class_of(config.pop("_target_"), path)(**config)
        net.load_state_dict(load_file(Path(path) / WEIGHTS))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as problem:
        reason = str(problem).splitlines()[0]
        raise ConfigError(
            f"model.path: {path} is not the folder of a net, which engine=net needs ({reason})", "model.path"
        ) from None
    return net


def _class_of(target: str, path: str | Path) -> type[Net]:
    """The class that a policy folder names. A stranger may have made the folder. So the class has to be a net of this
    package, or of a module that the user allows (`selfimprove.trust`)."""
    module, _, name = target.rpartition(".")
    if target.startswith("selfimprove.") or trust.allowed(target):
        found = getattr(importlib.import_module(module), name, None)
        if isinstance(found, type) and issubclass(found, Net):
            return found
    raise ConfigError(f"{path}/{CONFIG}: {target} is not a net", "model.path")


def save(net: Net, folder: Path) -> None:
    """Write the net as a policy folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = f"{type(net).__module__}.{type(net).__qualname__}"
    text = json.dumps({"_target_": target, **net.options}, indent=1)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / WEIGHTS)
