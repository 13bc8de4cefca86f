"""Checks predicted probabilities of a chunk's clicks by their log-likelihood."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from selfimprove.report.auc import gauc
from selfimprove.verify import Outcome

NEEDS_GOLD = False
LEAST = 1e-6  # a probability counts as at least this far from 0 and 1


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """The reward is the mean log-likelihood of the labels, in nats an event. `extracted` is the gAUC by user.

    The text has a probability for each event. With another number of values, or a value outside [0, 1], the text is
    `unparseable`.
    """
    labels = np.array(metadata["labels"])
    try:
        p = np.array([float(word) for word in text.split()])
    except ValueError:
        p = np.array([])
    if len(p) != len(labels) or not ((p >= 0) & (p <= 1)).all():
        return Outcome("unparseable", math.log(LEAST), reason=f"no {len(labels)} probabilities")
    p = np.clip(p, LEAST, 1 - LEAST)
    reward = float(np.where(labels == 1, np.log(p), np.log1p(-p)).mean())
    value = gauc(labels, p, metadata["users"])
    return Outcome("correct", reward, extracted=None if math.isnan(value) else f"{value:.6f}")
