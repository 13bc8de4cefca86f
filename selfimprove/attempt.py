"""A solver on many problems at once: trajectories, a shard of problems at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove import store
from selfimprove.binding import Target, bind, module_of, takes_check, takes_prepared
from selfimprove.errors import RunError
from selfimprove.phase import progress as show
from selfimprove.policy import Policy
from selfimprove.report import metrics as measure
from selfimprove.session import Session, Weights
from selfimprove.types import Attempt, Problem, Trajectory, Verdict

Solver = Callable[[Problem, Policy], Any]


PREPARED = "prepared.json"  # beside a phase's trajectories: what its solver began with, and what that asked of models


def _prepared(session: Session, node: Target, kept: Path, key: str, problems: list[Problem], policy: Policy) -> Any:
    """What a node's solver begins with, from `kept`, made now where it is not there.

    A module whose solver has the keyword `prepared` has a coroutine
    `prepare(problems, policy, *, dev, check, **options)` for work that is done once and not a problem at a time. It
    gets the phase's problems, the dev problems, the verifier and the solver's options, and returns JSON, which is kept:
    a phase that is continued goes on with the same. What it asked of models is kept with it.
    """
    if not kept.exists() or store.read_json(kept)["key"] != key:
        options = bind(node, "generate").keywords  # type: ignore[attr-defined]
        value = session.wait(module_of(node).prepare(problems, policy, dev=session.dev, check=session.check, **options))
        store.write_json(kept, {"key": key, "prepared": value, "asked": policy.meter.take()})
    return store.read_json(kept)["prepared"]


def collect(
    session: Session,
    number: int,
    phase: str,
    path: Path,
    key: str,
    problems: list[Problem],
    solver: Solver | Target,
    weights: Weights,
) -> dict[str, Any]:
    """Run a solver on every problem and write the trajectories, a shard of problems at a time. Returns what it cost.

    That of a node is given what it asks the runner for: `check`, and `prepared`, which `_prepared` makes. A shard is
    generated from start to end by itself, so that one that is done again after a kill sees the same batches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = store.Parts(path, key, Trajectory)
    policy = session.policy(weights, phase, number)
    asked: Counter[str] = Counter()
    run: Callable[..., Any] = bind(solver, "generate") if isinstance(solver, dict) else solver
    if isinstance(solver, dict) and takes_check(solver):
        run = partial(run, check=session.check)
    if isinstance(solver, dict) and takes_prepared(solver):
        kept = path.with_name(PREPARED)
        beginning = session.policy(weights, phase, number, "prepare")
        try:
            run = partial(run, prepared=_prepared(session, solver, kept, key, problems, beginning))
        except ValueError as cause:
            raise RunError(f"{phase}: {cause}") from cause
        asked.update(store.read_json(kept)["asked"])
    with show(session, number, phase, len(problems), "problems") as progress:
        progress.skip(parts.done)

        async def solve(problem: Problem) -> list[Trajectory]:
            try:
                found = await run(problem, policy.for_problem(problem))
            except ValueError as cause:
                raise RunError(f"{phase}: problem {problem.id}: {cause}") from cause
            for i, trajectory in enumerate(found):
                trajectory.id = f"{session.run.prefix(number)}/{problem.id}/{i}"
            progress.advance(1, tokens=sum(t.sampled_tokens for t in found))
            return found  # type: ignore[no-any-return]

        async def solve_all(shard: list[Problem]) -> list[list[Trajectory]]:
            return await asyncio.gather(*map(solve, shard))

        while (start := parts.done) < len(problems):
            shard = problems[start : start + session.config.hardware.shard]
            found = session.wait(solve_all(shard))
            parts.add(start, start + len(shard), list(itertools.chain.from_iterable(found)), policy.meter.take())
    asked.update(parts.notes())
    parts.finish()
    return measure.cost(store.read_records(path, Trajectory)) | tokens(asked)


def pair(folder: Path, problems: list[Problem]) -> Iterator[list[Attempt]]:
    """Trajectories and their verdicts side by side, grouped by problem."""
    by_id = {problem.id: problem for problem in problems}
    both = zip(
        store.read_records(folder / "trajectories.parquet", Trajectory),
        store.read_records(folder / "verdicts.parquet", Verdict),
        strict=True,
    )
    for problem_id, group in itertools.groupby(both, key=lambda pair: pair[0].problem_id):
        yield [Attempt(by_id[problem_id], trajectory, verdict) for trajectory, verdict in group]


def attempts(session: Session, number: int) -> Iterator[list[Attempt]]:
    """The round's attempts, problem by problem, streamed from the run folder."""
    return pair(session.run.round(number), session.train_problems)


def tokens(asked: dict[str, int]) -> dict[str, int]:
    counts = {key: asked.get(key, 0) for key in ("prompt", "sampled", "scored")}
    return {"calls": asked.get("calls", 0)} | {f"tokens/{key}": count for key, count in counts.items()}
