"""A prior over the weights of a small net, for engine=net. Each new episode starts from it.

An episode is an array of shape (points, inputs + outputs + 1). Its columns are x, y, and 1 for a point of the support
or 0 for a point of the query. The y of a query point is 0, so that the policy cannot see the target.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from selfimprove.policy import Request
from selfimprove.policy.draws import Draw
from selfimprove.policy.nets import Net


class Points(NamedTuple):
    """Of b episodes: inputs (b, n, inputs), targets (b, n, outputs), and 1 for each point that counts (b, n)."""

    x: torch.Tensor
    y: torch.Tensor
    counts: torch.Tensor


class Prior(Net):
    """Weights theta ~ N(m, exp(log_v)), both of shape (d,), of a net with two hidden layers.

    `classes` false: y has normal noise of standard deviation `noise`; true: y is a class, one-hot. A draw for an
    episode is an array of shape (points, 2 * outputs): the mean and the variance of the prediction at each point. The
    request's hook infers theta from the support. Without a hook theta is m.
    """

    def __init__(
        self, *, inputs: int, outputs: int, hidden: int = 40, noise: float = 1.0, classes: bool = False
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, hidden=hidden, noise=noise, classes=classes)
        self.inputs, self.outputs, self.noise, self.classes = inputs, outputs, noise, classes
        self.sizes = list(itertools.pairwise((inputs, hidden, hidden, outputs)))
        layers = [torch.cat([torch.randn(a, b) * (2 / a) ** 0.5, torch.zeros(1, b)]).flatten() for a, b in self.sizes]
        self.m = torch.nn.Parameter(torch.cat(layers))
        self.log_v = torch.nn.Parameter(torch.full_like(self.m, -4.6))

    def forward(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Outputs (b, n, outputs) of nets with weights theta (b, d) at inputs (b, n, inputs)."""
        start = 0
        for number, (a, b) in enumerate(self.sizes):
            layer = theta[:, start : start + (a + 1) * b].reshape(-1, a + 1, b)
            x = torch.baddbmm(layer[:, -1:], torch.relu(x) if number else x, layer[:, :-1])
            start += (a + 1) * b
        return x

    def loss(self, theta: torch.Tensor, points: Points) -> torch.Tensor:
        """The negative log-likelihood in nats of each episode's points, shape (b,), up to a constant."""
        found = self(theta, points.x)
        if self.classes:
            each = -(points.y * found.log_softmax(-1)).sum(-1)
        else:
            each = ((points.y - found) ** 2).sum(-1) / (2 * self.noise**2)
        losses: torch.Tensor = (each * points.counts).sum(-1)
        return losses

    def read(self, episodes: torch.Tensor) -> Points:
        """The points of episodes (b, n, inputs + outputs + 1); only points of the support count.

        Raises ValueError for episodes of another width.
        """
        if episodes.shape[-1] != self.inputs + self.outputs + 1:
            own = f"{self.inputs} inputs and {self.outputs} outputs"
            raise ValueError(f"the model answers episodes of {own}, and this one has {episodes.shape[-1] - 1} in all")
        x, y, support = torch.split(episodes, [self.inputs, self.outputs, 1], -1)
        return Points(x, y, support[..., 0])

    def predict(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Mean and variance (b, n, 2 * outputs) of the predictions by several draws of weights theta (draws, b, d)."""
        each = torch.stack([self(one, x) for one in theta])
        each = each.softmax(-1) if self.classes else each
        noise = 0.0 if self.classes else self.noise**2
        return torch.cat([each.mean(0), each.var(0, unbiased=False) + noise], -1)

    def draws(self, inputs: torch.Tensor, requests: list[Request]) -> list[Draw]:
        with torch.inference_mode(False), torch.enable_grad():
            found = torch.empty(*inputs.shape[:2], 2 * self.outputs, dtype=inputs.dtype)
            for hook in {request.hook for request in requests}:
                own = [i for i, request in enumerate(requests) if request.hook == hook]
                points = self.read(inputs[own].clone())
                if hook is None:
                    theta = self.m.expand(1, len(own), -1)
                else:
                    theta = hook(self, points, [requests[i].seed for i in own])  # type: ignore[operator]
                found[own] = self.predict(theta.detach(), points.x).detach().cpu()
        return [Draw("", 0.0, array=tuple(row)) for row in found.float().flatten(1).tolist()]


def normal(seeds: list[int], width: int, like: torch.Tensor) -> torch.Tensor:
    """Standard normals (b, width), one row from each seed, with dtype and device of `like`."""
    rows = [torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows).to(like)
