"""Environments: a policy acts in one, and is shown what came of it.

An environment is a class of one's own, in a file of one's own (docs/environments.md):

    Env(task)             the task is JSON, from the problem's metadata
    .reset() -> Seen      the beginning; the problem's prompt tells it
    .step(action) -> Seen

Its module has `tasks(side, count, seed)`, which gives the data set's rows. It may have `require(**options)`, which gets
the environment's options and raises ConfigError where this machine lacks what it needs. What an environment shows
depends on the task and on the actions before, and on nothing else: then an episode is a list of actions, which can be
played again (`selfimprove.env.worlds`).

An action is what stands behind "Action:" in a text; what stands before it is the thought.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from selfimprove.types import Sample

WAIT = "wait"  # an action in which nothing is done: no environment sees it
_ACTION = re.compile(r"^Action:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seen:
    """What an environment shows after a step."""

    text: str
    reward: float = 0.0  # gained by this step; an episode that gained 1 in all has reached its goal
    done: bool = False  # the episode is over
    status: Literal["ok", "timeout", "error"] = "ok"  # timeout, error: the environment hung or died; not set by itself


class Env(Protocol):
    """One task of an environment. It is used in a process that can be killed."""

    def reset(self) -> Seen:
        """Begin the task anew."""

    def step(self, action: str) -> Seen:
        """Do something. An action that cannot be done is no error: the text says so."""


def action_of(text: str) -> str | None:
    """The last action in a text; None where there is none."""
    found = _ACTION.findall(text)
    return found[-1] if found else None


def actions_of(samples: Sequence[Sample]) -> list[str]:
    """The actions of an episode's texts, in order."""
    return [action for sample in samples if (action := action_of(sample.text)) is not None]
