"""Environments: a policy acts in one, and gets an observation after each action.

An environment is a class in a file of its own (docs/environments.md):

    Env(task)             the task is JSON, from the problem's metadata
    .reset() -> Seen      the first observation; the problem's prompt has it too
    .step(action) -> Seen

Its module has `tasks(side, count, seed)`, which gives the data set's rows. It may have `require()`, which raises
ConfigError if this machine lacks something that the environment needs. Both also get the options of `dataset.env`, if
there are any. An observation depends only on the task and on the actions before it. So an episode is a list of actions,
and can be played again (`selfimprove.env.worlds`).

A text has an action after "Action:", and the thought before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from selfimprove.types import Sample

WAIT = "wait"  # an action that does nothing; no environment sees it
_ACTION = re.compile(r"^Action:[ \t]*(.+?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Seen:
    """An observation: the answer of an environment to a step."""

    text: str
    reward: float = 0.0  # of this step; an episode with a sum of 1 or more has reached its goal
    done: bool = False  # the episode is over
    status: Literal["ok", "timeout", "error"] = "ok"  # the runner sets timeout and error: the environment hung or died


class Env(Protocol):
    """One task of an environment. It runs in a process that can be killed."""

    def reset(self) -> Seen:
        """Start the task again."""

    def step(self, action: str) -> Seen:
        """Take an action. An impossible action is no error: the observation says that it is impossible."""


def action_of(text: str) -> str | None:
    """The last action in a text; None if there is none."""
    found = _ACTION.findall(text)
    return found[-1] if found else None


def actions_of(samples: Sequence[Sample]) -> list[str]:
    """The actions of an episode's texts, in order."""
    return [action for sample in samples if (action := action_of(sample.text)) is not None]
