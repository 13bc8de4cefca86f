"""A small normalising flow over points in the plane: samples, exact densities, 10 thousand parameters.

Affine coupling layers (Dinh et al. 2017, "Density estimation using Real NVP", arXiv 1605.08803, eq. 7-8) map a standard
normal to the data. Each layer moves one coordinate given the other.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from selfimprove.errors import ConfigError
from selfimprove.policy import Request
from selfimprove.policy.draws import Distribution, Draw

WEIGHTS = "flow.safetensors"
LAYERS, HIDDEN, STEEPEST = 8, 32, 2.0


class Flow(torch.nn.Module):
    """x = f(z), z standard normal. Layer i moves coordinate i % 2: x' = x exp(s) + t with (s, t) from the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(1, HIDDEN),
                torch.nn.SiLU(),
                torch.nn.Linear(HIDDEN, HIDDEN),
                torch.nn.SiLU(),
                torch.nn.Linear(HIDDEN, 2),
            )
            for _ in range(LAYERS)
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Points, shape (n, 2), from standard normals of that shape."""
        x = z
        for i, layer in enumerate(self.layers):
            scale, shift = self._terms(layer, x[:, 1 - i % 2])
            x = _moved(x, i % 2, x[:, i % 2] * scale.exp() + shift)
        return x

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """log p(x) in nats, shape (n,), of points (n, 2). It runs the layers backwards."""
        total = x.new_zeros(len(x))
        for i, layer in reversed(list(enumerate(self.layers))):
            scale, shift = self._terms(layer, x[:, 1 - i % 2])
            x = _moved(x, i % 2, (x[:, i % 2] - shift) * (-scale).exp())
            total = total - scale
        return total - (x.square().sum(-1) / 2 + math.log(2 * math.pi))

    @staticmethod
    def _terms(layer: torch.nn.Module, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale, shift = layer(given[:, None]).unbind(-1)
        return STEEPEST * torch.tanh(scale / STEEPEST), shift  # bounded: one step cannot blow a sample up


def _moved(x: torch.Tensor, coordinate: int, value: torch.Tensor) -> torch.Tensor:
    other = x[:, 1 - coordinate]
    return torch.stack((value, other) if coordinate == 0 else (other, value), -1)


def read(path: str) -> Distribution:
    """The flow in a policy folder, as a function that draws from it. Raises ConfigError if there is none."""
    flow = load(path).double()  # so that the batch size does not show in the results, which are float32

    def draw(requests: list[Request]) -> list[Draw]:
        normals = np.stack([np.random.default_rng(request.seed).standard_normal(2) for request in requests])
        with torch.inference_mode():
            points = flow(torch.tensor(normals)).float()
            densities = flow.log_density(points.double()).float()
        both = zip(points.tolist(), densities.tolist(), strict=True)
        return [Draw(f"{x:.6g} {y:.6g}", density, array=(x, y)) for (x, y), density in both]

    return draw


def load(path: str | Path) -> Flow:
    from safetensors.torch import load_file

    flow = Flow()
    try:
        flow.load_state_dict(load_file(Path(path) / WEIGHTS))
    except (OSError, RuntimeError) as problem:
        raise ConfigError(f"{path}: no weights for engine=flow ({str(problem).splitlines()[0]})") from None
    return flow


def save(flow: Flow, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(flow.state_dict(), folder / WEIGHTS)
