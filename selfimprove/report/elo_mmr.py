"""Elo-MMR ratings (Ebtekar and Liu 2021, arXiv 2101.00400) of those who met in contests, by the package elo-mmr-py."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

DAY = 86_400  # seconds between two contests: ratings drift with time


def installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("elo_mmr_py") is not None


def ratings(contests: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Name -> rating and its standard deviation, after contests in order of time; a new name has 1500 and 350.

    A contest is its standings, best first, divided by blanks; "=" joins equal ones. Raises ImportError if the
    package is missing.
    """
    from elo_mmr_py import Contest, rate_latest

    found = []
    for number, standings in enumerate(contests):
        places, place = [], 0
        for equal in (part.split("=") for part in standings.split()):
            places += [(name, place, place + len(equal) - 1) for name in equal]
            place += len(equal)
        found.append(Contest(name=str(number), time_seconds=number * DAY, standings=places))
    return {name: (one.mu, one.sig) for name, one in rate_latest(found).items()}
