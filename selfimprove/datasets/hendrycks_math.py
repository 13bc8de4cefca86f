r"""MATH, Hendrycks et al. 2021 (arXiv 2103.03874): 7,500 train and 5,000 test competition problems in seven subjects.

The gold answer is the content of the solution's last \boxed. The solution, subject and level are in the metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, split_rows
from selfimprove.types import Problem
from selfimprove.verify import last_box

Subject = Literal[
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
]

HUB = "EleutherAI/hendrycks_math"  # one configuration a subject
SPLITS: dict[Side, str] = {"train": "train", "test": "test"}
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s*([^\s{}$.,]+)")  # a few solutions have \boxed 2 or \boxed\pi


def load(
    *,
    path: str | None = None,
    subjects: Sequence[Subject],
    levels: Sequence[Literal[1, 2, 3, 4, 5]] | None = None,
    seed: int,
    **common: Unpack[Common],
) -> list[Problem]:
    """The data set's train and test rows of these subjects and levels (None: all). Ids are "math-train-algebra-17".

    `path` may be the hub's folder, with one folder for each subject, or a file or folder of all subjects together. A
    problem without a box has no gold answer.
    """
    return finish(rows(path, subjects, levels), name="math", seed=seed, **common)


def rows(path: str | None, subjects: Sequence[str], levels: Sequence[int] | None) -> Iterator[Row]:
    """The rows of MATH, read by `split_rows` for one subject after the other."""
    for subject in subjects:
        for side, where, fields in split_rows("math", path, HUB, subject, SPLITS):
            digit = re.search(r"\d", field_of(fields, "level", _KEY, where))
            level = int(digit[0]) if digit else None  # two problems have "Level ?"
            if subject_of(fields, "type", where) != subject or (levels is not None and level not in levels):
                continue
            solution = field_of(fields, "solution", _KEY, where)
            metadata = {"solution": solution, "subject": subject, "level": level}
            name = f"math-{side or 'row'}-{subject}-{where.rpartition(':')[2]}"
            yield Row(name, field_of(fields, "problem", _KEY, where), boxed(solution), where, side, metadata)


_KEY = "math's own"


def subject_of(fields: dict[str, Any], field: str, where: str) -> str:
    """The subject as the hub's configuration name: counting_and_probability for "Counting & Probability"."""
    return field_of(fields, field, _KEY, where).lower().replace("&", "and").replace(" ", "_")


def boxed(solution: str) -> str | None:
    """The content of the last box in a solution; None without one."""
    if (content := last_box(solution)[1]) is not None:
        return content
    bare = _BARE_BOX.findall(solution)
    return str(bare[-1]) if bare else None
