"""`selfimprove compare --export DIR`: tables as CSV and LaTeX, all figures as JSON, plots as PDF and PNG."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from selfimprove.report.compare import Cell, Comparison, Group, Table, shown, write_json
from selfimprove.report.statistics import Estimate
from selfimprove.store import new_file, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (5.5, 3.4)  # of a plot: the width of a text column


def export(comparison: Comparison, folder: Path) -> list[Path]:
    """Write everything to `folder`, replacing the files of an earlier export. Returns the files."""
    files = [folder / "comparison.json"]
    write_json(comparison, files[0])
    for table in comparison.tables:
        stem = re.sub(r"\W+", "_", table.title.lower())
        for name, text in ((f"{stem}.csv", to_csv(table)), (f"{stem}.tex", to_latex(table))):
            write_text(folder / name, text)
            files.append(folder / name)
    for name, figure in plots(comparison):
        for kind in ("pdf", "png"):
            files.append(folder / f"{name}.{kind}")
            # Without a date, the same figures make the same file.
            with new_file(files[-1]) as temporary:
                figure.savefig(
                    temporary, format=kind, dpi=200, metadata={"CreationDate": None} if kind == "pdf" else {}
                )
    return files


def to_csv(table: Table) -> str:
    """A table as CSV: accuracies are shares, and an interval takes two more columns."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    wide = [any(isinstance(row[i], Estimate) for row in table.rows) for i in range(len(table.columns))]
    heads = ([label, f"{label} low", f"{label} high"] for label, _ in table.columns)
    writer.writerow([name for names, w in zip(heads, wide, strict=True) for name in (names if w else names[:1])])
    for row in table.rows:
        writer.writerow([number for cell, w in zip(row, wide, strict=True) for number in _numbers(cell, w)])
    return out.getvalue()


def _numbers(cell: Cell, wide: bool) -> list[str | float]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    return ["" if cell is None else cell, *(["", ""] if wide else [])]


_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(c, c) for c in text)


def to_latex(table: Table) -> str:
    """A table environment for the package booktabs. Intervals are subscripts of their values."""
    units = {"percent": " (%)", "points": " (points)"}
    heads = [latex(label + units.get(kind, "")) for label, kind in table.columns]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{latex(f'{table.title}. {table.note}')}}}"]
    align = "".join("l" if kind == "text" else "r" for _, kind in table.columns)
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    for row in table.rows:
        cells = (_latex_cell(cell, kind) for cell, (_, kind) in zip(row, table.columns, strict=True))
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_cell(cell: Cell, kind: str) -> str:
    if not isinstance(cell, Estimate):
        return latex(shown(cell, kind))
    value, ends = re.fullmatch(r"(\S+) (\[.*\]\*?)", shown(cell, kind)).groups()  # type: ignore[union-attr]
    return rf"${value}_{{{ends.replace('*', '^{*}')}}}$"


def plots(comparison: Comparison) -> Iterator[tuple[str, Figure]]:
    """Scores over rounds, over sampled tokens and over FLOPs. The last two also show the base policy's answers."""
    if not comparison.groups:  # logs of answers
        return
    name = comparison.groups[0].unit.name
    yield f"{name}_over_rounds", _plot(comparison, "round", "rounds of training")
    yield f"{name}_over_tokens", _plot(comparison, "sampled", "tokens sampled for learning")
    if all(group.flops() is not None for group in comparison.groups):
        yield f"{name}_over_flops", _plot(comparison, "flops", "estimated FLOPs of learning")


def _plot(comparison: Comparison, over: str, label: str) -> Figure:
    """Means with 95 % bands over problems and, in groups of several seeds, over seeds. Thin lines are single seeds."""
    from matplotlib.figure import Figure  # not pyplot: it opens no window and keeps no figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    unit = comparison.groups[0].unit
    factor = 100 if unit.percent else 1
    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.add_subplot()
    for group, style in zip(comparison.groups, _styles(), strict=False):
        points = [(_at(group, over, i), group.score(i)) for i in range(group.rounds + 1)]
        _line(axes, group.name, points, factor, **style)
        if len(group.seeds) > 1:
            for seed in group.seeds:
                by_round = [group.scores(i, seed) for i in range(group.rounds + 1)]
                ys = [factor * sum(scores.values()) / len(scores) for scores in by_round]
                axes.plot([x for x, _ in points], ys, color=style["color"], linewidth=0.5, alpha=0.5)
    if over != "round":
        for (name, points), dash in zip(comparison.curves.items(), ((0, (1, 1)), (0, (5, 2))), strict=False):
            scaled = [(x * comparison.flops_a_token if over == "flops" else x, e) for x, e in points]
            _line(axes, name, scaled, factor, color="0.45", marker=".", linestyle=dash)
    axes.set_xlabel(label)
    axes.set_ylabel(f"held-out {unit.label}{', %' if unit.percent else ''}")
    if over == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 500k, 1.5M
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.legend(frameon=False, fontsize="small")
    return figure


def _at(group: Group, over: str, index: int) -> float:
    return index if over == "round" else group.budget(over, index) or 0.0


def _line(axes, name, points, factor, **style) -> None:  # type: ignore[no-untyped-def]
    xs, estimates = [x for x, _ in points], [e for _, e in points]
    axes.plot(xs, [factor * e.value for e in estimates], label=name, linewidth=1.4, markersize=4, **style)
    low, high = [factor * e.low for e in estimates], [factor * e.high for e in estimates]
    axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)


# Okabe and Ito's colours, which colour-blind readers can tell apart. Markers and dashes distinguish further groups.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _styles() -> Iterator[dict[str, str]]:
    for linestyle in ("-", "--", ":", "-."):
        for color, marker in zip(_COLOURS, "osD^vPX", strict=True):
            yield {"color": color, "marker": marker, "linestyle": linestyle}
