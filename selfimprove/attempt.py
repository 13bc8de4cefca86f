"""A solver on many problems at once: trajectories, a shard of problems at a time."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove import seeds, store
from selfimprove.binding import Target, asks_for, bind, is_group, module_of
from selfimprove.errors import RunError
from selfimprove.phase import progress as show
from selfimprove.plan import Pass
from selfimprove.policy import Policy
from selfimprove.report import metrics as measure
from selfimprove.session import Policies, Session
from selfimprove.supplies import supplied
from selfimprove.types import Attempt, Problem, Trajectory, Verdict
from selfimprove.verify import Outcome

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
    """Run a solver on every problem, a shard of problems at a time, and write the trajectories. Returns what it cost.

    If the solver is a target, it gets what it asks for (`selfimprove.supplies`). `verifier` gives its `check` and
    `judge`. If sampling leaves this machine's cores free, an answer's check begins while others are still sampled, and
    `grading.grade` takes up the outcome. A solver that asks for checks itself keeps the pool to itself. Each shard is
    generated separately, from start to end. So a shard that is done again after a kill has the same batches.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = store.Parts(path, key, Trajectory)
    node = solver if isinstance(solver, dict) else None
    asked = asks_for(node) if node else set()
    others = [name for name, own in session.config.roles.items() if own.kind in ("causal", "own")]
    others = others if "roles" in asked else []
    policy = session.policy(policies, role, phase, step.number, others=others)
    ahead = None
    if verifier and not is_group(verifier) and session.cores_are_free and not asked & {"check", "judge"}:
        ahead = session.pool(verifier)
    verifier = verifier or session.config.dataset.verifier
    run: Callable[..., Any] = supplied(session, step, node, "generate", "generate", verifier) if node else solver  # type: ignore[assignment]
    if "scorers" in asked:
        run = partial(run, scorers=session.scorers(policies))
    cost: Counter[str] = Counter()
    if node and "prepared" in asked:
        beginning = session.policy(policies, role, phase, step.number, "prepare", others=others)
        try:
            kept = _prepared(session, node, path.with_name(PREPARED), key, problems, beginning, verifier, policies)
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
            if ahead:
                ahead.begin((trajectory.text, problem.gold, problem.metadata) for trajectory in found)
            progress.advance(1, tokens=sum(t.sampled_tokens for t in found))
            return found  # type: ignore[no-any-return]

        async def solve_all(shard: list[Problem]) -> list[list[Trajectory]]:
            return await asyncio.gather(*map(solve, shard))

        while (start := parts.done) < len(problems):
            shard = problems[start : start + session.config.hardware.shard]
            found = session.wait(solve_all(shard))
            asked_for = policy.meter.take() | session.take_calls()
            parts.add(start, start + len(shard), list(itertools.chain.from_iterable(found)), asked_for)
    cost.update(parts.notes())
    parts.finish()
    return measure.cost(store.read_records(path, Trajectory)) | tokens(cost)


def _prepared(
    session: Session,
    node: Target,
    kept: Path,
    key: str,
    problems: list[Problem],
    policy: Policy,
    verifier: Target,
    policies: Policies,
) -> dict[str, Any]:
    """What a solver begins with, under `prepared`. It is read from the file `kept`, or made now.

    A solver may do some work once, instead of for each problem. Its module then has a coroutine `prepare(problems,
    policy, *, dev, check, **options)`. The coroutine gets the phase's problems, the dev problems, the verifier and the
    solver's options, and returns JSON. With a keyword `judge` it gets that too. The file keeps the JSON, so that a
    continued phase goes on with the same. It also keeps what was asked of models, under `asked`.
    """
    if not kept.exists() or store.read_json(kept)["key"] != key:
        options = bind(node, "generate").keywords  # type: ignore[attr-defined]
        prepare = module_of(node).prepare

        async def judge(problem: Problem, trajectories: list[Trajectory]) -> list[Outcome]:
            own = session.judge_by(verifier, policy.for_problem(problem), problems, policies)
            return list(await own(problem, trajectories))

        given: dict[str, Any] = {"dev": session.dev, "check": session.check_by(verifier)}
        if "judge" in inspect.signature(prepare).parameters:
            given["judge"] = judge
        value = session.wait(prepare(problems, policy, **given, **options))
        store.write_json(kept, {"key": key, "prepared": value, "asked": policy.meter.take()})
    return store.read_json(kept)  # type: ignore[no-any-return]


def pair(folder: Path, problems: list[Problem], verdicts: Path | None = None) -> Iterator[list[Attempt]]:
    """Trajectories with their verdicts, grouped by problem. `verdicts` replaces the folder's own file of verdicts."""
    by_id = {problem.id: problem for problem in problems}
    both = zip(
        store.read_records(folder / "trajectories.parquet", Trajectory),
        store.read_records(verdicts or folder / "verdicts.parquet", Verdict),
        strict=True,
    )
    for problem_id, group in itertools.groupby(both, key=lambda pair: pair[0].problem_id):
        yield [Attempt(by_id[problem_id], trajectory, verdict) for trajectory, verdict in group]


def tokens(asked: dict[str, int]) -> dict[str, int]:
    """What was asked of models, as figures: `calls` and `tokens/KIND`.

    Figures of other roles are called `NAME@ROLE`, and those of tools `tools/NAME/END`.
    """
    found = {"calls": asked.get("calls", 0)} | {f"tokens/{k}": asked.get(k, 0) for k in ("prompt", "sampled", "scored")}
    others = {name: count for name, count in sorted(asked.items()) if "@" in name}
    found |= {name: count for name, count in sorted(asked.items()) if name.startswith("tools/")}
    return found | {name if name.startswith("calls") else f"tokens/{name}": count for name, count in others.items()}
