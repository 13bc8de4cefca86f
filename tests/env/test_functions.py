"""Functions with state: what a call is, and the leaderboard's multi-turn items where its package is installed.

pip install --no-deps bfcl-eval==2026.3.23 && pytest tests/env/test_functions.py
"""

from __future__ import annotations

from typing import Any

import pytest

from selfimprove.env import functions
from selfimprove.env.functions import Functions, called, tasks


class Doors:
    def __init__(self) -> None:
        self.open, self._calls = ["front"], 0

    def shut(self, name: str, gently: bool = False) -> dict[str, Any]:
        self._calls += 1
        self.open.remove(name)
        return {"open": self.open, "gently": gently}

    def count(self) -> int:
        return len(self.open)


TASK = {"requests": ["Shut the front door.", "How many are open?"], "gold": [["shut('front')"], ["count()"]]}


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> Functions:
    monkeypatch.setattr(functions, "objects", lambda task: {"Doors": Doors()})
    world = Functions(TASK)
    assert world.reset().text == "Shut the front door."
    return world


def test_a_call_is_a_name_and_literals_and_nothing_else_is_evaluated() -> None:
    own = {"Doors": Doors()}
    assert called(own, "shut('back')") == "Error during execution: list.remove(x): x not in list"
    assert called(own, " shut(name='front', gently=True)") == '{"open": [], "gently": true}'
    assert called(own, "count()") == "0"
    for text in ("__init__()", "eval('1')", "open('x')"):
        assert called(own, text).startswith("Error: there is no function")
    for text in ("shut(", "Doors.count()", "1", "shut(str(1))", "shut(*[1])", "count() or 1", "(" * 500):
        assert called(own, text) == "Error: an action is a call like name(argument='value'), or done"


def test_each_request_needs_the_gold_state_and_the_gold_results(doors: Functions) -> None:
    for action in ("shut('front')", "done", "count()"):
        assert not doors.step(action).done
    last = doors.step("done")
    assert (last.text, last.reward, last.done) == ("That was the last request.", 1.0, True)
    doors.reset()
    assert doors.step("shut('front', gently=True)").text == '{"open": [], "gently": true}'
    assert doors.step("done").text == "How many are open?"  # nobody says that a result was another
    doors.step("count()")
    assert doors.step("done").reward == 0.0
    doors.reset()
    doors.step("done")  # a request was left undone
    for action in ("shut('front')", "count()"):
        doors.step(action)
    assert doors.step("done").reward == 0.0


def test_the_leaderboards_gold_calls_solve_every_item_and_none_without_them() -> None:
    pytest.importorskip("bfcl_eval")
    rows = [row for side in ("train", "dev", "test") for row in tasks(side, 1000, 0)]
    assert len({row.id for row in rows}) == len(rows) == 200
    for row in rows:
        task = row.metadata["task"]
        world, idle = Functions(task), Functions(task)
        world.reset()
        idle.reset()
        for calls in task["gold"]:
            for call in calls:
                world.step(call)
            last, nothing = world.step("done"), idle.step("done")
        assert (last.reward, last.done, nothing.reward) == (1.0, True, 0.0), row.id
