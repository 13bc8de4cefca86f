"""A solver on many problems at once: trajectories, a shard of problems at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove import seeds, store
from selfimprove.binding import Target, asks_for, bind, module_of
from selfimprove.errors import RunError
from selfimprove.phase import progress as show
from selfimprove.plan import Pass
from selfimprove.policy import Policy
from selfimprove.report import metrics as measure
from selfimprove.session import Policies, Session
from selfimprove.supplies import supplied
from selfimprove.types import Attempt, Problem, Trajectory, Verdict

Solver = Callable[[Problem, Policy], Any]
PREPARED = "prepared.json"  # beside a phase's trajectories: what its solver began with, and what that asked of models


def collect(
    session: Session,
    step: Pass,
    phase: str,
    path: Path,
    key: str,
    problems: list[Problem],
    solver: Solver | Target,
    policies: Policies,
    role: str = "policy",
    verifier: Target | None = None,
) -> dict[str, Any]:
    """Run a solver on every problem and write the trajectories, a shard of problems at a time. Returns what it cost.

    A solver that is a target is given what it asks for (`selfimprove.supplies`); `verifier` is whose `check` and
    `judge` that are. A shard is generated from start to end by itself, so that one that is done again after a kill
    sees the same batches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = store.Parts(path, key, Trajectory)
    node = solver if isinstance(solver, dict) else None
    asked = asks_for(node) if node else set()
    others = [name for name, own in session.config.roles.items() if own.kind in ("causal", "own")]
    others = others if "roles" in asked else []
    policy = session.policy(policies, role, phase, step.number, others=others)
    verifier = verifier or session.config.dataset.verifier
    run: Callable[..., Any] = supplied(session, step, node, "generate", "generate", verifier) if node else solver  # type: ignore[assignment]
    cost: Counter[str] = Counter()
    if node and "prepared" in asked:
        beginning = session.policy(policies, role, phase, step.number, "prepare", others=others)
        try:
            kept = _prepared(session, node, path.with_name(PREPARED), key, problems, beginning, verifier)
        except ValueError as cause:
            raise RunError(f"{phase}: {cause}") from cause
        run = partial(run, prepared=kept["prepared"])
        cost.update(kept["asked"])
    with show(session, step, phase, len(problems), "problems") as progress:
        progress.skip(parts.done)

        async def solve(problem: Problem) -> list[Trajectory]:
            own = policy.for_problem(problem)
            given: dict[str, Any] = {}
            if "roles" in asked:
                given["roles"] = {name: own.on(name) for name in others}
            if "seed" in asked:
                given["seed"] = seeds.derive(session.config.seed, phase, step.number, problem.id)
            if "judge" in asked:
                given["judge"] = session.judge_by(verifier, own, problems, policies)
            try:
                found = await run(problem, own, **given)
            except ValueError as cause:
                raise RunError(f"{phase}: problem {problem.id}: {cause}") from cause
            for i, trajectory in enumerate(found):
                trajectory.id = f"{session.run.prefix(step)}/{problem.id}/{i}"
            progress.advance(1, tokens=sum(t.sampled_tokens for t in found))
            return found  # type: ignore[no-any-return]

        async def solve_all(shard: list[Problem]) -> list[list[Trajectory]]:
            return await asyncio.gather(*map(solve, shard))

        while (start := parts.done) < len(problems):
            shard = problems[start : start + session.config.hardware.shard]
            found = session.wait(solve_all(shard))
            parts.add(start, start + len(shard), list(itertools.chain.from_iterable(found)), policy.meter.take())
    cost.update(parts.notes())
    parts.finish()
    return measure.cost(store.read_records(path, Trajectory)) | tokens(cost)


def _prepared(
    session: Session, node: Target, kept: Path, key: str, problems: list[Problem], policy: Policy, verifier: Target
) -> dict[str, Any]:
    """What a node's solver begins with, under `prepared`, from the file `kept`, made now where it is not there.

    A module whose solver has the keyword `prepared` has a coroutine
    `prepare(problems, policy, *, dev, check, **options)` for work that is done once and not a problem at a time. It
    gets the phase's problems, the dev problems, the verifier and the solver's options, and returns JSON, which is kept:
    a phase that is continued goes on with the same. What it asked of models is kept with it, under `asked`.
    """
    if not kept.exists() or store.read_json(kept)["key"] != key:
        options = bind(node, "generate").keywords  # type: ignore[attr-defined]
        check = session.check_by(verifier)
        value = session.wait(module_of(node).prepare(problems, policy, dev=session.dev, check=check, **options))
        store.write_json(kept, {"key": key, "prepared": value, "asked": policy.meter.take()})
    return store.read_json(kept)  # type: ignore[no-any-return]


def pair(folder: Path, problems: list[Problem], verdicts: Path | None = None) -> Iterator[list[Attempt]]:
    """Trajectories and their verdicts side by side, grouped by problem; `verdicts` is the file of these where it is not
    the folder's own."""
    by_id = {problem.id: problem for problem in problems}
    both = zip(
        store.read_records(folder / "trajectories.parquet", Trajectory),
        store.read_records(verdicts or folder / "verdicts.parquet", Verdict),
        strict=True,
    )
    for problem_id, group in itertools.groupby(both, key=lambda pair: pair[0].problem_id):
        yield [Attempt(by_id[problem_id], trajectory, verdict) for trajectory, verdict in group]


def tokens(asked: dict[str, int]) -> dict[str, int]:
    """What was asked of models, as figures: `calls`, `tokens/KIND`, and those of other roles as `NAME@ROLE`."""
    found = {"calls": asked.get("calls", 0)} | {f"tokens/{k}": asked.get(k, 0) for k in ("prompt", "sampled", "scored")}
    others = {name: count for name, count in sorted(asked.items()) if "@" in name}
    return found | {name if name.startswith("calls") else f"tokens/{name}": count for name, count in others.items()}
