"""scores.parquet: one number for each held-out problem. Differences are tested on these numbers alone.

A score is 1 or 0 if the unit is accuracy. Else it is the verdict's reward: a return, a negative error, a length score.
Higher is better. selfimprove.units has the units' names and formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove.store import opened

FILE = "scores.parquet"


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one evaluation, in the order of the problems: ids, values, extracted answers, and groups."""

    problem_ids: Sequence[str]
    values: Sequence[float]
    answers: Sequence[str | None]
    groups: Sequence[str | None]  # the value of `eval.by` in the problem's metadata

    @property
    def by_problem(self) -> Mapping[str, float]:
        return dict(zip(self.problem_ids, self.values, strict=True))


_SCHEMA = pa.schema({"problem_id": pa.string(), "value": pa.float64(), "answer": pa.string(), "group": pa.string()})


def write(path: Path, scores: Scores) -> None:
    columns = (scores.problem_ids, scores.values, scores.answers, scores.groups)
    pq.write_table(pa.table([list(column) for column in columns], schema=_SCHEMA), path, compression="zstd")


def read(path: Path) -> Scores:
    """Raises Damaged for a file that does not hold scores."""
    with opened(path) as file:
        found = file.read(use_threads=False).to_pydict()
        return Scores(found["problem_id"], found["value"], found["answer"], found["group"])
