"""Areas under the ROC curve against counts of pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from selfimprove.report.auc import auc, gauc


def test_auc_is_the_share_of_pairs_in_order_and_a_tie_counts_half():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, size=60), rng.integers(8, size=60)
    pairs = [(p > n) + (p == n) / 2 for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean(pairs))
    assert auc([0, 1], [1, 1]) == 0.5
    assert math.isnan(auc([1, 1], [0.1, 0.2]))


def test_gauc_weighs_users_by_impressions_and_leaves_out_those_of_one_class():
    labels, scores, users = [1, 0, 1, 0, 1, 1], [0.9, 0.1, 0.1, 0.9, 0.5, 0.6], [7, 7, 7, 3, 3, 5]
    # user 7: a pair in order and a tie, 3 impressions; user 3: the click scores lower, 2; user 5: only clicks
    assert gauc(labels, scores, users) == pytest.approx((3 * 0.75 + 2 * 0) / 5)
    assert math.isnan(gauc([1, 0], [0.1, 0.2], [1, 2]))
