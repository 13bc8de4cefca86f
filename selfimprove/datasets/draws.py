"""Problems without a question, for policies that are not language models: each stands for one draw.

A train problem has one draw of the real data in its metadata, as `real`, in the form of a trainer's example. Held-out
problems have none: each is one fresh draw of the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from selfimprove import seeds
from selfimprove.datasets import Size
from selfimprove.types import Count, Problem

OUTCOMES = 20
MODES, RADIUS, SPREAD = 8, 2.0, 0.2


def categories(*, train_size: Count, dev_size: Size = 0, heldout_size: Count, seed: int) -> list[Problem]:
    """Real data: one of OUTCOMES outcomes. Outcome k has a probability proportional to 1 / (k + 1)."""
    return _problems(
        (train_size, dev_size, heldout_size),
        seed,
        lambda rng: {"completion_ids": [int(rng.choice(OUTCOMES, p=zipf()))]},
    )


def points(*, train_size: Count, dev_size: Size = 0, heldout_size: Count, seed: int) -> list[Problem]:
    """Real data: points in the plane from a mixture of MODES equal Gaussians with standard deviation SPREAD.

    Their means are evenly spaced on a circle of radius RADIUS, the first at (RADIUS, 0).
    """
    return _problems((train_size, dev_size, heldout_size), seed, lambda rng: {"array": mixture(rng)})


def zipf() -> np.ndarray:
    """The real probabilities of the categories, shape (OUTCOMES,)."""
    weights = 1 / np.arange(1, OUTCOMES + 1)
    return np.asarray(weights / weights.sum())


def mixture(rng: np.random.Generator) -> list[float]:
    """One real point."""
    angle = 2 * math.pi * rng.integers(MODES) / MODES
    x, y = rng.normal((RADIUS * math.cos(angle), RADIUS * math.sin(angle)), SPREAD)
    return [float(x), float(y)]


def mixture_log_density(points: np.ndarray) -> np.ndarray:
    """log p_data in nats, shape (n,), of points (n, 2)."""
    angles = 2 * math.pi * np.arange(MODES) / MODES
    means = RADIUS * np.stack((np.cos(angles), np.sin(angles)), -1)
    squares = ((points[:, None] - means) ** 2).sum(-1) / SPREAD**2
    return np.logaddexp.reduce(-squares / 2, axis=1) - math.log(MODES * 2 * math.pi * SPREAD**2)  # type: ignore[no-any-return]


def _problems(
    sizes: tuple[int, int, int], seed: int, real: Callable[[np.random.Generator], dict[str, Any]]
) -> list[Problem]:
    rng = np.random.default_rng(seeds.derive(seed, "draws"))
    train, dev, heldout = sizes
    found = [_problem("train", i, {"real": real(rng)}) for i in range(train)]
    return found + [_problem(side, i, {}) for side, size in (("dev", dev), ("test", heldout)) for i in range(size)]


def _problem(split: Any, number: int, metadata: dict[str, Any]) -> Problem:
    name = f"{split}-{number}"
    return Problem(name, name, None, split, {"question": name, **metadata})
