"""Tasks to assess: can the policy do this or not? Gold is what was measured of a policy.

A file has a task a line, {"question": ..., "accuracy": ...}: the share of the policy's own answers to it that were
right. A task is feasible where more than half were. `scripts/make_feasibility.py` makes such a file for any model and
data set; the one of the shipped model is in the package. Other fields become the problem's metadata.

A file says what was measured of the model that it was made with. Another model has other limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from selfimprove.datasets import Common, Row, field_of, finish, read_rows
from selfimprove.errors import ConfigError
from selfimprove.policy.models import PACKAGED
from selfimprove.types import Problem

LABELS = ["feasible", "infeasible"]
FEASIBLE = 0.5  # the accuracy above which a task is


def load(*, path: str = "package", seed: int, **common: Unpack[Common]) -> list[Problem]:
    """Problems that ask for one of LABELS, of the tasks in `path`; `package`: those of the shipped model.

    `heldout_share` of them, by a hash of the task, are held out. Raises ConfigError naming file, line and key of what
    is wrong.
    """
    file = PACKAGED / "tiny" / "feasibility.jsonl" if path == "package" else Path(path).expanduser()

    def rows() -> Iterator[Row]:
        for where, fields in read_rows(file, "dataset.path"):
            question, said = field_of(fields, "question", "dataset.path", where), fields.get("accuracy")
            if isinstance(said, bool) or not isinstance(said, int | float) or not 0 <= said <= 1:
                raise ConfigError(f"{where}: accuracy is {said!r}; it must be a number from 0 to 1", "dataset.path")
            metadata = {**fields, "options": LABELS}
            yield Row(f"task-{where.rpartition(':')[2]}", question, LABELS[said <= FEASIBLE], where, None, metadata)

    return finish(rows(), name="feasibility", seed=seed, **common)
