"""`selfimprove verify RUN_DIR`: grades a run's answers again and shows what changed. The folder stays as it is."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from selfimprove import config as configuration
from selfimprove import store
from selfimprove.attempt import pair
from selfimprove.binding import Target, asks_for, bind, is_group
from selfimprove.errors import ConfigError
from selfimprove.policy import Policy
from selfimprove.ready import require_verifiers
from selfimprove.report.explorer import Place, places
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import Estimate, mean_over_problems, paired_difference
from selfimprove.schema import Config
from selfimprove.session import open_pool
from selfimprove.types import Attempt, Problem
from selfimprove.verify import Context, Outcome
from selfimprove.verify.pool import Pool

SHARD = 256  # problems whose answers are in memory at once

Grade = Callable[[list[list[Attempt]]], list[Outcome]]  # problems' attempts -> an outcome each, in order


class AsksModel(Exception):
    """A group verifier asks the policy or another model, which only a run has."""


@dataclass
class Regraded:
    """The changes in one folder of answers. `moved` counts answers by their status before and after."""

    label: str
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    other: int = 0  # answers with the same status and another reward
    shares: list[tuple[float, float]] = field(default_factory=list)  # of a problem's answers, right before and after

    @property
    def n(self) -> int:
        return self.moved.total()

    @property
    def changed(self) -> dict[tuple[str, str], int]:
        return {pair: count for pair, count in self.moved.most_common() if pair[0] != pair[1]}

    def estimates(self) -> tuple[Estimate, Estimate, Estimate]:
        """The mean share of right answers before and after, over problems, and their paired difference."""
        before, after = zip(*self.shares, strict=True)
        return mean_over_problems(before), mean_over_problems(after), paired_difference(before, after)


def regrade(path: Path, overrides: Sequence[str], out: Path | None = None) -> tuple[list[Regraded], list[str]]:
    """Grade every answer of the run in `path` again. Returns the changes in each folder of answers, and lines to log.

    `verifier=NAME` among `overrides` chooses the verifier. Without it the data set's own verifier grades held-out
    answers, and the verifier that the run used grades training answers, both in this version. `out` gets a JSON line
    for each answer whose status or reward changed. Raises ConfigError if the folder is damaged, the verifier lacks
    what it needs, or the chosen verifier has to ask a model.
    """
    run = RunData(path)
    config = configuration.compose_on(path / "config.yaml", overrides)
    chosen = any(word.startswith("verifier=") for word in overrides)
    require_verifiers(config)
    if not (found := places(run)):
        raise ConfigError(f"{path}: holds no graded answers yet")
    problems = problems_of(run)
    results, said = list[Regraded](), list[str]()
    if config.control and not chosen:
        said.append(f"the run dealt out its training verdicts at random (control={config.control})")
    with ExitStack() as stack:
        file = stack.enter_context(store.new_file(out)).open("w", encoding="utf-8") if out else None
        if file:
            stack.callback(file.close)
        grades: dict[str, Grade] = {}
        for place in found:
            node = config.training_verifier if chosen else _verifier(config, place)
            name = store.digest(node)
            try:
                if name not in grades:
                    grades[name] = _grader(config, node, stack)
                results.append(_again(place, problems, grades[name], file))
            except AsksModel:
                line = f"{node['_target_']} asks a model, which only a run has"
                if chosen:
                    raise ConfigError(f"verify: {line}") from None
                said.append(f"{place.label}: left out, for {line}")
    return results, said


def problems_of(run: RunData) -> list[Problem]:
    """The run's problems, and those that it made."""
    files = [run.path / "problems.parquet", *sorted(run.path.glob("rounds/*/made.parquet"))]
    return [problem for file in files for problem in store.read_records(run.files.file(file), Problem)]


def _verifier(config: Config, place: Place) -> Target:
    if place.heldout:
        return config.dataset.verifier
    where = store.read_json(place.folder / "verify.manifest.json").get("where", {})
    return config.verifier_of(config.stages[where.get("stage", "")])


