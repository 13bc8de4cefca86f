"""`selfimprove compare --sealed`: finished runs on problems that no run has sampled answers to.

All earlier choices (a rate, a number of rounds, a method) were made by other problems. So the first look at these gives
a fair difference. Each look is noted in the run folder, with its command. P-values are corrected for the number of
groups (Holm 1979, Scandinavian Journal of Statistics 6:65).
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfimprove import scores, store
from selfimprove.errors import ConfigError, Damaged
from selfimprove.integrity import Checked
from selfimprove.report.compare import Cell, Comparison, Group, Table
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import Estimate, difference, holm, matrix, over_seeds, p_value

log = logging.getLogger("selfimprove")

FOLDER, START, FINAL, LOOKS, MADE_OF = "sealed", "start", "final", "looks.json", "policy.json"

Evaluate = Callable[[Path], None]  # writes FOLDER of a run folder: the base and the last policy on the sealed problems
Scores = dict[str, float]  # problem id -> score


def with_sealed(comparison: Comparison, evaluate: Evaluate, command: str) -> Comparison:
    """A comparison with the table of sealed problems first. Runs without it are evaluated now.

    Raises ConfigError if runs have no sealed problems, or different ones.
    """
    runs = [run for group in comparison.groups for run in group.runs]
    problems = {str(run.path): run.prompts("sealed") for run in runs}
    first = next(iter(problems.values()))
    for path, own in problems.items():
        if not own:
            raise ConfigError(f"--sealed: {path} has no sealed problems; a run has them with dataset.sealed_size=N")
        if own != first:
            raise ConfigError(f"--sealed: {runs[0].path} and {path} have different sealed problems")
    looks = max((_look(run, command) for run in runs), key=len)
    found = {run.path: _scores(run, evaluate) for run in runs}
    table = _table(comparison.groups, comparison.baseline, found, looks, len(first))
    return replace(comparison, tables=[table, *comparison.tables])


def _look(run: RunData, command: str) -> list[dict[str, Any]]:
    """Note this look in the run folder, before anything is read. Returns all looks."""
    path = run.path / FOLDER / LOOKS
    path.parent.mkdir(exist_ok=True)
    before = store.read_json(path)["looks"] if path.exists() else []
    looks = [*before, {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "command": command}]
    store.write_sealed(path, {"looks": looks})
    return looks


def _scores(run: RunData, evaluate: Evaluate) -> tuple[Scores, Scores]:
    """The scores of a run's base and last policy on the sealed problems.

    They are known by the key of the run's last evaluation, since a run can go on with a higher budget.
    """
    folder, mark = run.path / FOLDER, run.path / FOLDER / MADE_OF
    last = store.read_json(run.evaluations[-1].parent / "evaluate.manifest.json").get("key")
    try:
        if mark.exists() and store.read_json(mark)["evaluate"] == last:
            return _read(folder / START), _read(folder / FINAL)
    except Damaged as problem:
        log.warning("%s; it is made again", problem)
    for name in (START, FINAL):
        shutil.rmtree(folder / name, ignore_errors=True)
    log.info("%s: the base and the last policy answer the sealed problems", run.path)
    evaluate(run.path)
    store.write_sealed(mark, {"evaluate": last})
    return _read(folder / START), _read(folder / FINAL)


def _read(folder: Path) -> Scores:
    path = Checked(folder).file(folder / "base" / "evaluation" / scores.FILE)
    if not (folder / "base" / "evaluate.manifest.json").exists():
        raise Damaged(path, "is missing")
    return dict(scores.read(path).by_problem)


def _table(
    groups: Sequence[Group],
    baseline: Group | None,
    found: dict[Path, tuple[Scores, Scores]],
    looks: Sequence[dict[str, Any]],
    problems: int,
) -> Table:
    unit, beside = groups[0].unit, baseline is not None and len(groups) > 1

    def of(group: Group, which: int) -> dict[int, Scores]:
        """Seed -> problem id -> score, mean over runs of a seed."""
        each = {seed: [found[run.path][which] for run in group.runs if run.seed == seed] for seed in group.seeds}
        return {seed: {p: sum(s[p] for s in own) / len(own) for p in own[0]} for seed, own in each.items()}

    def against(group: Group, other: Group) -> Estimate | None:
        mine, its = of(group, 1), of(other, 1)
        both = [seed for seed in mine if seed in its]
        return difference([mine[s] for s in both], [its[s] for s in both], unit.scale) if both else None

    changes = [difference(list(of(group, 1).values()), list(of(group, 0).values()), unit.scale) for group in groups]
    apart = [against(g, baseline) if baseline and g is not baseline else None for g in groups]
    tested = apart if beside else changes
    corrected = iter(holm([p_value(estimate) for estimate in tested if estimate]))
    columns = [("group", "text"), ("seeds", "text"), ("base", unit.kind), ("final", unit.kind)]
    columns.append(("change from base", unit.change_kind))
    if baseline and beside:
        columns.append((f"difference from {baseline.name}", unit.change_kind))
    columns.append(("p (Holm)", "text"))
    rows: list[list[Cell]] = []
    for group, change, other, one in zip(groups, changes, apart, tested, strict=True):
        start, final = (over_seeds(matrix(list(of(group, which).values())), unit.scale) for which in (0, 1))
        row: list[Cell] = [group.name, " ".join(map(str, group.seeds)), start, final, change]
        if beside:
            row.append("baseline" if group is baseline else other or "no seed in common")
        rows.append([*row, f"{next(corrected):.2g}" if one else None])
    return Table(f"Sealed {unit.label}: the verdict", columns, rows, _note(looks, problems, beside))


def _note(looks: Sequence[dict[str, Any]], problems: int, baseline: bool) -> str:
    what = "differences from the baseline" if baseline else "changes from base"
    note = f"One answer to each of {problems:,} problems that no run sampled. p of the {what}, corrected by Holm. "
    if len(looks) == 1:
        return note + f"First look at them, {looks[0]['when']}."
    before = looks[0]
    return note + (
        f"LOOK {len(looks)}: they were first read {before['when']} by `{before['command']}`. What was chosen since "
        "then is not tested by them any more."
    )
