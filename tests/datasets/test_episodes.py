"""Episodes: what is shown, what is hidden, and whose letters they are."""

from __future__ import annotations

import numpy as np
import pytest

from selfimprove.datasets import episodes
from selfimprove.errors import ConfigError


def test_a_wave_is_shown_in_part_and_its_query_is_hidden():
    found = episodes.sine(shots=5, queries=10, noise=0, train_size=3, heldout_size=2, seed=0)
    for problem in found:
        x, y, support = np.array(problem.array.data).reshape(problem.array.shape).T
        assert support.tolist() == [1] * 5 + [0] * 10
        assert not y[5:].any()
        every = np.concatenate([y[:5], np.ravel(problem.metadata["targets"])])
        waves = np.column_stack([np.sin(x), np.cos(x)])  # A sin(x + p) is a sum of these two
        coefficients, *_ = np.linalg.lstsq(waves, every, rcond=None)
        assert waves @ coefficients == pytest.approx(every, abs=1e-4)
        assert 0.1 <= np.hypot(*coefficients) <= 5


def test_held_out_episodes_are_the_same_for_every_seed():
    first, other = (episodes.sine(shots=1, queries=1, noise=0.1, train_size=2, heldout_size=2, seed=s) for s in (0, 1))
    assert first[2:] == other[2:]
    assert first[:2] != other[:2]


def test_glyphs_of_held_out_episodes_are_in_no_train_episode():
    found = episodes.glyphs(ways=5, shots=2, queries=3, train_size=40, heldout_size=40, seed=0)
    pictures = {"train": set(), "test": set()}
    for problem in found:
        rows = np.float32(problem.array.data).reshape(problem.array.shape)
        assert problem.array.shape == (25, episodes.SIDE**2 + 6)
        assert rows[:10, -6:-1].sum(0).tolist() == [2] * 5
        assert not rows[10:, -6:].any()
        assert len({row[:-6].tobytes() for row in rows}) == 25
        assert np.sum(problem.metadata["targets"], axis=0).tolist() == [3] * 5
        pictures[problem.split] |= {row[:-6].tobytes() for row in rows}
    assert not pictures["train"] & pictures["test"]


def test_too_many_pictures_of_a_letter_are_one_line():
    with pytest.raises(ConfigError, match="a letter has at most 18 pictures, but shots and queries need 21"):
        episodes.glyphs(ways=5, shots=1, queries=20, train_size=1, heldout_size=1, seed=0)