def _grader(config: Config, node: Target, stack: ExitStack) -> Grade:
    if not is_group(node):
        pool = stack.enter_context(open_pool(config, node))
        return partial(_each, pool)
    if asks_for(node):  # other roles, reward models
        raise AsksModel
    own = config.dataset.verifier
    inner = None if is_group(own) else stack.enter_context(open_pool(config, own))
    return partial(_by_group, bind(node, "verifier"), inner)


def _each(pool: Pool, groups: list[list[Attempt]]) -> list[Outcome]:
    asked = ((a.trajectory.text, a.problem.gold, a.problem.metadata) for group in groups for a in group)
    return list(pool.run(asked))


class _Nobody:
    """In the policy's place."""

    def __getattr__(self, name: str) -> Any:
        raise AsksModel


def _by_group(verify: Callable[..., Any], pool: Pool | None, groups: list[list[Attempt]]) -> list[Outcome]:
    async def check(text: str, problem: Problem) -> Outcome:
        if pool is None:
            raise AsksModel
        return await pool.check_one(text, problem.gold, problem.metadata)

    context = Context(cast(Policy, _Nobody()), check, _Nobody())

    async def one(group: list[Attempt]) -> list[Outcome]:
        return list(await verify(group[0].problem, [a.trajectory for a in group], context))

    async def every() -> list[list[Outcome]]:
        return await asyncio.gather(*map(one, groups))

    return list(itertools.chain.from_iterable(asyncio.run(every())))


def _again(place: Place, problems: list[Problem], grade: Grade, file: IO[str] | None) -> Regraded:
    found = Regraded(place.label)
    for groups in store.batches(pair(place.folder, problems), SHARD):
        outcomes = iter(grade(groups))
        for group in groups:
            _compare(found, place, group, list(itertools.islice(outcomes, len(group))), file)
    return found


def _compare(
    found: Regraded, place: Place, group: list[Attempt], outcomes: list[Outcome], file: IO[str] | None
) -> None:
    for attempt, new in zip(group, outcomes, strict=True):
        old = attempt.verdict
        found.moved[old.status, new.status] += 1
        same = old.status == new.status
        other = same and abs(old.reward - new.reward) > 1e-9
        found.other += other
        if file and (other or not same):
            known = {key: getattr(old, key) for key in ("status", "reward", "extracted", "reason")}
            row = {"place": place.label, "problem": attempt.problem.id, "trajectory": old.trajectory_id}
            file.write(json.dumps(row | {"gold": attempt.problem.gold, "before": known, "after": asdict(new)}) + "\n")
    plain = [a.trajectory.metadata.get("decoding", "greedy") == "greedy" for a in group]
    counted = [i for i, one in enumerate(plain) if one or not any(plain)]  # of a plain evaluation the greedy answer
    right = sum(group[i].verdict.status == "correct" for i in counted)
    still = sum(outcomes[i].status == "correct" for i in counted)
    found.shares.append((right / len(counted), still / len(counted)))


def show(results: Sequence[Regraded]) -> None:
    """Print one row for each folder of answers."""
    from rich.table import Table

    from selfimprove.report.compare import shown
    from selfimprove.report.display import standard_output

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = ("answers", "graded", "changed", "before, % [95 %]", "after, % [95 %]", "change, points")
    for name in columns:
        table.add_column(name, justify="left" if name in (columns[0], columns[2]) else "right")
    for found in results:
        moves = [f"{count} {old} to {new}" for (old, new), count in found.changed.items()]
        moves += [f"{found.other} in the reward alone"] if found.other else []
        before, after, change = found.estimates()
        cells = (shown(before, "percent"), shown(after, "percent"), shown(change, "points"))
        table.add_row(found.label, f"{found.n:,}", ", ".join(moves) or "none", *cells)
    standard_output().print(table)
