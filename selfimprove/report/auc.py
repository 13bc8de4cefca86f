"""Area under the ROC curve of predicted probabilities, overall and by group (gAUC)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def auc(labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray) -> float:
    """P(a positive scores above a negative), with a tie as half: the Mann-Whitney statistic.

    `labels` are 0 or 1, shape (n,); `scores` have the same shape. NaN if there is only one class.
    """
    positive, scores = np.asarray(labels) == 1, np.asarray(scores, dtype=float)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return math.nan
    ordered = np.sort(scores)
    ranks = (np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right") + 1) / 2
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def gauc(
    labels: Sequence[int] | np.ndarray, scores: Sequence[float] | np.ndarray, groups: Sequence[int] | np.ndarray
) -> float:
    """The mean AUC of the groups (users), weighted by their impressions (Zhu et al. 2017, arXiv 1703.02091).

    All three have the shape (n,). A group with one class has no AUC and is left out; NaN if no group is left.
    """
    labels, scores, groups = np.asarray(labels), np.asarray(scores), np.asarray(groups)
    found = [(int(own.sum()), auc(labels[own], scores[own])) for own in (groups == g for g in np.unique(groups))]
    there = [(size, value) for size, value in found if not math.isnan(value)]
    return sum(size * value for size, value in there) / sum(size for size, _ in there) if there else math.nan
