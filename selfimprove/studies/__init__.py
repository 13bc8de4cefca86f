"""Mechanism checks: do a paper's claims show here, at tiny scale, against controls?

A study is `study(lab) -> Iterator[Claim]` in a file named after its method. It starts its runs through the lab. Each
run is done once, in a folder of its own that a later call finds again. A study prints two tables: the paper's claims,
and checks of the code (`Claim.check`). It says plainly which lines do not hold.
"""

from __future__ import annotations

import importlib
import logging
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfimprove import store
from selfimprove.config import CONF
from selfimprove.errors import ConfigError, RunError
from selfimprove.evaluation import base_answers
from selfimprove.report import compute
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import Estimate
from selfimprove.report.statistics import difference as difference
from selfimprove.types import Attempt, Problem, Trajectory, Verdict

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of a study. `holds` is None if this scale cannot tell."""

    claim: str
    holds: bool | None
    value: float | str
    interval: tuple[float, float] | None
    control: str  # what it was compared with
    command: str  # what measures it again
    check: bool = False  # of the code, not of the paper: it cannot come out otherwise where the code is right


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run of a study."""

    path: Path
    summary: dict[str, Any]
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        return "selfimprove run " + shlex.join(self.overrides)

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled for learning, over all rounds; held-out evaluation is not in it."""
        return sum(r["tokens"]["sampled"] for r in self.summary["rounds"])

    def heldout(self, folder: str = "last") -> dict[str, float]:
        """Held-out problem id -> share of its greedy answers that are correct, of the last round or of "base"."""
        return {
            group[0].problem.id: sum(a.verdict.status == "correct" for a in group) / len(group)
            for group in self.attempts(self.evaluation(folder))
        }

    def attempts(self, folder: Path, decoding: str = "greedy") -> Iterator[list[Attempt]]:
        """Attempts of a folder with trajectories.parquet and verdicts.parquet, problem by problem; of an evaluation
        those of one decoding, `greedy` or `sampled`."""
        problems = {p.id: p for p in store.read_records(self.path / "problems.parquet", Problem)}
        group: list[Attempt] = []
        trajectories = store.read_records(folder / "trajectories.parquet", Trajectory)
        for trajectory, verdict in zip(
            trajectories, store.read_records(folder / "verdicts.parquet", Verdict), strict=True
        ):
            if trajectory.metadata.get("decoding", decoding) != decoding:
                continue
            if group and group[0].problem.id != trajectory.problem_id:
                yield group
                group = []
            group.append(Attempt(problems[trajectory.problem_id], trajectory, verdict))
        if group:
            yield group

    def evaluation(self, folder: str) -> Path:
        """The folder of an evaluation: of the last round or of "base"."""
        if folder == "base":
            return self.path / "base" / "evaluation"
        return max(self.path.glob("rounds/*/evaluation"), key=lambda path: path.parent.name)


@dataclass
class Lab:
    """Where a study runs. `quick` asks for its small form. `seeds` are the seeds of a comparison.

    A run is found again by its overrides and by the package's code and configuration. So a run of another version of a
    method is never taken for evidence about this one.
    """

    quick: bool
    folder: Path
    note: Callable[[Any], object] = print  # what a person should see beside the claims: tables, curves
    seeds: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.seeds = (0,) if self.quick else (0, 1, 2)

    def run(self, *overrides: str) -> Result:
        """The run with these overrides: found complete, continued, or done now. Raises RunError if it does not end."""
        from selfimprove import run
        from selfimprove.config import compose

        overrides = tuple(overrides)
        path = self.folder / store.digest([code(), overrides])
        if (path / "config.yaml").exists():
            summary = run.resume(path)
        else:
            summary = run.start(compose([*overrides, "tracker=none"]), path)
        if summary["status"] != "complete":
            raise RunError(
                f"study: {path} is {summary['status']} ({summary['reason']}); the same command goes on from it"
            )
        return Result(path, summary, overrides)

    def over_seeds(self, *overrides: str) -> list[Result]:
        return [self.run(*overrides, f"seed={seed}") for seed in self.seeds]

    def at_equal_tokens(self, results: Sequence[Result]) -> dict[str, Estimate]:
        """The base policy's accuracy if it spends the tokens that learning sampled on the held-out problems.

        best of n: at least one of n answers is correct, as best-of-n with a perfect verifier would find. majority of n:
        the most common answer is correct. n is the runs' mean number of sampled tokens, divided by the tokens of one
        answer to each problem.
        """
        first = RunData(results[0].path)
        n = max(2, round(float(np.mean([r.sampled_tokens for r in results])) / compute.greedy_tokens(first)))
        base = compute.Base(compute.sample(first, n, base_answers))
        return {f"best of n={n}": base.best(n), f"majority of n={n}": base.majority(n)}


@cache
def code() -> str:
    """A hash of the package's code and configuration."""
    files = [*Path(__file__).parent.parent.rglob("*.py"), *CONF.rglob("*.yaml")]
    return store.digest([[path.name, store.file_digest(path)] for path in sorted(files)])


