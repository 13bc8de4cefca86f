"""Measures a model's uncertainty from several passes with dropout (`Scorer.passes`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pvariance


def spread(scores: Sequence[float]) -> tuple[float, float]:
    """The mean and variance of the scores of several passes."""
    return fmean(scores), pvariance(scores)


def bald(p: Sequence[float]) -> float:
    """H(mean_t p_t) - mean_t H(p_t) in nats, from the probabilities p_t of several passes.

    It is the mutual information of the label and the weights (Houlsby et al. 2011, arXiv 1112.5745, eq. 2).
    """
    return max(0.0, entropy(fmean(p)) - fmean(map(entropy, p)))


def entropy(p: float) -> float:
    """The entropy of a coin with probability p, in nats."""
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
