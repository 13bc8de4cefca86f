"""CommonsenseQA, Talmor et al. 2019 (arXiv 1811.00937): questions of everyday knowledge with five options.

The test answers are not public, so papers report results on the validation rows. These are held out here.
"""

from __future__ import annotations

from typing import Unpack

from selfimprove.datasets import Common, Side, finish
from selfimprove.datasets.arc_challenge import choice_rows
from selfimprove.types import Problem

HUB = "tau/commonsense_qa"
SPLITS: dict[Side, str] = {"train": "train", "test": "validation"}


def load(*, path: str | None = None, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """Train rows, and validation rows as held-out problems. Validation row 17 has the id "commonsenseqa-test-17"."""
    return finish(choice_rows("commonsenseqa", path, HUB, None, SPLITS), name="commonsenseqa", seed=seed, **common)
