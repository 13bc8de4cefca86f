"""The tool `env`: episodes of the data set's environment, hundreds at once, in processes that can be killed.

An episode is its task and its actions so far. A process takes the next step in its open environment for these actions.
If it has none, it opens a new one and plays the actions again. So an episode can be copied at any step. An environment
that hangs or dies ends only its own episode, as `timeout` or `error`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from selfimprove.binding import bind, module_of, options_of
from selfimprove.env import WAIT, Env, Seen
from selfimprove.errors import ConfigError
from selfimprove.tools.pooled import Pooled
from selfimprove.tools.python import bounded, escaped
from selfimprove.types import Count, Problem, Seconds, Status
from selfimprove.verify import Outcome
from selfimprove.verify.pool import Pool

OPEN = 64  # environments that a process keeps open

_open: dict[
    str, tuple[Env, list[str], list[Seen]]
] = {}  # by task: the environment, its actions and its observations; oldest first


def require_worlds(*, env: dict[str, Any] | None = None, **options: Any) -> None:
    """Raises ConfigError if the data set has no environment, or this machine lacks something that it needs."""
    if env is None:
        raise ConfigError("method.tools.env: the data set has no environment; dataset=craft has one", "dataset")
    bind(env, "dataset.env")
    if require := getattr(module_of(env), "require", None):
        require(**options_of(env))


def worlds(
    *,
    env: dict[str, Any] | None,
    seconds: Seconds = 10.0,
    memory_mb: Count = 2048,
    chars: Count = 1000,
    workers: Count | None = None,
) -> Worlds:
    """The tool, open.

    env: the environment, a node with `_target_`; seconds, memory_mb (MiB): limits of a step; chars: characters of an
    observation at most; workers: processes, None: one a core.
    """
    target, options = f"{__name__}.play", {"env": env, "chars": chars}
    return Worlds(Pool(target, options, workers=workers or os.cpu_count() or 1, seconds=seconds, memory_mb=memory_mb))


class Worlds(Pooled):
    """Plays actions in the environment of a problem's task."""

    def start(self, problem: Problem) -> Episode:
        """A new episode. Raises ValueError for a problem without a task of an environment."""
        if "task" not in problem.metadata:
            raise ValueError("the problem is not a task of an environment: its metadata has no `task`")
        return Episode(self, problem)

    async def play(self, problem: Problem, actions: Sequence[str]) -> tuple[Seen, Outcome]:
        """Play actions from the beginning. Returns the last observation and the outcome of all actions."""
        outcome = await self._pool.check_one(json.dumps(list(actions)), None, {"task": problem.metadata["task"]})
        if outcome.status in ("timeout", "error"):
            self._ended[outcome.status] += 1
            said = f"{outcome.status}: {outcome.reason}"
            return Seen(said, done=True, status="timeout" if outcome.status == "timeout" else "error"), outcome
        self._ended["ok"] += 1
        reward = outcome.step_rewards[-1] if outcome.step_rewards else 0.0
        return Seen(outcome.extracted or "", reward, outcome.reason == "done"), outcome


class Episode:
    """One attempt at a task. `reward` is the sum of its steps' rewards so far."""

    def __init__(self, worlds: Worlds, problem: Problem) -> None:
        self.worlds, self.problem = worlds, problem
        self.actions = list[str]()  # without `wait`
        self.reward = 0.0

    async def reset(self) -> Seen:
        """Start again. Returns the first observation."""
        self.actions, self.reward = [], 0.0
        seen, _ = await self.worlds.play(self.problem, [])
        return seen

    async def step(self, action: str) -> Seen:
        """Take an action. Returns the observation."""
        if action == WAIT:
            return Seen("ok.")
        self.actions = [*self.actions, action]
        seen, outcome = await self.worlds.play(self.problem, self.actions)
        self.reward = outcome.reward
        return seen

    def copy(self) -> Episode:
        """A second episode with the same actions, which can go on in another way."""
        other = Episode(self.worlds, self.problem)
        other.actions, other.reward = self.actions, self.reward
        return other


def begin(*, env: dict[str, Any], **options: Any) -> None:
    """What a process does once, before it plays: `begin` of the environment's module, if there is one."""
    if own := getattr(module_of(env), "begin", None):
        own()


def play(text: str, gold: str | None, metadata: dict[str, Any], *, env: dict[str, Any], chars: int) -> Outcome:
    """Play actions, a JSON list, in an environment from its beginning: a check of `selfimprove.verify.pool`.

    `step_rewards` has the reward of each step, and `reward` their sum; with 1 or more the status is `correct`.
    `extracted` is the last observation, with invisible characters written out. `reason` is "done" if the episode is
    over; actions after its end are not played.
    """
    seen = _played(env, metadata["task"], json.loads(text))
    rewards = [float(step.reward) for step in seen[1:]]
    shown = bounded(escaped(seen[-1].text), chars)
    status: Status = "correct" if sum(rewards) >= 1 else "wrong"
    return Outcome(status, sum(rewards), shown, rewards, "done" if seen[-1].done else None)


def _played(env: dict[str, Any], task: dict[str, Any], actions: list[str]) -> list[Seen]:
    """The observations at the beginning and after each action."""
    key = json.dumps([env, task], sort_keys=True)
    known = _open.pop(key, None)
    if known is None or known[1] != actions[: len(known[1])]:
        new: Env = bind(env, "dataset.env")(task)
        known = new, [], [new.reset()]
    world, done, seen = known
    for action in actions[len(done) :]:
        if seen[-1].done:
            break
        seen.append(world.step(action))
        done = [*done, action]
    _open[key] = world, done, seen
    if len(_open) > OPEN:
        del _open[next(iter(_open))]
    return seen
