"""Figures of continual learning, from the accuracies a_{k,j} on task j after training on task k, both from 1.

    AA_k  = mean_{j<=k} a_{k,j}                      average accuracy
    AIA   = mean_k AA_k                              average incremental accuracy
    FM_k  = mean_{j<k} max_{i<k} (a_{i,j} - a_{k,j}) forgetting measure
    BWT_k = mean_{j<k} (a_{k,j} - a_{j,j})           backward transfer
    FWT_GEM = mean_{j>=2} (a_{j-1,j} - a_{0,j})      forward transfer, against the untrained model (Lopez-Paz and
                                                     Ranzato 2017, arXiv:1706.08840)
    FWT_k = mean_{2<=j<=k} (a_{j,j} - a~_j)          forward transfer, against a fresh model trained on task j alone
    IM_k  = a*_k - a_{k,k}                           intransigence, against one trained on all tasks up to k jointly

The names are those of the survey of Wang et al. (2024, arXiv:2302.00487), section 2. FWT and IM need other runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from selfimprove.scores import Scores


def matrix(evaluations: Sequence[Scores]) -> np.ndarray:
    """Mean scores, shape (evaluations, tasks). Row 0 is the base policy, and row k the policy after round k - 1.

    Raises ValueError for scores without a task, which need `eval.by=task`.
    """
    rows = []
    for scores in evaluations:
        groups = defaultdict[int, list[float]](list)
        for group, value in zip(scores.groups, scores.values, strict=True):
            if group is None:
                raise ValueError("scores have no task: set eval.by=task")
            groups[int(group)].append(value)
        rows.append([float(np.mean(groups[task])) for task in sorted(groups)])
    return np.array(rows)


def figures(evaluations: Sequence[Scores]) -> dict[str, float]:
    """For `method.figures`: AA, AIA, FM, BWT and FWT_GEM after the last round; {} for the base policy."""
    a = matrix(evaluations)
    rounds = len(a) - 1
    if not rounds:
        return {}
    found = {"AA": average(a), "AIA": float(np.mean([average(a[: k + 1]) for k in range(1, rounds + 1)]))}
    if rounds > 1:
        found |= {"FM": forgetting(a), "BWT": backward(a), "FWT_GEM": forward_gem(a)}
    return found


# Of a matrix with row 0, shape (k + 1, tasks >= k)


def average(a: np.ndarray) -> float:
    """AA_k."""
    k = len(a) - 1
    return float(a[k, :k].mean())


def forgetting(a: np.ndarray) -> float:
    """FM_k, for k > 1."""
    k = len(a) - 1
    return float((a[1:k, : k - 1].max(0) - a[k, : k - 1]).mean())


def backward(a: np.ndarray) -> float:
    """BWT_k, for k > 1."""
    k = len(a) - 1
    return float((a[k, : k - 1] - np.diag(a[1:, :k])[: k - 1]).mean())


def forward_gem(a: np.ndarray) -> float:
    """FWT_GEM, for k > 1."""
    k = len(a) - 1
    return float(np.mean([a[j - 1, j - 1] - a[0, j - 1] for j in range(2, k + 1)]))


def forward(a: np.ndarray, alone: np.ndarray) -> float:
    """FWT_k, for k > 1. `alone[j - 1]` is a~_j."""
    k = len(a) - 1
    return float(np.mean([a[j, j - 1] - alone[j - 1] for j in range(2, k + 1)]))


def intransigence(a: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """IM_1 ... IM_k, shape (k,). Above 0, the jointly trained model is better. `joint[k - 1]` is a*_k."""
    return joint - np.diag(a[1:, : len(joint)])
