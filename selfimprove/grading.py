"""Verdicts for many trajectories: by a check in the pool, or by a group verifier."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from selfimprove import store
from selfimprove.attempt import pair, tokens
from selfimprove.binding import Target, asks_for, is_group
from selfimprove.errors import RunError
from selfimprove.phase import progress as show
from selfimprove.plan import Pass
from selfimprove.policy import Policy
from selfimprove.session import Policies, Session
from selfimprove.supplies import supplied
from selfimprove.types import STATUSES, Attempt, Problem, Trajectory, Verdict
from selfimprove.verify import Context
from selfimprove.verify.pool import Pool

Rows = Iterator[tuple[Problem, Trajectory]]
Advance = Callable[[int], object]
_VERDICTS_A_PART = 4096


def grade(
    session: Session,
    step: Pass,
    phase: str,
    folder: Path,
    key: str,
    problems: list[Problem],
    node: Target,
    policies: Policies,
    role: str = "policy",
    *,
    deal: int | None = None,
    name: str = "verdicts",
    source: Path | None = None,
) -> dict[str, int]:
    """Verdicts for every trajectory of `source` (None: of `folder`), written to `name`.parquet in `folder`.

    `role` made the trajectories. `deal` is a seed. With it the verdicts are shuffled, as a control. Returns the number
    of verdicts of each status, and what a group verifier asked of models. Raises RunError with three examples
    where more checks end as `timeout` or `error` than the configuration allows.
    """
    limits = session.config.verify
    source, path = (source or folder) / "trajectories.parquet", folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = store.Parts(path, key, Verdict)
    total = store.count_records(source)
    by_id = {problem.id: problem for problem in problems}
    rows = ((by_id[t.problem_id], t) for t in store.read_records(source, Trajectory, start=parts.done))
    with show(session, step, phase, total, "answers") as progress:
        progress.skip(parts.done)
        if is_group(node):
            others = [r for r, own in session.config.roles.items() if own.kind in ("causal", "own")]
            others = others if "roles" in asks_for(node) else []
            policy = session.policy(policies, role, phase, step.number, others=others)
            _grade_groups(session, step, rows, parts, node, policy, problems, policies, progress.advance)
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


def beside_gold(session: Session, folder: Path, source: Path, problems: list[Problem]) -> dict[str, float]:
    """How right the verdicts in `folder` are on the trajectories of `source`. Nothing learns from these figures.

    `gold/right` is the share of answers that the data set's own check finds correct. `gold/precision` is that share
    among the answers with the verdict `correct`. Answers without a gold answer do not count. A figure over no answers
    is left out.
    """
    node = session.config.dataset.verifier
    if is_group(node):
        return {}
    groups = pair(source, problems, folder / "verdicts.parquet")
    known = [a for a in itertools.chain.from_iterable(groups) if a.problem.gold is not None]
    outcomes = session.pool(node).run((a.trajectory.text, a.problem.gold, a.problem.metadata) for a in known)
    right = [float(outcome.status == "correct") for outcome in outcomes]
    accepted = [value for a, value in zip(known, right, strict=True) if a.verdict.status == "correct"]
    found = {"gold/right": right, "gold/precision": accepted}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def _grade_each(pool: Pool, rows: Rows, parts: store.Parts, advance: Advance) -> None:
    """Verdicts by a check in the pool, for each trajectory separately."""
    for batch in store.batches(rows, _VERDICTS_A_PART):
        asked = ((trajectory.text, problem.gold, problem.metadata) for problem, trajectory in batch)
        verdicts = []
        for (_, trajectory), outcome in zip(batch, pool.run(asked), strict=True):
            verdicts.append(Verdict(trajectory.id, **asdict(outcome)))
            advance(1)
        parts.add(parts.done, parts.done + len(batch), verdicts)


def _grade_groups(
    session: Session,
    step: Pass,
    rows: Rows,
    parts: store.Parts,
    node: Target,
    policy: Policy,
    problems: list[Problem],
    policies: Policies,
    advance: Advance,
) -> None:
    """Verdicts by a group verifier. It gets all trajectories of a problem at once, a shard of problems at a time."""
    verifier = supplied(session, step, node, "verifier", "verifier", node)
    if "scorers" in asks_for(node):
        verifier = partial(verifier, scorers=session.scorers(policies))
    check, resource = session.check_by(node), session.resource(node, problems, policies)
    roles = "roles" in asks_for(node)

    async def verdicts(problem: Problem, group: list[Trajectory]) -> list[Verdict]:
        own = policy.for_problem(problem)
        given = {"roles": {name: own.on(name) for name in session.config.roles}} if roles else {}
        outcomes = await verifier(problem, group, Context(own, check, resource), **given)
        advance(len(group))
        return [Verdict(t.id, **asdict(outcome)) for t, outcome in zip(group, outcomes, strict=True)]

    async def grade_all(shard: list[tuple[Problem, list[Trajectory]]]) -> list[list[Verdict]]:
        return await asyncio.gather(*(verdicts(problem, group) for problem, group in shard))

    for shard in store.batches(_by_problem(rows), session.config.hardware.shard):
        found = list(itertools.chain.from_iterable(session.wait(grade_all(shard))))
        parts.add(parts.done, parts.done + len(found), found, policy.meter.take() | session.take_calls())
    if session.config.hardware.sleep:
        session.close_resources()  # sampler and trainer need the room


def _by_problem(rows: Rows) -> Iterator[tuple[Problem, list[Trajectory]]]:
    for _, group in itertools.groupby(rows, key=lambda row: row[0].id):
        pairs = list(group)
        yield pairs[0][0], [trajectory for _, trajectory in pairs]


def effects(
    groups: Iterator[list[Attempt]], outcomes: Mapping[Any, str | float], dropped: Counter[str]
) -> Iterator[list[Attempt]]:
    """The attempts as a filter sees them. Those with a status that is dropped are left out, and counted."""
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
    """The same verdicts, shuffled among the trajectories."""
    order = np.random.default_rng(seed).permutation(table.num_rows)
    dealt = table.take(order)
    return dealt.set_column(0, "trajectory_id", table.column("trajectory_id"))
