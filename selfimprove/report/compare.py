"""`selfimprove compare`: runs side by side, with intervals and at equal compute. It refuses unfair comparisons."""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.printable import printable
from selfimprove.report import compute, fair
from selfimprove.report.compute import Sampler
from selfimprove.report.power import Components
from selfimprove.report.runs import KINDS, RunData, find
from selfimprove.report.statistics import Estimate, difference, matrix, over_seeds
from selfimprove.types import STATUSES
from selfimprove.units import Unit

log = logging.getLogger("selfimprove")

PHASES = ("generate", "verify", "filter", "train", "evaluate")
BASELINE = "rejection_sampling"
SLACK = 0.05  # a cost that is at most this share higher counts as equal

# Keys that say how and where a run was done, its name, and what else was measured. They do not say what the run did.
_ASIDE = (
    *("seed", "name", "group", "tracker", "hardware", "verify.workers", "method.title", "method.summary"),
    *("model.shape", "handover"),
    *(f"eval.{key}" for key in ("samples", "temperature", "consistency", "drift", "also")),
)
_NAMED = ("method", "model", "dataset", "engine", "hardware", "tracker")  # each stands for its .name

Cell = str | float | Estimate | None


@dataclass(frozen=True)
class Table:
    """Rows and columns. A column is a label and a kind: text, number, percent, points, score, gain, nats or flops."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[list[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Group:
    """Runs that are compared as one. By default they differ in their seed alone."""

    name: str
    runs: list[RunData]

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def rounds(self) -> int:
        """How many rounds every run has at least."""
        return min(len(run.heldout) - 1 for run in self.runs)

    def scores(self, index: int, seed: int) -> dict[str, float]:
        """Held-out problem -> its score in an evaluation (-1: the last), mean over the runs of a seed."""
        found = [run.heldout[index] for run in self.runs if run.seed == seed]
        return {problem: sum(run[problem] for run in found) / len(found) for problem in found[0]}

    @property
    def unit(self) -> Unit:
        return self.runs[0].unit

    def score(self, index: int) -> Estimate:
        """The mean score of an evaluation, over problems and seeds."""
        return over_seeds(matrix([self.scores(index, seed) for seed in self.seeds]), self.unit.scale)

    def change(self, index: int = -1) -> Estimate:
        """Paired difference from the base policy."""
        seeds = self.seeds
        return difference([self.scores(index, s) for s in seeds], [self.scores(0, s) for s in seeds], self.unit.scale)

    def against(self, other: Group, index: int = -1, its: int = -1) -> Estimate | None:
        """Paired difference from another group, over the seeds that both have. None if they share no seed."""
        seeds = [seed for seed in self.seeds if seed in other.seeds]
        if not seeds:
            return None
        mine, others = [self.scores(index, s) for s in seeds], [other.scores(its, s) for s in seeds]
        return difference(mine, others, self.unit.scale)

    def paired(self, other: Group | None) -> np.ndarray:
        """Score after the last round minus the other group's, or minus the base policy's if it is None: shape (seeds,
        problems), over the seeds that both have."""
        seeds = [seed for seed in self.seeds if other is None or seed in other.seeds]
        rest = [other.scores(-1, seed) if other else self.scores(0, seed) for seed in seeds]
        differences: np.ndarray = matrix([self.scores(-1, seed) for seed in seeds]) - matrix(rest)
        return differences

    def spent(self, rounds: int | None = None) -> dict[str, float]:
        """Tokens of each kind in the first `rounds` rounds (None: all), mean over runs."""
        return {k: float(np.mean([sum(r[k] for r in run.tokens[:rounds]) for run in self.runs])) for k in KINDS}

    def flops(self, rounds: int | None = None) -> float | None:
        """Estimated operations of these rounds, mean over runs. None if a policy's size is not known."""
        each = [run.flops[:rounds] for run in self.runs]
        if not all(all(run) for run in each):
            return None
        return float(np.mean([sum(sum(found.values()) for found in run) for run in each]))

    def budget(self, kind: str, rounds: int) -> float | None:
        return self.spent(rounds)["sampled"] if kind == "sampled" else self.flops(rounds)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, with warnings and tables."""

    groups: list[Group]
    baseline: Group | None
    warnings: list[str]
    tables: list[Table]
    curves: dict[str, list[tuple[float, Estimate]]] = field(default_factory=dict)
    """The base policy's best of n and majority of n over sampled tokens, if it was sampled."""
    flops_a_token: float = 0.0
    """Operations of the base policy's answers for each sampled token. Reading the prompts is part of it."""

    def as_json(self, runs: Sequence[RunData]) -> dict[str, Any]:
        """Plain data. Groups are indexes into `runs`, and baselines are points [x, value, low, high]."""
        return {
            "warnings": self.warnings,
            "groups": [(group.name, [i for i, run in enumerate(runs) if run in group.runs]) for group in self.groups],
            "tables": [
                {
                    "title": table.title,
                    "columns": [{"label": label, "kind": _PLAIN.get(kind, kind)} for label, kind in table.columns],
                    "rows": [
                        [_plain(cell, kind) for cell, (_, kind) in zip(row, table.columns, strict=True)]
                        for row in table.rows
                    ],
                    "note": table.note,
                }
                for table in self.tables
            ],
            "baselines": [
                {"name": name, "points": [[x, e.value, e.low, e.high] for x, e in points]}
                for name, points in self.curves.items()
            ],
        }


