"""Episodes of an OpenEnv server: a stand-in that speaks its messages and has one session."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

websockets = pytest.importorskip("websockets.sync.server")

from selfimprove.datasets.envs import load  # noqa: E402
from selfimprove.env import openenv  # noqa: E402
from selfimprove.env.openenv import OpenEnv  # noqa: E402
from selfimprove.env.worlds import play, worlds  # noqa: E402
from selfimprove.errors import ConfigError  # noqa: E402
from selfimprove.types import Problem  # noqa: E402

TARGET = "selfimprove.env.openenv.OpenEnv"
SIZES: Any = {"train_size": 2, "dev_size": 0, "heldout_size": 2, "system": None, "prompt": "{question}", "shots": []}


class Server:
    """Counts the says of a session, and begins with the seed. `fickle`: each reset begins in another way."""

    def __init__(self) -> None:
        self.free = threading.Semaphore(1)
        self.resets, self.fickle = 0, False
        self.server = websockets.serve(self.session, "127.0.0.1", 0)
        self.url = f"ws://127.0.0.1:{self.server.socket.getsockname()[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def session(self, socket: Any) -> None:
        if not self.free.acquire(timeout=0.2):
            socket.send(json.dumps({"type": "error", "data": {"message": "full", "code": openenv.FULL}}))
            return
        try:
            for message in socket:
                socket.send(json.dumps(self.answer(**json.loads(message))))
        finally:
            self.free.release()

    def answer(self, type: str, data: dict[str, Any]) -> dict[str, Any]:
        if type == "reset":
            self.resets += 1
            self.said = [f"seed {data['seed']}{f' {self.resets}' if self.fickle else ''}"]
        elif data["message"] == "break":
            return {"type": "error", "data": {"message": "broken", "code": "EXECUTION_ERROR"}}
        else:
            self.said.append(data["message"])
        done = self.said[-1] == "end"
        shown = {"observation": {"text": ", ".join(self.said)}, "reward": 1.0 if done else None, "done": done}
        return {"type": "observation", "data": shown}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    for world in list(openenv._used):
        world.close()
    found.server.shutdown()


def test_two_episodes_share_one_session(server: Server) -> None:
    one, other = (OpenEnv({"seed": seed}, url=server.url, observation="text") for seed in (1, 2))
    assert one.reset().text == "seed 1"
    assert one.step("a").text == "seed 1, a"
    assert other.reset().text == "seed 2"
    assert one.step("b").text == "seed 1, a, b"  # played again in a new session
    assert other.step("end").reward == 1.0
    assert one.step("c").text == "seed 1, a, b, c"
    one.socket.close()  # as after a server's time-out
    assert one.step("d").text == "seed 1, a, b, c, d"


def test_tasks_are_resets_and_an_episode_is_graded_by_playing_it(server: Server) -> None:
    problems = load(env={"_target_": TARGET, "url": server.url, "observation": "text"}, seed=0, **SIZES)
    assert {(p.metadata["task"]["seed"], p.split) for p in problems} == {
        (0, "train"),
        (1, "train"),
        (2_000_000, "test"),
        (2_000_001, "test"),
    }
    assert {p.prompt[-1]["content"] for p in problems} >= {"seed 0", "seed 2000001"}
    env = {"_target_": TARGET, "url": server.url}
    task = {"task": {"seed": 1}}
    found = play(json.dumps(["a", "end", "b"]), None, task, env=env, chars=100)
    assert (found.status, found.reward, found.extracted) == ("correct", 1.0, '{"text": "seed 1, a, end"}')
    with pytest.raises(RuntimeError, match="broken"):
        play(json.dumps(["break"]), None, task, env=env, chars=100)


def test_an_idle_process_leaves_its_session_to_the_next(server: Server) -> None:
    """As when episodes are graded while the solver's processes are still there."""
    env = {"_target_": TARGET, "url": server.url, "observation": "text"}
    problem = Problem("p", "", metadata={"task": {"seed": 1}})

    async def run() -> list[str]:
        opened = [worlds(env=env, workers=1) for _ in range(2)]
        try:
            return [(await one.play(problem, ["a", "b"]))[0].text for one in (*opened, opened[0])]
        finally:
            for one in opened:
                one.close()

    assert asyncio.run(run()) == ["seed 1, a, b"] * 3


def test_a_server_that_is_away_or_does_not_follow_its_seed_is_named(server: Server) -> None:
    server.fickle = True
    with pytest.raises(ConfigError, match="two resets with seed 0 begin differently"):
        load(env={"_target_": TARGET, "url": server.url}, seed=0, **SIZES)
    with pytest.raises(ConfigError, match=r"dataset.env.url=ws://127.0.0.1:9: .*refused"):
        load(env={"_target_": TARGET, "url": "ws://127.0.0.1:9"}, seed=0, **SIZES)


def test_an_action_that_is_no_json_is_told_so(server: Server) -> None:
    world = OpenEnv({"seed": 1}, url=server.url, action=None, observation="text")
    world.reset()
    assert world.step("get log").text == "An action has to be JSON."
    assert world.step('{"message": "a"}').text == "seed 1, a"