def gain(results: Sequence[Result]) -> Estimate:
    """Held-out accuracy of the last policies minus that of the base, mean over seeds, paired over problems."""
    return difference([r.heldout() for r in results], [r.heldout("base") for r in results])


def advantage(results: Sequence[Result], others: Sequence[Result]) -> Estimate:
    """Held-out accuracy of some last policies minus that of others, seed by seed, paired over problems."""
    return difference([r.heldout() for r in results], [r.heldout() for r in others])


def overall(runs: Sequence[Mapping[str, float]]) -> float:
    """The mean over seeds and problems of problem id -> value, a mapping a seed."""
    return float(np.mean([np.mean(list(run.values())) for run in runs]))


def measured(claim: str, holds: bool | None, estimate: Estimate, control: str, command: str) -> Claim:
    """A claim about an estimate."""
    return Claim(claim, holds, estimate.value, (estimate.low, estimate.high), control, command)


def claim_above(claim: str, estimate: Estimate, control: str, command: str, least: float = 0.0) -> Claim:
    """A claim that a figure is above `least`. Yes or no needs the whole interval on one side, else it is not clear."""
    holds = True if estimate.low > least else False if estimate.high < least else None
    return measured(claim, holds, estimate, control, command)


def claim_within(claim: str, estimate: Estimate, margin: float, control: str, command: str) -> Claim:
    """A claim of equivalence: a difference is less than `margin`, which is fixed before.

    Yes: the whole interval is within the margin. No: all of it is outside. Else it is not clear.
    """
    inside = estimate.low > -margin and estimate.high < margin
    outside = estimate.low > margin or estimate.high < -margin
    return measured(claim, True if inside else False if outside else None, estimate, control, command)


def untestable(claim: str, why: str, control: str, command: str) -> Claim:
    """A claim whose premise does not hold here, so that its figure would say nothing about the paper."""
    return Claim(claim, None, f"cannot be tested here: {why}", None, control, command)


def gated(claims: Iterable[Claim], holds: bool, why: str) -> Iterator[Claim]:
    """The claims; or, if their premise does not hold, each as one that cannot be tested here."""
    for claim in claims:
        yield claim if holds else untestable(claim.claim, why, claim.control, claim.command)


def as_check(claim: Claim) -> Claim:
    """The same line in the second table, "the code does what it says".

    Such a line compares a script of known chances with its closed form, or counts what must be so. It says nothing of
    the paper.
    """
    return replace(claim, check=True)


def claim_sign(claim: str, estimate: Estimate, control: str, command: str, above: bool = True) -> Claim:
    """A claim that a difference is above 0, or below it. It is not clear if the interval holds 0."""
    holds = (estimate.value > 0) == above if estimate.apart else None
    return measured(claim, holds, estimate, control, command)


def signed(estimate: Estimate) -> str:
    """A difference with its interval, as a part of a sentence."""
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def names() -> list[str]:
    """The studies there are: one a method, in a file of its name."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if (CONF / "method" / f"{p.stem}.yaml").exists())


def run_study(name: str, quick: bool, out: Path | None) -> list[Claim]:
    """Run a study and print its two tables. `out` gets both as JSON. Raises ConfigError for an unknown name."""
    from selfimprove.report.display import standard_output

    if name not in names():
        raise ConfigError(f"study {name}: no such study; there are {', '.join(names())}")
    study: Callable[[Lab], Iterator[Claim]] = importlib.import_module(f"selfimprove.studies.{name}").study
    console = standard_output()
    folder = Path("outputs") / "studies" / (f"{name}_quick" if quick else name)
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("selfimprove").info("study %s: runs are kept in %s", name, folder)
    found = list(study(Lab(quick, folder, console.print)))
    claims, checks = [line for line in found if not line.check], [line for line in found if line.check]
    console.print(lines_table(f"{name}: claims of the paper", claims))
    if checks:
        console.print(lines_table(f"{name}: the code does what it says", checks))
    for said, lines in (("Not reproduced here", claims), ("Checks that do not hold", checks)):
        if failed := [line.claim for line in lines if line.holds is False]:
            console.print(f"{said}: {'; '.join(failed)}.")
    if out:
        tables = {"claims": [asdict(line) for line in claims], "checks": [asdict(line) for line in checks]}
        store.write_json(out, {"study": name, "quick": quick, **tables})
    return found


def lines_table(title: str, lines: Sequence[Claim]) -> Table:
    """A table with a row for each line of a study."""
    from rich.table import Table

    table = Table("claim", "holds", "value", "95 % interval", "compared with", title=title)
    for line in lines:
        value = line.value if isinstance(line.value, str) else f"{line.value:.4g}"
        interval = f"[{line.interval[0]:.4g}, {line.interval[1]:.4g}]" if line.interval else ""
        table.add_row(
            line.claim, {True: "yes", False: "NO", None: "not clear"}[line.holds], value, interval, line.control
        )
    return table