_PLAIN = {"flops": "number", "nats": "text"}


def _plain(cell: Cell, kind: str) -> Any:
    if kind == "nats":
        return shown(cell, kind)
    return [cell.value, cell.low, cell.high] if isinstance(cell, Estimate) else cell


def compare(
    paths: Sequence[Path], by: str | None = None, baseline: str | None = None, ask: Sampler | None = None
) -> Comparison:
    """Compare the runs in and below `paths`, in groups by the key `by` (None: by every key but the seed).

    `baseline` is a part of a group's name. `ask` samples the base policy if its answers at equal compute are missing.
    Raises ConfigError if there is nothing to compare, or if the comparison would not be fair.
    """
    runs, warnings = usable([RunData(path) for path in find(paths)])
    groups = grouped(runs, by)
    if len(units := sorted({run.unit.label for run in runs})) > 1:
        raise ConfigError(f"the runs are scored in different units ({', '.join(units)}): compare those of one unit")
    other_models = by is not None and by.split(".")[0] == "model"
    fair.refuse(runs, other_models)
    if other_models:
        warnings.append("groups by model: differences come from the models as well as from what was done to them")
    base = chosen(groups, baseline)
    pooled = {group.name: _short(differing(group.runs)) for group in groups}
    warnings += fair.warnings({group.name: group.runs for group in groups}, pooled)
    if base is None and len(groups) > 1:
        warnings.append(f"no baseline: not exactly one group is method={BASELINE}; --baseline NAME chooses one")
    tables = [accuracies(groups, base), *costs(groups), *aside(groups)]
    plain = runs[0].unit.name == "accuracy"  # the base policy's best and majority are of right answers
    samples = base_samples(groups, ask) if plain and not other_models else None
    for kind in ("sampled", "flops"):
        if not other_models and all(group.budget(kind, 1) is not None for group in groups):
            tables.append(equal(groups, base, kind, samples))
    rate = samples.cost("flops") / samples.cost("sampled") if samples and runs[0].parameters else 0.0
    return Comparison(groups, base, warnings, tables, curves(samples), rate)


def usable(runs: Sequence[RunData]) -> tuple[list[RunData], list[str]]:
    """The runs that ended and learned, and a line for each other run. Raises ConfigError if no run is left."""
    found, said = [], []
    for run in runs:
        if run.kind != "run":
            said.append(f"{run.path} is left out: it has no rounds (kind: {run.kind})")
        elif not run.ended or len(run.heldout) < 2:
            done = max(0, len(run.heldout) - 1)
            state = f"{run.status}, {done} of {run.config['rounds']} rounds evaluated"
            said.append(f"{run.path} is left out: {state}; selfimprove resume continues it")
        else:
            found.append(run)
    if not found:
        raise ConfigError(f"no finished run to compare: {said[0]}")
    return found, said


# Groups


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted key -> value of a configuration. A list counts as one value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def differing(runs: Sequence[RunData]) -> list[str]:
    """The keys in which runs differ, without those that do not say what was done. A missing key counts as null."""
    each = [flat(run.config) for run in runs]
    keys = dict.fromkeys(itertools.chain.from_iterable(each))
    aside = tuple(f"{key}." for key in _ASIDE)
    return [
        key
        for key in keys
        if key not in _ASIDE and not key.startswith(aside) and len({repr(config.get(key)) for config in each}) > 1
    ]


