"""The real ScienceWorld and TextWorld-Express; skipped where a package or Java is missing.

pip install "selfimprove[scienceworld,textworld_express]" && pytest tests/env/test_java.py
"""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from selfimprove.env.java import Game, turns
from selfimprove.env.worlds import worlds
from selfimprove.types import Problem

JAVA = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


class Counted(Game):
    """A server that plays one game: it counts the actions since the last opening."""

    opened, acted = 0, 0

    def open(self) -> str:
        Counted.opened, Counted.acted = Counted.opened + 1, 0
        return self.task["name"]

    def act(self, action: str) -> tuple[str, float, bool]:
        Counted.acted += 1
        return f"{action} {Counted.acted}", Counted.acted / 4, Counted.acted == 4


def test_games_of_one_server_take_turns_and_are_played_again() -> None:
    one, other = Counted({"name": "one"}), Counted({"name": "other"})
    assert one.reset().text == "one"
    assert (one.step("a").text, one.step("b").text) == ("a 1", "b 2")
    assert other.reset().text == "other"
    assert other.step("c").text == "c 1"
    seen = one.step("d")  # behind a and b
    assert (seen.text, seen.reward, seen.done) == ("d 3", 0.25, False)
    assert one.step("e").done
    assert Counted.opened == 3


def test_kinds_take_turns_until_none_has_any_left() -> None:
    assert list(turns({"a": [1, 2, 3], "b": [7]}, 9)) == [("a", 1), ("b", 7), ("a", 2), ("a", 3)]
    assert list(turns({"a": [1, 2], "b": [7]}, 2)) == [("a", 1), ("b", 7)]


@JAVA
@pytest.mark.slow
def test_scienceworlds_gold_path_is_right_and_is_replayed_among_others() -> None:
    pytest.importorskip("scienceworld")
    from selfimprove.env.scienceworld import EASY, Lab, server, tasks

    (row,) = [r for r in tasks("train", 8, 0) if r.id.startswith("scienceworld-find-living-thing")]
    game = server()
    game.load(row.metadata["task"]["task"], row.metadata["task"]["variation"], EASY, generateGoldPath=True)
    path = list(game.get_gold_action_sequence())
    both(Lab, row.metadata["task"], path)


@JAVA
@pytest.mark.slow
def test_an_express_gold_path_is_right_and_is_replayed_among_others() -> None:
    pytest.importorskip("textworld_express")
    from selfimprove.env.textworld_express import Express, server, tasks

    (row,) = [r for r in tasks("test", 8, 0) if r.id.startswith("express-mapreader")]
    task, game = row.metadata["task"], server()
    game.load(gameName=task["game"], gameParams="")
    game.reset(seed=task["seed"], gameFold=task["fold"], generateGoldPath=True)
    both(Express, task, list(game.getGoldActionSequence()))


def both(kind: type[Game], task: dict[str, object], path: list[str]) -> None:
    """Two episodes of a task, step by step in turn in one process: both reach the goal, and not before the end."""
    problem = Problem("p", "", metadata={"task": task})

    async def run() -> None:
        opened = worlds(env={"_target_": f"{kind.__module__}.{kind.__name__}"}, workers=1, seconds=60.0)
        try:
            one, other = opened.start(problem), opened.start(problem)
            for action in path:
                seen = await asyncio.gather(one.step(action), other.step(action))
                assert json.dumps(seen[0].text) == json.dumps(seen[1].text)
            assert one.reward == other.reward == pytest.approx(1.0)
            assert seen[0].done
        finally:
            opened.close()

    asyncio.run(run())
