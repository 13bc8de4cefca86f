"""The sides of a data set: `train` is learned from, `dev` is for choices, `test` (held out) gives a run's curve.

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
    """A data set's problems, of which the last `sealed_size` held-out ones are sealed.

    Held-out problems stay as they are without sealed ones where `heldout_size` is a number; null divides all there are.
    Raises ConfigError if no held-out problem is left.
    """
    node, sealed = dataset.model_dump(by_alias=True), dataset.sealed_size
    if sealed and node.get("heldout_size") is not None:
        node["heldout_size"] += sealed
    problems: list[Problem] = list(bind(node, "dataset")(seed=seed))
    heldout = [problem for problem in problems if problem.split == "test"]
    if sealed and len(heldout) <= sealed:
        raise ConfigError(
            f"dataset.sealed_size={sealed}: the held-out side has {len(heldout)} problems, of which some must stay",
            "dataset.sealed_size",
        )
    hidden = {problem.id for problem in heldout[len(heldout) - sealed :]}
    return [replace(problem, split="sealed") if problem.id in hidden else problem for problem in problems]


def evaluated(config: Config, problems: Sequence[Problem]) -> list[Problem]:
    """The problems that a run's policies are evaluated on: the held-out ones, or with `eval.side=dev` the dev ones."""
    side = "dev" if config.eval.side == "dev" else "test"
    return [problem for problem in problems if problem.split == side]


def apart(config: Config, problems: Sequence[Problem]) -> list[Problem]:
    """What no problem to learn from may be like: held-out and sealed problems, and those a run is evaluated on."""
    sides = {"test", "sealed", *(("dev",) if config.eval.side == "dev" else ())}
    return [problem for problem in problems if problem.split in sides]