def _short(keys: Sequence[str]) -> list[str]:
    """Keys without those that follow from a named section. For example, of a method only its name is left."""
    named = {part for part in _NAMED if f"{part}.name" in keys}
    return [key for key in keys if key.split(".")[0] not in named or key.endswith(".name")]


def grouped(runs: Sequence[RunData], by: str | None) -> list[Group]:
    """The runs in groups. A group's name says how it differs. Raises ConfigError for a key that no run has."""
    if by is not None:
        key = f"{by}.name" if by in _NAMED else by
        values = [flat(run.config) for run in runs]
        if not any(key in config for config in values):
            raise ConfigError(
                f"--by {by}: no run's configuration has this key; e.g. --by method, --by method.generate.n"
            )
        named = [f"{by}={_said(config.get(key))}" for config in values]
    else:
        named = _names(runs)
    members: defaultdict[str, list[RunData]] = defaultdict(list)
    for name, run in zip(named, runs, strict=True):
        members[name].append(run)
    return [Group(name, sorted(found, key=lambda run: run.seed)) for name, found in members.items()]


def _names(runs: Sequence[RunData]) -> list[str]:
    """A name for each run, from the keys in which runs differ: the named sections first, then other keys if needed."""
    keys = differing(runs)
    values = [flat(run.config) for run in runs]
    whole = [repr([config.get(key) for key in keys]) for config in values]
    first = [key for key in keys if key in {f"{part}.name" for part in _NAMED} or "." not in key]
    names = [_label(config, ["method.name", *(k for k in first if k != "method.name")]) for config in values]
    for name in dict.fromkeys(names):
        alike = [i for i, other in enumerate(names) if other == name]
        if len({whole[i] for i in alike}) > 1:
            apart = [key for key in differing([runs[i] for i in alike]) if key not in first]
            short = [_in_short(values[i], apart) for i in alike]
            if len(set(short)) < len({whole[i] for i in alike}):
                short = [", ".join(f"{key}={_said(values[i].get(key))}" for key in apart) for i in alike]
            for i, said in zip(alike, short, strict=True):
                names[i] = f"{name}, {said}"
    return names


