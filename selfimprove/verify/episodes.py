"""Checks the predictions for an episode's query. metadata["targets"] has its targets, one list for each point.

An answer has a line for each point: the means of its outputs, then their variances.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from selfimprove.verify import Outcome

NEEDS_GOLD = False
Z = 1.959964  # of a 95 % interval


def regression(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """The reward is minus the mean squared error. `extracted` is the share of targets in their 95 % intervals.

    An answer of another shape is `unparseable`. Its reward is minus the mean square of the targets.
    """
    targets = np.array(metadata["targets"])
    if (found := _read(text, targets.shape)) is None:
        return Outcome("unparseable", -float((targets**2).mean()), reason=f"no numbers of shape {targets.shape}")
    means, variances = found
    inside = np.abs(targets - means) <= Z * np.sqrt(variances)
    return Outcome("correct", -float(((targets - means) ** 2).mean()), extracted=f"{inside.mean():.6f}")


def classification(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """The reward is the share of points whose likeliest class is the target's; targets are one-hot."""
    targets = np.array(metadata["targets"])
    if (found := _read(text, targets.shape)) is None:
        return Outcome("unparseable", 0.0, reason=f"no numbers of shape {targets.shape}")
    return Outcome("correct", float((found[0].argmax(1) == targets.argmax(1)).mean()))


def _read(text: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Means and variances, each of this shape."""
    try:
        rows = np.array([line.split() for line in text.splitlines()], dtype=float)
    except ValueError:
        return None
    if rows.shape != (shape[0], 2 * shape[1]) or not np.isfinite(rows).all():
        return None
    return rows[:, : shape[1]], np.maximum(rows[:, shape[1] :], 0)
