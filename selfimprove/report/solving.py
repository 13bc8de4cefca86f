"""The output of `selfimprove eval method=NAME`: a table, the cost, and a chart of accuracy over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selfimprove.printable import printable
from selfimprove.report.display import WIDTH, short, standard_output

_NAMES = {"maj": "majority", "best": "best by the verifier", "pass": "any is right"}
_ASCII = str.maketrans("─│┌┐└┘┤┬┼├┴", "-|+++++++++")
HEIGHT = 16


def show(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a complete evaluation's summary."""
    console = console or standard_output()
    head = f"method={summary['method']} model={summary['model']} dataset={summary['dataset']} seed={summary['seed']}"
    console.print(
        printable(f"{head}: {summary['n']:,} held-out problems"), markup=False, highlight=False, soft_wrap=True
    )
    console.print(table(summary))
    console.print(printable(f"answer: {summary['selection']}"), markup=False, highlight=False)
    for name, part in ((summary["method"], summary), ("plain samples", summary["baseline"])):
        tokens = part["tokens"]
        spent = (
            f"{short(tokens['prompt'])} prompt and {short(tokens['sampled'])} sampled tokens, {part['calls']:,} calls"
        )
        console.print(printable(f"{name}: {spent}, {part['seconds']:.1f} s"), markup=False, highlight=False)
    console.print(chart(summary, min(console.width, WIDTH), console.is_terminal), markup=False, highlight=False)


def table(summary: Mapping[str, Any]) -> Table:
    """The solver compared with plain samples of as many tokens."""
    baseline = summary["baseline"]
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    method = printable(summary["method"])
    for name in ("", "accuracy [95 %]", f"{method} minus this", "sampled tokens a problem"):
        rows.add_column(Text(name), justify="right" if name else "left")
    n = summary["n"]
    rows.add_row(Text(method), _percent(summary, "accuracy"), "", f"{summary['tokens']['sampled'] / n:,.0f}")
    mean = baseline["tokens_used"]
    rows.add_row("one plain sample", _percent(baseline, "single"), "", f"{mean / baseline['n']:,.0f}")
    for key in (key for key in _NAMES if key in baseline):
        part = baseline[key]
        change = f"{100 * part['difference']:+.1f} [{100 * part['difference_low']:+.1f}, "
        rows.add_row(
            f"{_NAMES[key]}, of {baseline['n']:.1f} samples",
            _percent(part, "accuracy"),
            f"{change}{100 * part['difference_high']:+.1f}]",
            f"{mean:,.0f}",
        )
    return rows


def _percent(part: Mapping[str, Any], name: str) -> str:
    return f"{100 * part[name]:.1f} % [{100 * part[f'{name}_low']:.1f}, {100 * part[f'{name}_high']:.1f}]"


def chart(summary: Mapping[str, Any], width: int, terminal: bool) -> str:
    """A chart of accuracy over sampled tokens a problem; in ASCII if there is no terminal."""
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, HEIGHT)
    marks = {"pass": "a", "maj": "m", "best": "b"}
    lines: list[tuple[str, str, Sequence[Mapping[str, float]]]] = [
        (_NAMES[k], mark, summary["baseline"][k]["curve"]) for k, mark in marks.items() if k in summary["baseline"]
    ]
    lines.append((printable(summary["method"]), "o", summary["curve"]))  # last, so that it covers other lines
    for name, mark, points in lines:
        plotext.plot([p["tokens"] for p in points], [100 * p["accuracy"] for p in points], label=name, marker=mark)
    plotext.ylim(0, 100)
    plotext.title("accuracy in % over sampled tokens a problem")
    drawn: str = plotext.uncolorize(plotext.build())
    return "\n".join(line.rstrip() for line in (drawn if terminal else drawn.translate(_ASCII)).splitlines())
