"""`selfimprove compare --plan`: the size of a difference that more problems and more seeds would show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfimprove.report.compare import Cell, Comparison, Group, Table
from selfimprove.report.power import Components

MORE_PROBLEMS = (1, 2, 4)  # times the number of problems
MORE_SEEDS = (3, 5, 10)


def with_plan(comparison: Comparison) -> Comparison:
    """A comparison with one more table: the difference that it can show for each group, now and with more data."""
    tables = [*comparison.tables, plan(comparison.groups, comparison.baseline)]
    return replace(comparison, tables=tables)


def plan(groups: Sequence[Group], baseline: Group | None) -> Table:
    """The table of differences that 80 of 100 comparisons would find, by numbers of problems and seeds."""
    beside = baseline if len(groups) > 1 else None
    unit = groups[0].unit
    rows: list[list[Cell]] = []
    alone = False
    for group in groups:
        if group is beside:
            continue
        seeds = [seed for seed in group.seeds if beside is None or seed in beside.seeds]
        if not seeds:
            continue
        table = group.paired(beside)
        components, count = Components.of(table, unit.scale), table.shape[1]
        alone = alone or len(seeds) == 1
        for times in MORE_PROBLEMS:
            sizes = sorted({len(seeds), *MORE_SEEDS}) if len(seeds) > 1 else [1]
            rows += [[group.name, times * count, k, unit.size(components.shows(times * count, k))] for k in sizes]
    what = f"difference from {beside.name}" if beside else "change from base"
    note = f"80 of 100 such comparisons would show a true {what} of this size, estimated from how these runs vary."
    if alone:
        note += " With one seed nothing is known about the variance by seed: other seeds may differ by more."
    columns = [("group", "text"), ("problems", "number"), ("seeds", "number"), ("shows", "text")]
    return Table("Plan: what it takes to see a difference", columns, rows, note)
