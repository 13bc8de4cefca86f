"""For studies of solvers: many problems in one event loop, with any engine and no run folder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfimprove.generate.until import until
from selfimprove.policy import Engine, Policy
from selfimprove.policy.models import PACKAGED
from selfimprove.report.curve import Rule, Trace, baselines, trace
from selfimprove.store import new_folder
from selfimprove.train import TrainContext
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Example, Problem, Trajectory, Verdict
from selfimprove.verify import Outcome

if TYPE_CHECKING:
    from selfimprove.policy.hf import TransformersEngine

Check = Callable[[str, Problem], Outcome]  # a data set's check of one answer, called in this process
Solver = Callable[..., Awaitable[list[Trajectory]]]


def solve(
    solver: Solver,
    engine: Engine,
    problems: Sequence[Problem],
    *,
    seed: int = 0,
    check: Check | None = None,
    max_tokens: int = 256,
) -> list[list[Trajectory]]:
    """Each problem's trajectories by a solver whose options are bound. `check` goes to a solver that asks for one;
    `max_tokens` is of a sample, unless the solver says otherwise."""
    policy = Policy(engine, seed, max_tokens=max_tokens)
    if check is not None:
        solver = partial(solver, check=_awaited(check))

    async def one(problem: Problem) -> list[Trajectory]:
        trajectories = await solver(problem, policy.for_problem(problem))
        for i, trajectory in enumerate(trajectories):
            trajectory.id = f"{problem.id}/{i}"
        return trajectories

    async def everything() -> list[list[Trajectory]]:
        return await asyncio.gather(*map(one, problems))

    return asyncio.run(everything())


def _awaited(check: Check) -> Callable[[str, Problem], Awaitable[Outcome]]:
    async def ask(text: str, problem: Problem) -> Outcome:
        return check(text, problem)

    return ask


def attempts(
    problems: Sequence[Problem], solutions: Sequence[Sequence[Trajectory]], check: Check
) -> list[list[Attempt]]:
    """Trajectories with the verdict that `check` gives each."""

    def one(problem: Problem, trajectory: Trajectory) -> Attempt:
        outcome = check(trajectory.text, problem)
        verdict = Verdict(trajectory.id, outcome.status, outcome.reward, outcome.extracted, outcome.step_rewards)
        return Attempt(problem, trajectory, verdict)

    return [[one(p, t) for t in trajectories] for p, trajectories in zip(problems, solutions, strict=True)]


def plain(
    engine: Engine, problems: Sequence[Problem], check: Check, tokens: float, *, seed: int = 0, **sampling: Any
) -> list[list[Attempt]]:
    """Each problem's plain samples, as few as have `tokens` tokens together; `sampling` is as of `generate.until`."""
    return attempts(problems, solve(partial(until, tokens=tokens, **sampling), engine, problems, seed=seed), check)


def right(group: Sequence[Attempt]) -> list[bool]:
    """Which of a problem's attempts are correct."""
    return [attempt.verdict.status == "correct" for attempt in group]


def traces(groups: Sequence[Sequence[Attempt]], rule: Rule) -> list[Trace]:
    """Tokens and answer of each problem, stage by stage; `report.curve.curve` makes rows of them."""
    return [trace(group, right(group), rule) for group in groups]


def at_tokens(samples: Sequence[Sequence[Attempt]], tokens: float, **rules: Rule) -> dict[str, list[bool]]:
    """Of plain samples worth `tokens` a problem: which problems each rule solves (as in `maj=vote`), and any sample,
    `pass`."""
    solved = [baselines(group, right(group), tokens, rules) for group in samples]
    return {name: [one[name] for one in solved] for name in (*rules, "pass")}


def tuned(folder: Path, rows: Callable[[], Sequence[Example]], **options: Any) -> str:
    """The folder of the shipped model after supervised fine-tuning on `rows`, made once; `options` are those of
    `train.sft`."""
    if not folder.exists():
        with new_folder(folder) as out:
            start = str(PACKAGED / "tiny")
            context = TrainContext(start, start, out, 0, "cpu", "float32", 32, False, None, lambda figures: None)
            sft(rows(), context, schedule="cosine", warmup_ratio=0.05, **options)
    return str(folder)


def shipped(path: str = str(PACKAGED / "tiny")) -> TransformersEngine:
    """An engine for the shipped model, or for one that was made of it."""
    from selfimprove.policy.hf import TransformersEngine

    return TransformersEngine(path, device="cpu", max_batch=64)
