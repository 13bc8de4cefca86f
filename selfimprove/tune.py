"""`selfimprove tune SWEEP_DIR`: each method's learning rate, from one grid, by dev problems.

A learning rate is a part of a method. It can change the result more than the choice of the method does. So all methods
of a comparison get the same grid, the same seeds and the same dev problems. The sweep is made by `selfimprove run -m`
with `eval.side=dev`. The chosen rates are a file for conf/rates/, which `rates=NAME` gives to later runs.
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.report import fair
from selfimprove.report.compare import differing
from selfimprove.report.runs import RunData, find
from selfimprove.units import Unit

Trials = dict[float, dict[int, float]]  # learning rate -> seed -> final score on dev


@dataclass(frozen=True)
class Choice:
    """A sweep's result for one method. `means` is rate -> mean final score over seeds. `start` is the base's score."""

    method: str
    rate: float
    means: Mapping[float, float]
    start: float

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is at an end of the grid, so that a better one may lie outside."""
        return len(self.means) > 1 and self.rate in (min(self.means), max(self.means))


def choose(folder: Path) -> tuple[list[Choice], Unit]:
    """The best rate of each method in a sweep, the smaller one of equals.

    Raises ConfigError if a run did not end, if runs have other dev problems or start from other policies, and if
    methods have unequal trials.
    """
    runs = [RunData(path) for path in find([folder])]
    trials: defaultdict[str, Trials] = defaultdict(lambda: defaultdict(dict))
    starts: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.side != "dev":
            raise ConfigError(f"{run.path}: was evaluated on {run.side} problems; rates are chosen with eval.side=dev")
        if not run.ended:
            raise ConfigError(f"{run.path}: is {run.status}; `selfimprove resume {folder}` goes on with the sweep")
        seeds = trials[run.method][rate := _rate(run)]
        if run.seed in seeds:
            raise ConfigError(f"{run.path}: method={run.method} was tried twice at {rate:g} with seed {run.seed}")
        seeds[run.seed] = float(np.mean(list(run.heldout[-1].values())))
        starts[run.method].append(float(np.mean(list(run.heldout[0].values()))))
    fair.refuse(runs, other_models=False)
    _require_alike(runs)
    _require_equal(trials)
    found = []
    for method, rates in trials.items():
        means = {rate: float(np.mean(list(rates[rate].values()))) for rate in sorted(rates)}
        best = max(means, key=lambda rate: (means[rate], -rate))
        found.append(Choice(method, best, means, float(np.mean(starts[method]))))
    return found, runs[0].unit


def _rate(run: RunData) -> float:
    train = run.config["method"].get("train") or {}
    if "learning_rate" not in train:
        raise ConfigError(f"{run.path}: method={run.method} has no method.train.learning_rate to choose")
    return float(train["learning_rate"])


def _require_alike(runs: list[RunData]) -> None:
    """Raises ConfigError if runs differ in more than method, learning rate and seed."""
    other = [key for key in differing(runs) if not key.startswith("method.")]
    for method in dict.fromkeys(run.method for run in runs):
        own = differing([run for run in runs if run.method == method])
        other += [key for key in own if key != "method.train.learning_rate"]
    if other:
        raise ConfigError(f"the runs differ in {other[0]}: a sweep of rates may differ only in method, rate and seed")


def _require_equal(trials: Mapping[str, Trials]) -> None:
    """Raises ConfigError unless all methods were tried with the same rates and seeds."""
    tried = {method: {(rate, seed) for rate in rates for seed in rates[rate]} for method, rates in trials.items()}
    every = set().union(*tried.values())
    for method, own in tried.items():
        if lacking := sorted(every - own):
            rate, seed = lacking[0]
            raise ConfigError(
                f"method={method} was not tried at learning rate {rate:g} with seed {seed}, as others were: all "
                "methods get the same trials"
            )


def _yaml(rate: float) -> str:
    """A number as YAML reads it: 1e-05 alone would be text."""
    text = f"{rate:g}"
    return text if "." in text else text.replace("e", ".0e")


def show(choices: list[Choice], unit: Unit) -> None:
    """Print the table: a row for each method, a column for each rate."""
    from rich.table import Table

    from selfimprove.report.display import standard_output

    rates = sorted(choices[0].means)
    table = Table("method", "base", *(f"{rate:g}" for rate in rates), "chosen", title=f"Final {unit.label} on dev")
    for choice in choices:
        chosen = f"{choice.rate:g}" + (" (an end of the grid)" if choice.at_edge else "")
        cells = (unit.show(choice.means[rate]) for rate in rates)
        table.add_row(choice.method, unit.show(choice.start), *cells, chosen)
    standard_output().print(table)


def write(choices: list[Choice], unit: Unit, folder: Path, path: Path) -> None:
    """Write a file of conf/rates/: the chosen rates, and above each one the scores of all rates."""
    command = f"selfimprove tune {shlex.quote(str(folder))} --out {shlex.quote(str(path))}"
    seeds = sorted({RunData(run).seed for run in find([folder])})
    lines = [
        f"# Made by `{command}`: the rate of the best final {unit.label} on dev problems.",
        f"# Mean over seeds {', '.join(map(str, seeds))}, which no comparison is to use.",
    ]
    for choice in choices:
        tried = ", ".join(f"{rate:g}: {unit.show(mean)}" for rate, mean in choice.means.items())
        lines += [f"# base {unit.show(choice.start)}; {tried}", f"{choice.method}: {_yaml(choice.rate)}"]
    store.write_text(path, "\n".join(lines) + "\n")
