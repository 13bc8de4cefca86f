"""ScienceWorld (Wang et al. 2022, arXiv 2203.07540): 30 kinds of school experiments, by the package of its authors.

    pip install "selfimprove[scienceworld]" && apt-get install default-jre-headless

Actions are `open door to kitchen`, `pick up thermometer`, `focus on substance in metal pot` and so on. The goals of a
task gain a part each, 1 in all; a wrong focus ends the episode. The server is called directly: the package's own `step`
asks for all valid actions each time, which takes ten times as long. The environment's `wait` is not to be had, since
that word does nothing in all environments here; `wait1` is.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from selfimprove.datasets import Row, Side
from selfimprove.env.java import Game, require_java, turns

EASY = "easy"  # the simplification that papers use: doors are open, and objects can be reached by name
STEPS = 1_000_000  # the package's own limit, out of the way


def require() -> None:
    """Raises ConfigError if the package or Java is missing."""
    require_java("scienceworld", "scienceworld")


def begin() -> None:
    """Start the server and load a first task, which takes as long again."""
    require()
    Lab({"task": server().get_task_names()[0], "variation": 0}).reset()


@cache
def server() -> Any:
    from scienceworld import ScienceWorldEnv

    return ScienceWorldEnv("", envStepLimit=STEPS)


class Lab(Game):
    """One task: {"task": the kind of experiment, "variation": its number}."""

    def open(self) -> str:
        game = server()
        game.load(self.task["task"], self.task["variation"], EASY, generateGoldPath=False)
        seen, _ = game.reset()
        return f"{game.get_task_description()}\n\n{seen}"

    def act(self, action: str) -> tuple[str, float, bool]:
        game = server().server
        text = str(game.step(action))
        return text, max(0.0, float(game.getScore())), bool(game.getCompleted())


def tasks(side: Side, count: int, seed: int) -> Iterator[Row]:
    """Up to `count` tasks of a side, the 30 kinds in turn, in the authors' split. The seed changes nothing."""
    game = server()
    found: dict[str, list[int]] = {}
    for name in game.get_task_names():
        game.load(name, 0, EASY, generateGoldPath=False)
        found[name] = list(getattr(game, f"get_variations_{side}")())
    for name, number in turns(found, count):
        task = {"task": name, "variation": number}
        yield Row(f"scienceworld-{name}-{number}", Lab(task).reset().text, None, name, side, {"task": task})
