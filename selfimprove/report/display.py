"""Shows a run to its user: the progress of each phase, a table after each round, a summary at the end.

On a terminal, progress is a live bar on standard error. Elsewhere (a file, a cluster's log) it is plain ASCII lines:
one when a phase starts, at most one every 15 s, one when it ends. run.log always has these lines.
"""

from __future__ import annotations

import io
import logging
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from selfimprove.errors import of_the_disk
from selfimprove.printable import printable
from selfimprove.types import STATUSES
from selfimprove.units import UNITS, Unit, unit_of

if TYPE_CHECKING:
    from selfimprove.schema import Config

log = logging.getLogger(__name__)

WIDTH = 120  # of plain text
LINE_SECONDS, BAR_SECONDS = 15.0, 0.1  # between two lines, and between two updates of the bar
PHASES = ("generate", "verify", "filter", "train", "evaluate")
_NOISY = ("transformers", "datasets", "accelerate", "httpx", "httpx2", "filelock", "urllib3", "wandb", "git")
_FILE_ONLY = {"file_only": True}  # marks log records for run.log alone; a terminal shows their content another way


@cache
def standard_error() -> Console:
    """The console for progress and log lines. They share it so that a line does not tear the bar."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=WIDTH)


def standard_output() -> Console:
    """A console for tables: as wide as the terminal, or WIDTH if there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def setup_logging(run_dir: Path | None, console: Console | None = None) -> None:
    """Log to the console and, given a run folder, append to its run.log. Replaces the handlers of an earlier call."""
    console = console or standard_error()
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == __name__]:
        root.removeHandler(handler)
        handler.close()
    shown: logging.Handler
    if console.is_terminal:
        shown = RichHandler(console=console, show_path=False, log_time_format="[%H:%M:%S]")
        shown.setFormatter(_Printable("%(message)s"))
    else:
        shown = logging.StreamHandler(console.file)
        shown.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    shown.addFilter(lambda record: not getattr(record, "file_only", False))
    handlers: list[logging.Handler] = [shown]
    if run_dir is not None:
        handlers.append(_RunLog(run_dir / "run.log", encoding="utf-8"))
        handlers[-1].setFormatter(_Printable("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in handlers:
        handler.set_name(__name__)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


class _Printable(logging.Formatter):
    """Makes text safe to show in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _RunLog(logging.FileHandler):
    """run.log. A full disk is reported by the write that fails, not for each lost line."""

    def handleError(self, record: logging.LogRecord) -> None:
        problem = sys.exc_info()[1]
        if problem is None or of_the_disk(problem) is None:
            super().handleError(record)


class Phase:
    """The progress of one phase. `advance` is cheap enough to call for each sample."""

    def __init__(self, title: str, total: int, unit: str, bar: Progress | None, clock: Callable[[], float]) -> None:
        self._title, self._total, self._unit, self._bar, self._clock = title, total, unit, bar, clock
        self._done = self._before = self._tokens = 0
        self._start = clock()
        self._next_line = self._start + LINE_SECONDS
        self._next = self._start if bar else self._next_line
        self._task = None if bar is None else bar.add_task(title, total=total, rate="")
        self._line(f"{total:,} {unit}")

    def advance(self, n: int = 1, tokens: int = 0) -> None:
        """Count `n` more as done, for which `tokens` were sampled."""
        self._done += n
        self._tokens += tokens
        now = self._clock()
        if now >= self._next:
            self._show(now)

    def skip(self, n: int) -> None:
        """Count `n` as done by an earlier, interrupted run. They do not count for the rate."""
        self._before += n
        self.advance(n)

    def set(self, share: float) -> None:
        """Set the share of the total that is done."""
        self.advance(round(share * self._total) - self._done)

    def close(self, complete: bool) -> None:
        seconds = self._clock() - self._start
        if complete:
            self._line(f"done, {self._done:,} {self._unit} in {seconds:.1f} s, {self._rate(seconds)}")
        else:
            self._line(f"ended early, {self._done:,} of {self._total:,} {self._unit} in {seconds:.1f} s")

    def _show(self, now: float) -> None:
        self._next = now + (BAR_SECONDS if self._bar else LINE_SECONDS)
        seconds = now - self._start
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate(seconds))
        if now >= self._next_line:
            self._next_line = now + LINE_SECONDS
            done_now = self._done - self._before
            early = done_now * 50 < self._total  # too few for an estimate
            left = "?" if early else clock_time(seconds * (self._total - self._done) / done_now)
            of = f"{self._done:,} of {self._total:,} {self._unit}"
            self._line(f"{of}, {self._rate(seconds)}, {left} left", file_only=self._bar is not None)

    def _rate(self, seconds: float) -> str:
        seconds = max(seconds, 1e-9)
        rate = f"{(self._done - self._before) / seconds:,.1f} {self._unit}/s"
        return f"{rate}, {self._tokens / seconds:,.0f} tokens/s" if self._tokens else rate

    def _line(self, text: str, file_only: bool = False) -> None:
        log.info("%s: %s", self._title, text, extra=_FILE_ONLY if file_only else None)


class Display:
    """The run's display.

    `outside` names the model of phases outside rounds. `console` and `clock` are the process's unless given.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        outside: str = "base model",
    ) -> None:
        self._run_dir, self._config, self._outside, self._clock = run_dir, config, outside, clock
        self._console = console or standard_error()

    def start(self, train: int, heldout: int, passes: int) -> None:
        """Log what is run. `train` and `heldout` are numbers of problems."""
        c = self._config
        what = f"method={c.method.name} model={c.model.name} dataset={c.dataset.name} seed={c.seed} rounds={c.rounds}"
        what += f" ({passes:,} passes)" if passes > c.rounds else ""
        drawn = {stage.generate["n"] for stage in c.stages.values() if stage.generate and "n" in stage.generate}
        each = f", {drawn.pop():,} samples a problem" if len(drawn) == 1 else ""
        log.info("%s: %s training and %s %s problems%s", what, f"{train:,}", f"{heldout:,}", c.eval.called, each)
        log.info("run folder: %s", self._run_dir)

    @contextmanager
    def phase(self, number: int, rounds: int, name: str, total: int, unit: str) -> Iterator[Phase]:
        """Show the progress of a phase of round `number`, from 0 (-1: the base model), over `total` `unit`."""
        title = f"round {number} ({number + 1} of {rounds}) {name}" if number >= 0 else f"{self._outside} {name}"
        bar = None
        if self._console.is_terminal:
            text = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
            columns = text[0], BarColumn(), MofNCompleteColumn(), text[1], TimeRemainingColumn()
            bar = Progress(*columns, console=self._console, transient=True)
            bar.start()
        phase = Phase(title, total, unit, bar, self._clock)
        complete = False
        try:
            yield phase
            complete = True
        finally:
            if bar:
                bar.stop()
            phase.close(complete)

    def round(self, summary: Mapping[str, Any], number: int) -> None:
        """Show the table of the last rounds in summary.json; for the base model (-1), one line."""
        unit, base, side = unit_of(summary), summary["base"], self._config.eval.called
        if number >= 0:
            self._print(rounds_table(base, [row for row in summary["rounds"] if row["round"] <= number], unit, side))
            if (earlier := summary.get("rounds_done", 0) - len(summary["rounds"])) > 0:
                log.info("%d earlier rounds are in summary.json", earlier)
        elif base:
            log.info("base model: %s %s %s (n=%d)", side, unit.label, unit.headline(base), base["n"])
        if turns := by_turn(evaluation_of(summary, number), unit):
            log.info("%s: %s %s by turn: %s", _called(number), side, unit.label, turns)
        for line in alarms(summary, number):
            log.warning(line)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Show how the run ended, its base and final accuracy, and the next command.

        `summary["change"]`, if given, has the paired difference and its interval, under the unit's name.
        """
        status, folder = summary["status"], shlex.quote(str(self._run_dir))
        rows = [("status", f"{status} ({summary['reason']})" if summary.get("reason") else status)]
        unit = unit_of(summary)
        if summary["base"]:
            rows.append(("base", unit.headline(summary["base"])))
        if summary["final"]:
            rows.append(("final", unit.headline(summary["final"])))
        if change := summary.get("change"):
            ends = unit.interval(change[f"{unit.name}_low"], change[f"{unit.name}_high"], signed=True)
            rows.append(("change", f"{unit.change(change[unit.name])} {ends}, same problems"))
        if said := summary.get("forecast"):
            rows.append(("forecast", str(said)))
        rows.append(("run folder", str(self._run_dir)))
        next_command = "eval" if status == "complete" else "resume"
        budget = ""
        if reached := re.match(r"(budget\.\w+)=([0-9.]+) is reached", summary.get("reason") or ""):
            budget = f" {reached[1]}={max(1, 2 * float(reached[2])):.0f}"  # twice as much, as an example
        rows.append(
            ("evaluate" if status == "complete" else "continue", f"selfimprove {next_command} {folder}{budget}")
        )
        grid = Table.grid(padding=(0, 2))
        for name, value in rows:
            grid.add_row(Text(name), Text(printable(value), overflow="fold"))
        self._print(grid, boxed=True)

    def evaluation(
        self, figures: Mapping[str, float], config: Config, policy: str, console: Console | None = None
    ) -> None:
        """Print the figures of `selfimprove eval` on standard output."""
        table = Table("metric", "value", "95 % interval", box=None, pad_edge=False)
        score = UNITS[config.dataset.score]
        for name in [name for name in figures if f"{name}_low" in figures]:
            unit = score if name.startswith(score.name) else UNITS["accuracy"]
            table.add_row(
                name, unit.show(figures[name]), unit.interval(figures[f"{name}_low"], figures[f"{name}_high"])
            )
        console = console or Console()
        title = f"{policy} on {config.dataset.name}: {int(figures['n']):,} {config.eval.called} problems"
        console.print(printable(title), markup=False, highlight=False, soft_wrap=True)
        console.print(table)

    def _print(self, content: RenderableType, boxed: bool = False) -> None:
        text = plain(content)
        if self._console.is_terminal:
            self._console.print(Panel(content, expand=False) if boxed else content)
            log.info("\n%s", text, extra=_FILE_ONLY)
        else:
            log.info("\n%s", text)


def rounds_table(
    base: Mapping[str, Any] | None, rounds: Sequence[Mapping[str, Any]], unit: Unit, side: str = "held-out"
) -> Table:
    """One row a round, from the `base` and `rounds` of a summary.json.

    `unit` formats scores and changes; `side` is what the evaluated problems are called.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("round")
    for name in (
        f"{side} {unit.label}\n[95 %]",
        "change\nfrom base",
        "examples\nkept",
        "verdicts: correct/wrong/\nunparseable/timeout/error",
        "tokens: prompt/\nsampled/trained",
        "seconds: generate/verify/\nfilter/train/evaluate",
    ):
        table.add_column(name, justify="right")
    if base:
        table.add_row("base", Text(unit.headline(base)))
    for row in rounds:
        evaluation = row["evaluation"]
        change = (
            unit.change(evaluation[unit.name] - base[unit.name]).removesuffix(" points") if base and evaluation else "-"
        )
        table.add_row(
            str(row["round"]),
            Text(unit.headline(evaluation) if evaluation else "-"),
            change,
            f"{row['examples']:,}",
            "/".join(str(row["verdicts"].get(status, 0)) for status in STATUSES),
            "/".join(short(row["tokens"].get(kind, 0)) for kind in ("prompt", "sampled", "trained")),
            "/".join(f"{row['seconds'].get(phase, 0):.0f}" for phase in PHASES),
        )
    return table


def evaluation_of(summary: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The held-out figures of a round (-1: of the base model); empty if it has none."""
    evaluations = (row["evaluation"] for row in summary["rounds"] if row["round"] == number)
    return (summary["base"] if number < 0 else next(evaluations, None)) or {}


def by_turn(figures: Mapping[str, Any], unit: Unit) -> str:
    """The score at each turn if held-out answers have several turns; else empty."""
    start = f"{unit.name}@t"
    return ", ".join(unit.show(figures[name]) for name in figures if name.removeprefix(start).isdigit())


def _called(number: int) -> str:
    return f"round {number}" if number >= 0 else "base model"


def alarms(summary: Mapping[str, Any], number: int) -> list[str]:
    """Warnings from a round's figures alone: hardly any answer ends, or accuracy has collapsed."""
    rounds = {row["round"]: row["evaluation"] for row in summary["rounds"] if row["evaluation"]}
    if not (now := evaluation_of(summary, number)):
        return []
    who, lines, side = _called(number), list[str](), summary.get("side", "held-out")
    if (cut := now.get("completion/truncated", 0.0)) >= MOSTLY:
        lines.append(
            f"{who}: {100 * cut:.0f} % of the {side} answers were cut off at their limit of tokens: either the limit "
            "(model.max_tokens, eval.max_tokens) is too low, or the model does not end its answers"
        )
    before = [figures for figures in (summary["base"], *(rounds[n] for n in rounds if n < number)) if figures]
    best = max((figures.get("accuracy", 0.0) for figures in before), default=0.0)
    if number >= 0 and now.get("accuracy", 1.0) <= best / 10 and best * now["n"] >= 2:
        lines.append(
            f"{who}: {side} accuracy fell to {100 * now['accuracy']:.1f} %, from {100 * best:.1f} %: training has "
            "spoilt the policy; the learning rate may be too high"
        )
    return lines


MOSTLY = 0.95  # the share of answers cut off that is worth a warning


def plain(content: RenderableType) -> str:
    """`content` as aligned text, without colour."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    console = Console(file=file, width=WIDTH, color_system=None, force_terminal=False, highlight=False)
    console.print(content)
    file.seek(0)
    return "\n".join(line.rstrip() for line in file.read().splitlines())


def short(count: float) -> str:
    """A count in a few digits: 950, 1.2k, 35k, 1.2M."""
    value = float(count)
    for unit in ("", "k", "M"):
        if value < 999.5:
            return f"{value:.0f}{unit}" if value >= 9.95 or not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}G"


def clock_time(seconds: float) -> str:
    """A time as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
