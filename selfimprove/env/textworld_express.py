"""TextWorld-Express (Jansen and Cote 2023, arXiv 2208.01174): eight games in text, by the package of its authors.

    pip install "selfimprove[textworld_express]" && apt-get install default-jre-headless

Actions are `take coin`, `open fridge`, `move north`, `inventory` and so on. The goals of a game gain a part each, 1 in
all. Games are cookingworld, twc, coin, mapreader, arithmetic, sorting, simonsays and peckingorder, as they are made by
default. A seed makes a game, and its text is the same in each process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from selfimprove.datasets import Row, Side
from selfimprove.env.java import Game, require_java, turns

STEPS = 1_000_000  # the package's own limit, out of the way


def require() -> None:
    """Raises ConfigError if the package or Java is missing."""
    require_java("textworld_express", "textworld_express")


def begin() -> None:
    """Start the server."""
    require()
    server()


@cache
def server() -> Any:
    from textworld_express import TextWorldExpressEnv

    return TextWorldExpressEnv(envStepLimit=STEPS)


class Express(Game):
    """One task: {"game": its name, "fold": train, dev or test, "seed": what makes it}."""

    def open(self) -> str:
        game = server()
        game.load(gameName=self.task["game"], gameParams="")
        seen, _ = game.reset(seed=self.task["seed"], gameFold=self.task["fold"], generateGoldPath=False)
        return f"{game.getTaskDescription()}\n\n{seen}"

    def act(self, action: str) -> tuple[str, float, bool]:
        text, _, over, more = server().step(action)
        return str(text), max(0.0, float(more["score"])), bool(over)


def tasks(side: Side, count: int, seed: int) -> Iterator[Row]:
    """Up to `count` tasks of a side, the eight games in turn, in the authors' split. The seed changes nothing."""
    game = server()
    found: dict[str, list[int]] = {}
    for name in game.getGameNames():
        game.load(gameName=name, gameParams="")
        found[name] = list(getattr(game, f"getValidSeeds{side.capitalize()}")())
    for name, number in turns(found, count):
        task = {"game": name, "fold": side, "seed": number}
        yield Row(f"express-{name}-{number}", Express(task).reset().text, None, name, side, {"task": task})
