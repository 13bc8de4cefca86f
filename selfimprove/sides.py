"""The sides of a data set. Methods learn from `train`, choices are made on `dev`, and `test` (held out) gives curves.

`sealed` problems are the last of the held-out side. No run samples an answer to them. `selfimprove compare --sealed`
reads them, for the verdict between finished runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfimprove.binding import bind
from selfimprove.errors import ConfigError
from selfimprove.schema import Config, Dataset
from selfimprove.types import Problem


def load(dataset: Dataset, seed: int) -> list[Problem]:
    """A data set's problems. The last `sealed_size` held-out ones are sealed.

    If `heldout_size` is a number, the held-out problems are the same as without sealed ones. If it is null, the
    held-out side is divided between the two. Raises ConfigError if no held-out problem is left.
    """
    node, sealed = dataset.model_dump(by_alias=True), dataset.sealed_size
    if sealed and node.get("heldout_size") is not None:
        node["heldout_size"] += sealed
    problems: list[Problem] = list(bind(node, "dataset")(seed=seed))
    heldout = [problem for problem in problems if problem.split == "test"]
    if sealed and len(heldout) <= sealed:
        raise ConfigError(
            f"dataset.sealed_size={sealed}: the held-out side has {len(heldout)} problems, and some of them must stay",
            "dataset.sealed_size",
        )
    hidden = {problem.id for problem in heldout[len(heldout) - sealed :]}
    return [replace(problem, split="sealed") if problem.id in hidden else problem for problem in problems]


def evaluated(config: Config, problems: Sequence[Problem]) -> list[Problem]:
    """The problems that a run's policies are evaluated on: the held-out ones, or with `eval.side=dev` the dev ones."""
    side = "dev" if config.eval.side == "dev" else "test"
    return [problem for problem in problems if problem.split == side]


def apart(config: Config, problems: Sequence[Problem]) -> list[Problem]:
    """Problems that no training problem may be like: held-out and sealed ones, and those that a run is evaluated on."""
    sides = {"test", "sealed", *(("dev",) if config.eval.side == "dev" else ())}
    return [problem for problem in problems if problem.split in sides]