def _in_short(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Keys with their values. If a section names another function, the function's name stands for the section."""
    other = [key.removesuffix("_target_") for key in keys if key.endswith("._target_")]
    shown = [key for key in keys if key.endswith("._target_") or not key.startswith(tuple(other))]
    parts = []
    for key in shown:
        value = _said(config.get(key))
        parts.append(
            f"{key.removesuffix('._target_')}={value.rpartition('.')[2] if key.endswith('_target_') else value}"
        )
    return ", ".join(parts)


def _label(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The method, and the values of other keys that are set."""
    parts = ["" if key == "method.name" else f"{key.removesuffix('.name')}=" for key in keys]
    values = [config.get(key) for key in keys]
    return ", ".join(f"{part}{value}" for part, value in zip(parts, values, strict=True) if value is not None)


def _said(value: Any) -> str:
    return "null" if value is None else str(value)


def chosen(groups: Sequence[Group], name: str | None) -> Group | None:
    """The group that others are compared with. Raises ConfigError for a name that fits no group or several."""
    if name is not None:
        exact = [group for group in groups if group.name == name]
        found = exact or [group for group in groups if name in group.name]
        if len(found) != 1:
            there = "; ".join(group.name for group in groups)
            raise ConfigError(f"--baseline {name}: fits {len(found)} groups; it has to fit one of these: {there}")
        return found[0]
    plain = [g for g in groups if all(r.method == BASELINE and not r.config.get("control") for r in g.runs)]
    return plain[0] if len(plain) == 1 else None


# Tables


def accuracies(groups: Sequence[Group], baseline: Group | None) -> Table:
    unit = groups[0].unit
    columns = [("group", "text"), ("seeds", "text"), ("rounds", "number"), ("base", unit.kind), ("final", unit.kind)]
    columns.append(("change from base", unit.change_kind))
    if baseline:
        columns.append((f"difference from {baseline.name}", unit.change_kind))
    rows: list[list[Cell]] = []
    beside = baseline if len(groups) > 1 else None
    unseen = list[Group]()
    for group in groups:
        change, apart = group.change(), group.against(baseline) if baseline and group is not baseline else None
        row: list[Cell] = [group.name, _seeds(group), _rounds(group), group.score(0), group.score(-1), change]
        if baseline:
            row.append("baseline" if group is baseline else apart or "no seed in common")
        rows.append(row)
        if (tested := apart if beside else change) and not tested.apart:
            unseen.append(group)
    n = groups[0].score(0).n
    note = f"One answer to each of {n:,} held-out problems. 95 % intervals over problems"
    several = any(len(group.seeds) > 1 for group in groups)
    note += " and seeds" if several else "; they do not say what another seed would give"
    note += (
        "; for groups of one seed over problems alone." if any(len(g.seeds) == 1 for g in groups) and several else "."
    )
    note += " Differences are paired by problem and seed. * : the interval does not contain 0"
    note += "; not corrected for several groups." if len(groups) > 2 else "."
    note += _unseen(unseen, beside) + _rates(groups)
    return Table(f"Held-out {unit.label}", columns, rows, note)


def _unseen(groups: Sequence[Group], beside: Group | None) -> str:
    """For groups without a clear difference: the size of a true difference that would have been seen."""
    said = []
    for group in groups:
        table = group.paired(beside)
        least = Components.of(table, group.unit.scale).shows(table.shape[1], len(table))
        said.append(f"{group.name} (a true one of {group.unit.size(least)} would be seen 4 times in 5)")
    what = "difference from the baseline" if beside else "change from base"
    return f" No {what} is seen for {', '.join(said)}." if said else ""


def _rates(groups: Sequence[Group]) -> str:
    """The groups' learning rates, if `rates` chose one of them on dev problems. Methods of one stage only."""
    if not any(run.config.get("rates") for group in groups for run in group.runs):
        return ""
    said = []
    for group in groups:
        run = group.runs[0]
        rate = (run.config["method"].get("train") or {}).get("learning_rate")
        tuned = (run.config.get("rates") or {}).get(run.method) == rate
        said.append(f"{group.name} {rate if rate is None else format(rate, 'g')}{'' if tuned else ' (not tuned)'}")
    return f" Learning rates, by dev problems: {', '.join(said)}."


def _seeds(group: Group) -> str:
    return " ".join(map(str, group.seeds))


def _rounds(group: Group) -> str:
    counts = sorted({len(run.heldout) - 1 for run in group.runs})
    return "-".join(map(str, counts[:: max(1, len(counts) - 1)]))


def costs(groups: Sequence[Group]) -> list[Table]:
    """What learning cost: a table of tokens and operations, and one of seconds and verdicts."""
    tokens: list[list[Cell]] = []
    work: list[list[Cell]] = []
    for group in groups:
        spent = group.spent()
        tokens.append([group.name, _seeds(group), *(spent[kind] for kind in KINDS), group.flops()])
        seconds = [float(np.mean([sum(r.get(p, 0.0) for r in run.seconds) for run in group.runs])) for p in PHASES]
        counts = [np.mean([sum(r.get(s, 0) for r in run.verdicts) for run in group.runs]) for s in STATUSES]
        work.append([group.name, _seeds(group), *seconds, "/".join(f"{count:,.0f}" for count in counts)])
    note = "Tokens of all rounds, mean over a group's runs, without evaluation. FLOPs, estimated: "
    if sizes := sorted({run.parameters for group in groups for run in group.runs if run.parameters}):
        size = " or ".join(f"{size:,}" for size in sizes)
        note += f"2 N a prompt, sampled or scored token, 6 N a trained one, N = {size} parameters."
    else:
        note += "not known, since the model's files are not on this machine."
    first: list[tuple[str, str]] = [("group", "text"), ("seeds", "text")]
    return [
        Table("Tokens", [*first, *((kind, "number") for kind in KINDS), ("FLOPs", "flops")], tokens, note),
        Table(
            "Seconds and verdicts",
            [*first, *((phase, "number") for phase in PHASES), (_VERDICTS, "text")],
            work,
            "Seconds of each phase, all rounds, mean over a group's runs, each on its own machine.",
        ),
    ]


_VERDICTS = "verdicts: " + "/".join(STATUSES)


def aside(groups: Sequence[Group]) -> list[Table]:
    """Drift from the base policy and forgetting after the last round, for runs that measured them."""
    columns = [("group", "text"), ("seeds", "text"), ("nats a token", "nats"), ("nats an answer", "nats")]
    columns += [("second data set before", "percent"), ("after", "percent"), ("change", "points")]
    rows: list[list[Cell]] = []
    answers: set[int] = set()
    for group in groups:
        row: list[Cell] = [group.name, _seeds(group), None, None, None, None, None]
        drifts = [run.drift[-1] for run in group.runs if run.drift]
        if drifts and all(found.keys() == drifts[0].keys() for found in drifts):
            both = np.array([[found[name] for name in drifts[0]] for found in drifts])  # (runs, problems, 2)
            nats, tokens = both[..., 0], both[..., 1]
            each = nats.sum(axis=1, keepdims=True) / tokens.sum(axis=1, keepdims=True)
            linear = each + (nats - each * tokens) / tokens.mean(axis=1, keepdims=True)  # its mean is the ratio
            row[2:4] = [over_seeds(linear), over_seeds(nats)]
            answers.add(nats.shape[1])
        also = [run.also for run in group.runs if len(run.also) > 1]
        if also and all(run[0].keys() == also[0][0].keys() for run in also):
            before, after = [run[0] for run in also], [run[-1] for run in also]
            scale = (0.0, 1.0)
            row[4:] = [over_seeds(matrix(before), scale), over_seeds(matrix(after), scale), difference(after, before)]
        rows.append(row)
    if all(cell is None for row in rows for cell in row[2:]):
        return []
    names = sorted({run.config["eval"]["also"]["name"] for group in groups for run in group.runs if run.also})
    note = "After the last round."
    if answers:
        counts = " or ".join(map(str, sorted(answers)))
        note += f" Nats: KL from the base policy, on one answer at temperature 1 to each of {counts} held-out problems."
    if names:
        note += f" Second data set (eval.also): {' or '.join(names)}."
    return [Table("Drift and forgetting", columns, rows, note)]


def base_samples(groups: Sequence[Group], ask: Sampler | None) -> compute.Base | None:
    """The base policy's sampled answers. With `ask` they cost as much as the most expensive group."""
    runs = [run for group in groups for run in group.runs]
    run = max(runs, key=lambda run: 0 if (table := compute.samples(run)) is None else compute.per_problem(table))
    if ask:
        one = compute.Base(compute.sample(run, 1, ask), run.parameters)
        kinds = ("sampled", "flops") if run.parameters else ("sampled",)
        spent = [(kind, group.budget(kind, group.rounds) or 0.0) for group in groups for kind in kinds]
        # A little more, since the cost of an answer is known more exactly once there are many.
        n = max(1, *(math.ceil((1 + SLACK) * budget / one.cost(kind)) for kind, budget in spent))
        log.info("%d answers of the base policy to each held-out problem, kept in %s", n, run.path / compute.FILE)
        if one.n < n / (1 + SLACK):
            compute.sample(run, n, ask)
    table = compute.samples(run)
    return None if table is None else compute.Base(table, run.parameters)


def equal(groups: Sequence[Group], baseline: Group | None, kind: str, samples: compute.Base | None) -> Table:
    """Each round of each group, next to the base policy and the baseline at as many tokens or operations."""
    what, form = ("sampled tokens", "number") if kind == "sampled" else ("FLOPs", "flops")
    unit = groups[0].unit
    columns = [("group", "text"), ("seeds", "text"), ("round", "number"), (what, form), (unit.label, unit.kind)]
    columns += [("n", "number"), ("base, best of n", "percent"), ("base, majority of n", "percent")]
    if baseline:
        columns.append(("baseline at no more", unit.kind))
        columns.append(("difference from it", unit.change_kind))
    rows: list[list[Cell]] = []
    missing = False
    for group in groups:
        for index in range(1, group.rounds + 1):
            budget = group.budget(kind, index)
            assert budget is not None
            n = max(1, round(budget / samples.cost(kind))) if samples else None
            row: list[Cell] = [group.name, _seeds(group), f"{index - 1}", budget, group.score(index), n and f"{n}"]
            there = samples is not None and n is not None and n <= samples.n
            missing |= not there
            row += [samples.best(n), samples.majority(n)] if samples and n and there else [None, None]
            if baseline:
                row += _at_no_more(group, baseline, kind, index, budget)
            rows.append(row)
    note = f"What learning cost so far, mean over runs; base: n answers to every held-out problem for as many {what}. "
    note += "Best of n needs a perfect verifier. "
    if baseline:
        note += f"Baseline at no more: the last policy of {baseline.name} that cost at most {SLACK:.0%} more, "
        note += "at first the base policy. "
    if missing:
        had = f"only {samples.n} answers a problem were sampled" if samples else "the base policy was not sampled"
        note += f"-: {had}; --baselines samples them. "
    return Table(f"Equal {what}", columns, rows, note.rstrip())


def _at_no_more(group: Group, baseline: Group, kind: str, index: int, budget: float) -> list[Cell]:
    """The baseline's score after its last round within `budget`, and the difference from it."""
    if group is baseline:
        return [None, None]
    spent = [baseline.budget(kind, number) or 0.0 for number in range(baseline.rounds + 1)]
    its = max(number for number, cost in enumerate(spent) if number == 0 or cost <= (1 + SLACK) * budget)
    return [baseline.score(its), group.against(baseline, index, its) or "no seed in common"]


def curves(samples: compute.Base | None) -> dict[str, list[tuple[float, Estimate]]]:
    """The base policy's accuracy over sampled tokens, for n = 1, 2, 4, ... and for all its answers."""
    if samples is None:
        return {}
    counts = sorted({2**i for i in range(samples.n.bit_length())} | {samples.n})
    one = samples.cost("sampled")
    found: dict[str, Callable[[int], Estimate]] = {
        "base, best of n": samples.best,
        "base, majority of n": samples.majority,
    }
    return {name: [(n * one, of(n)) for n in counts] for name, of in found.items()}


# What is printed


def shown(cell: Cell, kind: str) -> str:
    """A cell as text: accuracies in %, differences in points. A star marks an interval that does not contain 0."""
    if cell is None:
        return "-"
    if isinstance(cell, Estimate) and kind == "nats":
        return f"{cell.value:.2g} [{cell.low:.2g}, {cell.high:.2g}]"
    if isinstance(cell, Estimate):
        gain = kind in ("points", "gain")
        form = f"{'+' if gain else ''}{'.1f' if kind in ('percent', 'points') else '.4g'}"
        factor = 100 if kind in ("percent", "points") else 1
        value, low, high = (format(factor * x, form) for x in (cell.value, cell.low, cell.high))
        return f"{value} [{low}, {high}]" + ("*" if gain and cell.apart else "")
    if isinstance(cell, str):
        return cell
    if kind == "flops":
        return f"{cell:.2e}"
    return f"{cell:,.0f}" if cell >= 10 or cell == 0 else f"{cell:.1f}"


def print_tables(comparison: Comparison) -> None:
    """Write warnings to the log and tables to standard output."""
    from rich.table import Table as Rich
    from rich.text import Text

    from selfimprove.report.display import standard_output

    for said in comparison.warnings:
        log.warning(said)
    console = standard_output()
    for table in comparison.tables:
        for between in (" ", "\n"):  # if a table is too wide, intervals go below their values
            drawn = Rich(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for label, kind in table.columns:
                side: Literal["left", "right"] = "left" if label in ("group", "log") else "right"
                drawn.add_column(Text(printable(_heading(label, kind))), justify=side, overflow="fold")
            for row in table.rows:
                cells = zip(row, table.columns, strict=True)
                texts = [printable(shown(cell, kind)) for cell, (_, kind) in cells]
                drawn.add_row(*(Text(text.replace(" [", f"{between}[")) for text in texts))
            if console.measure(drawn, options=console.options.update(width=1000)).maximum <= console.width:
                break
        console.print(table.title, style="bold", highlight=False)
        console.print(drawn)
        console.print(printable(table.note), highlight=False, markup=False)
        console.print()


def _heading(label: str, kind: str) -> str:
    words = label.replace("/unparseable", "/\nunparseable").replace("difference from ", "difference from\n")
    words = words.replace("base, ", "base,\n").replace(" at no more", "\nat no more")
    ends = {"percent": "\n% [95 %]", "points": "\npoints [95 %]", "score": "\n[95 %]", "gain": "\n[95 %]"}
    return words + ends.get(kind, "")


def write_json(comparison: Comparison, path: Path) -> None:
    runs = [run for group in comparison.groups for run in group.runs]
    store.write_json(path, comparison.as_json(runs) | {"runs": [str(run.path) for run in runs]})
