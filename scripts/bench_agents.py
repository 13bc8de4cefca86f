"""Measures episodes in an environment, and trees of tasks: many at once against one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove.config import compose
from selfimprove.datasets.envs import load
from selfimprove.env.worlds import worlds
from selfimprove.generate.act import episodes
from selfimprove.methods.agent_r import generate
from selfimprove.policy import Policy
from selfimprove.policy.models import resolve
from selfimprove.studies.made import crafter
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem, Trajectory

Result = dict[str, Any]
Solver = Callable[..., Awaitable[list[Trajectory]]]
CRAFT = {"_target_": "selfimprove.env.craft.Craft"}


def episodes_together(count: int = 256, alone: int = 16) -> Result:
    """Episodes a second of the small policy, with `count` at once over one at a time; and steps a second."""
    return together(partial(episodes, actions=10, temperature=1.0), count, alone)


def trees_together(count: int = 64, alone: int = 4) -> Result:
    """Agent-R's trees a second with `count` tasks at once over one at a time."""
    node = compose(["method=agent_r"]).stages[""].generate or {}
    options = {key: value for key, value in node.items() if key != "_target_"}
    return together(partial(generate, **options, seed=0), count, alone)


def together(solver: Solver, count: int, alone: int) -> Result:
    path = Path(resolve("crafter", "made"))
    engine = shipped(path if path.exists() else crafter.make(path), max_batch=count)
    problems = load(env=CRAFT, seed=0, prompt="{question}", train_size=count, heldout_size=1)[:count]
    tool = worlds(env=CRAFT)
    policy = Policy(engine, 0, max_tokens=24)

    async def one(problem: Problem) -> list[Trajectory]:
        return await solver(problem, policy.for_problem(problem), tools={"env": tool})

    async def at_once() -> list[list[Trajectory]]:
        return await asyncio.gather(*map(one, problems))

    async def in_turn() -> None:
        for problem in problems[:alone]:
            await one(problem)

    try:
        asyncio.run(in_turn())  # warm
        tool.take()
        began = time.perf_counter()
        asyncio.run(at_once())
        many = time.perf_counter() - began
        steps = sum(tool.take().values())
        began = time.perf_counter()
        asyncio.run(in_turn())
        single = time.perf_counter() - began
    finally:
        tool.close()
    rates = {"together": count / many, "alone": alone / single}
    return {"value": rates["together"] / rates["alone"], **rates, "steps_a_second": steps / many}
