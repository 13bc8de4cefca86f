"""`selfimprove compare --out FILE.md`: a leaderboard as a page, made of run folders alone.

Its first table has a row for each group, best first: the score, what it cost, the command and the commit. The tables
that `compare` prints stand below.
"""

from __future__ import annotations

from pathlib import Path

from selfimprove.report.compare import Comparison, Group, Table, shown
from selfimprove.report.statistics import Estimate
from selfimprove.store import write_text

_COSTS = {"sampled": "sampled tokens", "prompt": "read tokens"}
_UNITS = {"percent": ", %", "points": ", points"}


def write_board(comparison: Comparison, path: Path, command: str) -> Path:
    """Write the page. `command` is the one that makes it again. Returns the path."""
    first, *others = comparison.tables
    text = ["# Leaderboard", "", f"Made by `{command}`.", "", *(f"- {_cell(said)}" for said in comparison.warnings)]
    text += ["", f"## {first.title}", "", *to_markdown(_leaders(first, comparison.groups))]
    text += ["", *_commands(comparison.groups)]
    for table in others:
        text += ["", f"## {table.title}", "", *to_markdown(table)]
    write_text(path, "\n".join(text).replace("\n\n\n", "\n\n") + "\n")
    return path


def _leaders(table: Table, groups: list[Group]) -> Table:
    """The table of scores, best first, with each group's costs and commit."""
    final = [label for label, _ in table.columns].index("final")

    def score(index: int) -> float:
        cell = table.rows[index][final]
        return cell.value if isinstance(cell, Estimate) else float("-inf")

    order = sorted(range(len(groups)), key=lambda i: -score(i))  # both have the groups in the same order
    rows = []
    for i in order:
        spent, commits = groups[i].spent(), {run.environment.get("git_commit") for run in groups[i].runs}
        commit = ", ".join(sorted(str(name)[:10] for name in commits if name)) or None
        rows.append([*table.rows[i], *(spent[kind] for kind in _COSTS), groups[i].flops(), commit])
    columns = [*table.columns, *((label, "number") for label in _COSTS.values()), ("FLOPs", "flops")]
    return Table(table.title, [*columns, ("commit", "text")], rows, table.note)


def _commands(groups: list[Group]) -> list[str]:
    """The command of each group's first run, seed included."""
    lines = (f"{group.runs[0].command}  # {group.name}".replace("\n", " ") for group in groups)
    return ["Each group's first run:", "", *(f"    {line}" for line in lines)]


def to_markdown(table: Table) -> list[str]:
    """A table as lines of Markdown, with its note below."""
    heads = [_cell(label + _UNITS.get(kind, "")) for label, kind in table.columns]
    rows = [
        [_cell(shown(cell, kind)) for cell, (_, kind) in zip(row, table.columns, strict=True)] for row in table.rows
    ]
    lines = [heads, ["---" if kind == "text" else "---:" for _, kind in table.columns], *rows]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), "", table.note]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
