"""What environments on a Java server share: one game in a process at a time, played again where another came between.

An environment's module has `begin()`, which starts the server. `selfimprove.env.worlds` calls it in a new process,
before the limits of time and memory hold. Java takes seconds to start, and reserves more memory than it uses.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from selfimprove.env import Seen
from selfimprove.errors import ConfigError

HEAP = "-Xmx300m -XX:+UseSerialGC"  # of the server: by default ScienceWorld's takes 1.2 GB

_playing: dict[type, Game] = {}  # the game that each kind's server of this process is in


def require_java(dataset: str, module: str) -> None:
    """Raises ConfigError if Java or the package is missing."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(
            f'dataset={dataset} needs the package {module}: pip install "selfimprove[{dataset}]"', "dataset"
        )
    if shutil.which("java") is None:
        raise ConfigError(f"dataset={dataset} needs Java: apt-get install default-jre-headless", "dataset")
    os.environ.setdefault("JAVA_TOOL_OPTIONS", HEAP)


def turns(variants: Mapping[str, Sequence[int]], count: int) -> Iterator[tuple[str, int]]:
    """Up to `count` (kind, variant): the first of each kind, then the second of each that has one, and so on."""
    most = max(map(len, variants.values()))
    return islice(((kind, own[i]) for i in range(most) for kind, own in variants.items() if i < len(own)), count)


class Game(ABC):
    """One task of a server that plays one game at a time. A kind of game says how to `open` its task and to `act`."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.done: list[str] = []
        self.score = 0.0

    @abstractmethod
    def open(self) -> str:
        """Begin the task on the server. Returns the observation."""

    @abstractmethod
    def act(self, action: str) -> tuple[str, float, bool]:
        """Take a step on the server. Returns the observation, the score so far (0 to 1), and whether it is over."""

    def reset(self) -> Seen:
        _playing[type(self)] = self
        self.done, self.score = [], 0.0
        return Seen(self.open())

    def step(self, action: str) -> Seen:
        if _playing.get(type(self)) is not self:
            _playing[type(self)] = self
            self.open()
            for earlier in self.done:
                self.act(earlier)
        self.done.append(action)
        text, score, over = self.act(action)
        gained, self.score = score - self.score, score
        return Seen(text, gained, over)
