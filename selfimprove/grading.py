"""Verdicts for many trajectories: by a check in the pool, or by a group verifier."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfimprove import store
from selfimprove.attempt import tokens
from selfimprove.binding import Target, bind, is_group, module_of, options_of
from selfimprove.errors import RunError
from selfimprove.phase import progress as show
from selfimprove.policy import Policy
from selfimprove.session import Session, Weights
from selfimprove.types import STATUSES, Attempt, Problem, Trajectory, Verdict
from selfimprove.verify import Context, Opening
from selfimprove.verify.pool import Pool

Rows = Iterator[tuple[Problem, Trajectory]]
Advance = Callable[[int], object]
_VERDICTS_A_PART = 4096


def grade(
    session: Session,
    number: int,
    phase: str,
    folder: Path,
    key: str,
    problems: list[Problem],
    node: Target,
    weights: Weights,
    deal: int | None = None,
    name: str = "verdicts",
) -> dict[str, int]:
    """Check every trajectory of `folder`: `name`.parquet. `deal` is a seed by which the verdicts are dealt out at
    random (a control).

    Returns the number of verdicts of each status, and what a group verifier asked of models. Raises RunError with three
    examples when more checks than the configured share ended as `timeout` or `error`.
    """
    limits = session.config.verify
    source, path = folder / "trajectories.parquet", folder / f"{name}.parquet"
    parts = store.Parts(path, key, Verdict)
    total = store.count_records(source)
    by_id = {problem.id: problem for problem in problems}
    rows = ((by_id[t.problem_id], t) for t in store.read_records(source, Trajectory, start=parts.done))
    with show(session, number, phase, total, "answers") as progress:
        progress.skip(parts.done)
        if is_group(node):
            policy = session.policy(weights, phase, number)
            _grade_groups(
                session,
                rows,
                parts,
                Opening(session.config.model, session.config.hardware, problems),
                node,
                policy,
                progress.advance,
            )
        else:
            _grade_each(session.pool(node), rows, parts, progress.advance)
    asked = parts.notes()
    parts.finish(None if deal is None else lambda table: _dealt(table, deal))
    counts = dict.fromkeys(STATUSES, 0)
    examples: list[str] = []
    for verdict in store.read_records(path, Verdict):
        counts[verdict.status] += 1
        if verdict.status in ("timeout", "error") and len(examples) < 3:
            examples.append(f"{verdict.trajectory_id}: {verdict.status} ({verdict.reason})")
    failed = counts["timeout"] + counts["error"]
    if failed > limits.stop_above * total:
        raise RunError(
            f"{phase}: {failed} of {total} checks ended as timeout or error, more than "
            f"verify.stop_above={limits.stop_above}; e.g. {'; '.join(examples)}"
        )
    return {f"verdicts/{status}": count for status, count in counts.items()} | (tokens(asked) if asked else {})


def _grade_each(pool: Pool, rows: Rows, parts: store.Parts, advance: Advance) -> None:
    """Verdicts by a check, each trajectory by itself, in the pool."""
    for batch in store.batches(rows, _VERDICTS_A_PART):
        asked = ((trajectory.text, problem.gold, problem.metadata) for problem, trajectory in batch)
        verdicts = []
        for (_, trajectory), outcome in zip(batch, pool.run(asked), strict=True):
            verdicts.append(Verdict(trajectory.id, **asdict(outcome)))
            advance(1)
        parts.add(parts.done, parts.done + len(batch), verdicts)


def _grade_groups(
    session: Session, rows: Rows, parts: store.Parts, opening: Opening, node: Target, policy: Policy, advance: Advance
) -> None:
    """Verdicts by a group verifier, all trajectories of a problem at once, a shard of problems at a time."""
    verifier = bind(node, "verifier")
    with _resource(node, opening) as resource:

        async def verdicts(problem: Problem, group: list[Trajectory]) -> list[Verdict]:
            context = Context(policy.for_problem(problem), session.check, resource)
            outcomes = await verifier(problem, group, context)
            advance(len(group))
            return [Verdict(t.id, **asdict(outcome)) for t, outcome in zip(group, outcomes, strict=True)]

        async def grade_all(shard: list[tuple[Problem, list[Trajectory]]]) -> list[list[Verdict]]:
            return await asyncio.gather(*(verdicts(problem, group) for problem, group in shard))

        for shard in store.batches(_by_problem(rows), opening.hardware.shard):
            found = list(itertools.chain.from_iterable(session.wait(grade_all(shard))))
            parts.add(parts.done, parts.done + len(found), found, policy.meter.take())


def _by_problem(rows: Rows) -> Iterator[tuple[Problem, list[Trajectory]]]:
    for _, group in itertools.groupby(rows, key=lambda row: row[0].id):
        pairs = list(group)
        yield pairs[0][0], [trajectory for _, trajectory in pairs]


@contextmanager
def _resource(node: Target, opening: Opening) -> Iterator[Any]:
    """What the verifier's module opens for a phase, closed at its end; None where it opens nothing."""
    open_resource = getattr(module_of(node), "resource", None)
    resource: Any = open_resource(opening, **options_of(node)) if open_resource else None
    try:
        yield resource
    finally:
        if hasattr(resource, "close"):
            resource.close()


def effects(
    groups: Iterator[list[Attempt]], outcomes: Mapping[Any, str | float], dropped: Counter[str]
) -> Iterator[list[Attempt]]:
    """The attempts as a filter sees them: without those whose status is to be dropped, which are counted."""
    for group in groups:
        seen = []
        for attempt in group:
            effect = outcomes.get(attempt.verdict.status, "keep")
            if effect == "drop":
                dropped[attempt.verdict.status] += 1
                continue
            if not isinstance(effect, str):
                attempt = replace(attempt, verdict=replace(attempt.verdict, reward=effect))
            seen.append(attempt)
        if seen:
            yield seen


def _dealt(table: pa.Table, seed: int) -> pa.Table:
    """The same verdicts, each given to another trajectory at random."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    dealt = table.take(order)
    return dealt.set_column(0, "trajectory_id", table.column("trajectory_id"))
