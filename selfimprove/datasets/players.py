"""The players of a leaderboard: baseline pipelines of scikit-learn, drawn by a seed, the same ones in every task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from selfimprove import seeds
from selfimprove.tools.pipeline import score

SHARE = 0.5  # the least share of the labelled rows, and of the columns, that a player uses


def scores(
    x: Any, y: Any, asked: Any, true: Any, *, classify: bool, metric: str, count: int, seed: int
) -> dict[str, float]:
    """Player -> its score on the rows `asked`, of which `true` are the targets.

    x, asked: numbers of shape (rows, columns); y, true: class numbers or values, of shape (rows,). Each player
    learns from some of the rows and of the columns.
    """
    from threadpoolctl import threadpool_limits

    found = {}
    with threadpool_limits(1):
        for number in range(count):
            rng = np.random.default_rng(seeds.derive(seed, "player", number))
            build = FAMILIES[number % len(FAMILIES)]
            model = build(rng, classify)
            rows = rng.permutation(len(x))[: round(rng.uniform(SHARE, 1) * len(x))]
            columns = rng.permutation(x.shape[1])[: max(1, round(rng.uniform(SHARE, 1) * x.shape[1]))]
            guess = model.fit(x[rows][:, columns], y[rows]).predict(asked[:, columns])
            found[f"p{number:02d}"] = score(metric, true, guess)
    return found


def _constant(rng: np.random.Generator, classify: bool) -> Any:
    from sklearn.dummy import DummyClassifier, DummyRegressor

    return DummyClassifier() if classify else DummyRegressor()


def _tree(rng: np.random.Generator, classify: bool) -> Any:
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    kind = DecisionTreeClassifier if classify else DecisionTreeRegressor
    return kind(max_depth=int(rng.integers(1, 9)), random_state=0)


def _neighbours(rng: np.random.Generator, classify: bool) -> Any:
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    return (KNeighborsClassifier if classify else KNeighborsRegressor)(n_neighbors=int(rng.integers(1, 15)))


def _linear(rng: np.random.Generator, classify: bool) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    strength = float(10 ** rng.uniform(-3, 2))
    model = LogisticRegression(C=1 / strength, max_iter=200) if classify else Ridge(alpha=strength)
    return make_pipeline(StandardScaler(), model)


def _support(rng: np.random.Generator, classify: bool) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, SVR

    return make_pipeline(StandardScaler(), (SVC if classify else SVR)(C=float(10 ** rng.uniform(-1, 2))))


def _forest(rng: np.random.Generator, classify: bool) -> Any:
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestClassifier if classify else RandomForestRegressor
    return kind(n_estimators=int(rng.integers(5, 21)), random_state=0)


FAMILIES: tuple[Callable[[np.random.Generator, bool], Any], ...] = (
    _forest,
    _support,
    _linear,
    _neighbours,
    _tree,
    _constant,
)
