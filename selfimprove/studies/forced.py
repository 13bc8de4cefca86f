"""Episodes in the environment `craft` behind wrong steps that the policy did not choose, and what it makes of them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from selfimprove.env import WAIT, actions_of
from selfimprove.env.craft import plan, written, wrong
from selfimprove.generate.act import episode
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.studies.made.crafter import ASK
from selfimprove.studies.solving import ByProblem, solve
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem, Sample, Trajectory

WRONG, ACTIONS = 2, 10  # actions that are forced, and those that may follow

Found = list[Trajectory]  # an episode of each task


def episodes(problems: Sequence[Problem], path: str, solver: Any) -> Found:
    """What the policy in `path` does on tasks, an episode each."""
    return [trajectory for (trajectory,) in solve(solver, shipped(path), problems, max_tokens=24)]


def behind(problems: Sequence[Problem], path: str, tools: Mapping[str, Any]) -> Found:
    """Greedy episodes behind wrong actions, the same for all policies. metadata is that of the policy's own part."""

    async def forced(problem: Problem, policy: Policy) -> list[Trajectory]:
        dialogue, world, rng = Dialogue(policy, problem.prompt), tools["env"].start(problem), random.Random(problem.id)
        task = problem.metadata["task"]
        for _ in range(WRONG):
            await force(dialogue, world, written(task["goal"], wrong(task, world.actions, rng)))
        first = len(dialogue.samples)
        found = await episode(dialogue, world, actions=ACTIONS, temperature=0.0)
        found.samples = found.samples[first:]
        return [found]

    return episodes(problems, path, forced)


async def force(dialogue: Dialogue, world: Any, words: str, ask: str = "") -> None:
    """Put a step into an episode that the policy did not choose, and what is seen of it, with a question behind it."""
    ids = [*dialogue.policy.encode(words), dialogue.policy.engine.end]
    dialogue.take(Sample(dialogue.ids, ids, [0.0] * len(ids), words, "stop", 0, role="forced"))
    (action,) = actions_of(dialogue.samples[-1:])
    dialogue.user((await world.step(action)).text + ask)


def judges_rightly(problems: Sequence[Problem], path: str, tools: Mapping[str, Any]) -> float:
    """The mean of two shares: of right first actions that the policy in `path` calls good, and of wrong ones bad."""

    async def judge(problem: Problem, policy: Policy) -> list[Trajectory]:
        task = problem.metadata["task"]
        right = written(*plan(task["goal"], task["have"])[0])
        said = []
        for words in (right, written(task["goal"], wrong(task, [], random.Random(problem.id)))):
            dialogue = Dialogue(policy, problem.prompt)
            await force(dialogue, tools["env"].start(problem), words, f"\n{ASK}")
            said.append(await dialogue.reply(temperature=0.0))
        return [Trajectory(problem.id, said)]

    found = episodes(problems, path, judge)
    right_ones = [("good" in t.samples[0].text) + ("bad" in t.samples[1].text) for t in found]
    return float(np.mean(right_ones) / 2)


# Figures of an episode


def of_each(figure: Callable[[Trajectory], float], runs: Sequence[Found]) -> list[ByProblem]:
    return [{t.problem_id: figure(t) for t in found} for found in runs]


def succeeds(runs: Sequence[Found]) -> list[ByProblem]:
    return of_each(lambda t: float(t.metadata["ended"] == "done"), runs)


def revision(trajectory: Trajectory) -> float:
    """Actions before the policy revises; all that it may do where it never does."""
    actions = actions_of(trajectory.samples)
    return float(actions.index(WAIT) if WAIT in actions else ACTIONS)


def repeats(trajectory: Trajectory) -> float:
    """The share of actions that are the one before again."""
    actions = actions_of(trajectory.samples)
    return float(np.mean([a == b for a, b in itertools.pairwise(actions)])) if len(actions) > 1 else 0.0
