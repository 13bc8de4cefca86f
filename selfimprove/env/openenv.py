"""Environments that an OpenEnv server runs (github.com/meta-pytorch/OpenEnv), over its WebSocket.

    pip install "selfimprove[openenv]"

A task is the seed of a reset. An action is put into one field of the server's action, and a field of the server's
observation is what is seen. A connection is a session. If the server has no session left, a process closes its own
connection that was used longest ago, and else waits for those of other processes: each closes its connections when it
has not used them for IDLE seconds. An episode whose connection was closed is played again when it goes on.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from selfimprove.datasets import Row, Side
from selfimprove.env import Seen
from selfimprove.errors import ConfigError

FIRST: dict[Side, int] = {"train": 0, "dev": 1_000_000, "test": 2_000_000}  # the seed of each side's first task
SECONDS = 10.0  # to connect, and to wait for an answer
IDLE, WAIT = 1.0, 5.0  # seconds after which an idle process closes its connections; for which another waits for one
FULL = "CAPACITY_REACHED"

_used: list[OpenEnv] = []  # environments of this process with a connection, the last used last


def require(**options: Any) -> None:
    """Raises ConfigError if the package is missing."""
    if importlib.util.find_spec("websockets") is None:
        raise ConfigError('dataset=openenv needs the package websockets: pip install "selfimprove[openenv]"', "dataset")


def begin() -> None:
    """From now on this process closes its connections when it is idle."""
    signal.signal(signal.SIGALRM, release)


def release(*_: object) -> None:
    for world in list(_used):
        world.close()


def idle_after(seconds: float) -> None:
    """When this process is idle; 0: it is not. Nothing where `begin` was not called."""
    if signal.getsignal(signal.SIGALRM) is release:
        signal.setitimer(signal.ITIMER_REAL, seconds)


class OpenEnv:
    """One task: {"seed": of its reset}.

    url: of the server, such as ws://127.0.0.1:8000; action: the field of an action that takes its text, None: the text
    is the action's JSON; observation: the field that is seen, None: all of them as JSON.
    """

    def __init__(
        self, task: dict[str, Any], *, url: str, action: str | None = "message", observation: str | None = None
    ) -> None:
        self.task, self.url, self.action, self.observation = task, url, action, observation
        self.done: list[str] = []  # actions since the reset
        self.socket: Any = None

    def reset(self) -> Seen:
        self.done = []
        return self._begin()

    def step(self, action: str) -> Seen:
        try:
            data = json.loads(action) if self.action is None else {self.action: action}
        except ValueError:
            return Seen("An action has to be JSON.")
        self.done.append(json.dumps(data))
        if self.socket is not None:
            try:
                return self._ask("step", data)
            except EOFError:  # the server has ended the session
                self.close()
        seen = self._begin()  # anew, and up to here
        for each in self.done:
            seen = self._ask("step", json.loads(each))
        return seen

    def close(self) -> None:
        """End the session."""
        if self in _used:
            _used.remove(self)
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _begin(self) -> Seen:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return self._ask("reset", {"seed": self.task["seed"]})
            except Full:
                self.close()
                if _used:
                    _used[0].close()
                elif time.monotonic() > deadline:
                    raise
                else:
                    time.sleep(0.1)

    def _ask(self, kind: str, data: Any) -> Seen:
        """The server's answer. Raises Full if it has no session, EOFError where it has ended this one, and
        RuntimeError where it says what is wrong."""
        from websockets.exceptions import ConnectionClosed
        from websockets.sync.client import connect

        idle_after(0)
        if self.socket is None:
            self.socket = connect(f"{self.url.rstrip('/')}/ws", open_timeout=SECONDS, proxy=None).__enter__()
        if self in _used:
            _used.remove(self)
        _used.append(self)
        try:
            with suppress(ConnectionClosed):  # why it was closed can still be read
                self.socket.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(self.socket.recv(timeout=SECONDS))
        except ConnectionClosed as problem:
            raise EOFError(f"{self.url}: {problem}") from None
        finally:
            idle_after(IDLE)
        found = answer["data"]
        if answer["type"] == "error" and found.get("code") == FULL:
            raise Full(
                f"{self.url}: no session is free: start the server with more, or set method.tools.env.workers=1 and "
                "dataset.verifier.workers=1"
            )
        if answer["type"] == "error":
            raise RuntimeError(f"{self.url}: {found.get('message')}")
        seen = found["observation"]
        text = json.dumps(seen, sort_keys=True) if self.observation is None else str(seen[self.observation])
        return Seen(text, float(found["reward"] or 0.0), bool(found["done"]))


class Full(RuntimeError):
    """The server has no session left."""


def tasks(side: Side, count: int, seed: int, **env: Any) -> Iterator[Row]:
    """The tasks of a side, one a seed. `env`: the environment's options.

    The first is begun twice. Raises ConfigError if the server cannot be reached, or begins the two differently.
    """
    for number in range(count):
        task = {"seed": FIRST[side] + number}
        question = _opening(task, env)
        if number == 0 and _opening(task, env) != question:
            raise ConfigError(
                f"dataset.env.url={env['url']}: two resets with seed {task['seed']} begin differently, so no episode "
                "can be played again; the server's `reset` has to follow its seed",
                "dataset",
            )
        yield Row(f"openenv-{task['seed']}", question, None, env["url"], side, {"task": task})


def _opening(task: dict[str, Any], env: dict[str, Any]) -> str:
    world = OpenEnv(task, **env)
    try:
        return world.reset().text
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as problem:
        raise ConfigError(f"dataset.env.url={env['url']}: {problem or 'no answer'}", "dataset") from None
    finally:
        world.close()
