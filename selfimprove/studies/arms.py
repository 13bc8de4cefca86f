"""The arms of a comparison: each has a name, and what it changes. One table shows them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from rich.table import Table

from selfimprove.studies import Lab, Result

Arms = Mapping[str, Sequence[str]]  # name -> its overrides
Figure = TypeVar("Figure")  # what an arm came to: its runs, its scores
RATE = "method.train.learning_rate"


def run_arms(lab: Lab, common: Sequence[str], arms: Arms) -> dict[str, list[Result]]:
    """The finished runs of each arm, one a seed. An arm's overrides stand behind those that all arms have in common."""
    return {name: lab.over_seeds(*common, *overrides) for name, overrides in arms.items()}


def tuned(arms: Arms, rates: Mapping[str, float], key: str = RATE) -> dict[str, list[str]]:
    """The arms, each with the learning rate that was chosen for it."""
    return {name: [*overrides, f"{key}={rates[name]}"] for name, overrides in arms.items()}


def rate_of(result: Result) -> float:
    """The learning rate that a run was given."""
    return float(next(word for word in result.overrides if word.startswith(f"{RATE}=")).partition("=")[2])


def arms_table(
    title: str, arms: Mapping[str, Figure], columns: Mapping[str, Callable[[Figure], str]], first: str = "arm"
) -> Table:
    """A row for each arm. `columns` gives each column's name and how its cell is made; `first` heads the names."""
    table = Table(first, *columns, title=title)
    for name, figure in arms.items():
        table.add_row(name, *(cell(figure) for cell in columns.values()))
    return table


def rows_of(results: Sequence[Result]) -> float:
    """Rows of the last training, mean over runs."""
    return float(np.mean([result.summary["rounds"][-1]["examples"] for result in results]))


def learning_table(arms: Mapping[str, Sequence[Result]], title: str, first: str = "arm") -> Table:
    """What each arm's training did: greedy held-out accuracy before and after, and what it was given, per run."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return arms_table(
        title,
        arms,
        {
            "base": lambda runs: f"{100 * mean([r.summary['base']['accuracy'] for r in runs]):.1f} %",
            "after": lambda runs: f"{100 * mean([r.summary['final']['accuracy'] for r in runs]):.1f} %",
            "examples a round": lambda runs: (
                f"{mean([row['examples'] for r in runs for row in r.summary['rounds']]):.0f}"
            ),
            "sampled tokens": lambda runs: f"{mean([r.sampled_tokens for r in runs]):,.0f}",
        },
        first,
    )


# A table with a row for each round of each arm

Round = tuple[int, Sequence[Result]]  # its number, and an arm's runs


def each_round(arms: Mapping[str, Sequence[Result]]) -> dict[str, Round]:
    """The rows of such a table, for `arms_table`."""
    return {
        f"{arm}, round {number + 1}": (number, results)
        for arm, results in arms.items()
        for number in range(len(results[0].summary["rounds"]))
    }


def evaluated(row: Round, figure: str) -> float:
    """A figure of the held-out evaluation after a round, mean over runs."""
    number, results = row
    return float(np.mean([result.summary["rounds"][number]["evaluation"][figure] for result in results]))
