"""Draws a score over two settings as a heat map of text, for the terminal and for run.log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from selfimprove.report.display import plain

log = logging.getLogger("selfimprove")

SHADES = ("grey23", "grey35", "dark_olive_green4", "yellow4", "gold3", "green3")  # of cells, from the lowest score up
MOST_COLUMNS = 12


def heat_map(rows: Sequence[dict[str, Any]], down: str, across: str, score: str) -> Table:
    """A table with the score in % for each pair of values of `down` and `across`. The first best cell has a star.

    Neighbouring columns with equal cells are merged, under their first and last value. If there are still too many,
    evenly spaced ones and the best are shown.
    """
    scores = {(row[down], row[across]): float(row[score]) for row in rows}
    side = sorted({row[down] for row in rows})
    best = max(sorted(scores), key=scores.__getitem__)
    groups: list[list[float]] = []
    for value in sorted({row[across] for row in rows}):
        column = [scores.get((y, value)) for y in side]
        if groups and column == [scores.get((y, groups[-1][0])) for y in side]:
            groups[-1].append(value)
        else:
            groups.append([value])
    if len(groups) > MOST_COLUMNS:
        chosen = {round(i * (len(groups) - 1) / (MOST_COLUMNS - 2)) for i in range(MOST_COLUMNS - 1)}
        groups = [g for i, g in enumerate(groups) if i in chosen or best[1] in g]
    low, high = min(scores.values()), max(scores.values())
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{score} in %, {down} \\ {across}")
    for group in groups:
        table.add_column(f"{group[0]:g}" if len(group) == 1 else f"{group[0]:g}..{group[-1]:g}", justify="right")
    for y in side:
        cells = []
        for group in groups:
            value = scores.get((y, group[0]))
            if value is None:
                cells.append(Text(""))
                continue
            shade = SHADES[round((value - low) / (high - low or 1) * (len(SHADES) - 1))]
            star = "*" if y == best[0] and best[1] in group else " "
            cells.append(Text(f"{100 * value:.1f}{star}", style=f"on {shade}"))
        table.add_row(f"{y:g}", *cells)
    return table


def log_surface(rows: Sequence[dict[str, Any]], down: str, across: str, score: str) -> None:
    """Log the heat map as plain lines."""
    log.info("\n%s", plain(heat_map(rows, down, across, score)))
