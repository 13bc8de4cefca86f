"""The embedded environment: make a thing from raw things, by a small book of recipes. It needs no download.

It is a small TextCraft (Prasad et al. 2023, arXiv 2311.05772). `get ore` gives a raw thing. `craft bar` makes a thing
of two others, which are used up. The task names the goal, the things that are there at first, and some recipes: all
that are needed and one that is not. The goal gives a reward of 1 and ends the episode. Nothing in an episode is random.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from selfimprove import seeds
from selfimprove.datasets import Row, Side, distinct
from selfimprove.env import WAIT, Seen

RAW = ("log", "ore", "wax", "hay", "ice", "oil", "mud", "ash")
BOOK = {
    "bar": ("ore", "ash"),
    "rod": ("log", "wax"),
    "jar": ("mud", "ice"),
    "rug": ("hay", "wax"),
    "ink": ("oil", "ash"),
    "pot": ("mud", "ash"),
    "net": ("hay", "oil"),
    "lid": ("ore", "ice"),
    "axe": ("bar", "log"),
    "mop": ("rod", "hay"),
    "map": ("ink", "hay"),
    "bed": ("rug", "log"),
    "lamp": ("jar", "oil"),
    "trap": ("net", "log"),
    "stew": ("pot", "ice"),
    "seal": ("lid", "wax"),
    "saw": ("bar", "rod"),
    "pen": ("ink", "rod"),
    "oven": ("pot", "lid"),
    "tent": ("rug", "net"),
}
_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


class Craft:
    """One task: {"goal": a thing, "have": the things that are there at first}."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.goal, self.first = task["goal"], task["have"]
        self.reset()

    def reset(self) -> Seen:
        self.have = Counter[str](self.first)
        return Seen(f"Make {self.goal}.\n{_listed(self.have)}")

    def step(self, action: str) -> Seen:
        verb, _, thing = action.partition(" ")
        if action == "inventory":
            return Seen(_listed(self.have))
        if verb == "get" and thing in RAW:
            self.have[thing] += 1
            return Seen(f"Got {thing}.")
        if verb == "craft" and thing in BOOK:
            lacking = next((part for part in BOOK[thing] if not self.have[part]), None)
            if lacking:
                return Seen(f"You lack {lacking}.")
            self.have -= Counter(BOOK[thing])
            self.have[thing] += 1
            return Seen(f"Made {thing}.", float(thing == self.goal), thing == self.goal)
        return Seen("That cannot be done.")


def _listed(have: Counter[str]) -> str:
    return f"You have {', '.join(have.elements()) or 'nothing'}."


def plan(goal: str, have: Iterable[str]) -> list[tuple[str, str]]:
    """The shortest list of actions that makes the goal, each with the thing that it serves."""
    left, steps = Counter(have), list[tuple[str, str]]()

    def obtain(thing: str, target: str) -> None:
        if left[thing]:
            left[thing] -= 1
        elif thing in RAW:
            steps.append((target, f"get {thing}"))
        else:
            for part in BOOK[thing]:
                obtain(part, thing)
            steps.append((target, f"craft {thing}"))

    for part in BOOK[goal]:
        obtain(part, goal)
    return [*steps, (goal, f"craft {goal}")]


def tasks(side: Side, count: int, seed: int) -> Iterator[Row]:
    """`count` different tasks of a side, or as many as are found. The seed chooses only train tasks.

    A hash of the task decides its side: a fifth is held out, and a fifth is for dev.
    """
    rng = random.Random(seeds.derive(seed if side == "train" else 0, "craft", side))
    return distinct(partial(_drawn, rng), side, count)


def _drawn(rng: random.Random) -> Row:
    goal = rng.choice(list(BOOK))
    have = sorted(rng.sample([*RAW, *BOOK], rng.choice([0, 1, 2])))
    have = [thing for thing in have if thing != goal]
    needed = [goal, *(part for part in BOOK[goal] if part in BOOK)]
    shown = [*needed, rng.choice([thing for thing in BOOK if thing not in needed])]
    rng.shuffle(shown)
    recipes = [f"{thing} = {BOOK[thing][0]} + {BOOK[thing][1]}" for thing in shown]
    task = {"goal": goal, "have": have}
    question = "\n".join([Craft(task).reset().text, *recipes])
    mark = hashlib.blake2b(f"{goal} {have}".encode(), digest_size=6).hexdigest()
    gold = "\n".join(written(*step) for step in plan(goal, have))
    return Row(f"craft-{mark}", question, gold, mark, _SIDES.get(int(mark, 16) % 5, "train"), {"task": task})


def written(thing: str, action: str) -> str:
    """A step as text: a thought, then the action."""
    return f"For {thing}.\nAction: {action}"


def expert(task: dict[str, Any], actions: Iterable[str]) -> str:
    """The text of the next step on the shortest way, after these actions."""
    world = _state(task, actions)
    return written(*plan(world.goal, world.have.elements())[0])


def worth(task: dict[str, Any], actions: Sequence[str]) -> str:
    """The value of the last action: `good` if it brings the goal nearer, `uncertain` if it does nothing, else `bad`."""
    if actions[-1] in (WAIT, "inventory"):
        return "uncertain"
    return "good" if _left(task, actions) < _left(task, actions[:-1]) else "bad"


def wrong(task: dict[str, Any], actions: Iterable[str], rng: random.Random) -> str:
    """A bad action: it gets a raw thing without use, or tries a thing that cannot be made yet."""
    choices = [*(f"get {thing}" for thing in RAW), *(f"craft {thing}" for thing in BOOK)]
    rng.shuffle(choices)
    return next(action for action in choices if worth(task, [*actions, action]) == "bad")


def _state(task: dict[str, Any], actions: Iterable[str]) -> Craft:
    world = Craft(task)
    for action in actions:
        world.step(action)
    return world


def _left(task: dict[str, Any], actions: Iterable[str]) -> int:
    """The number of actions still needed; 0 if the goal is there."""
    world = _state(task, actions)
    return 0 if world.have[world.goal] else len(plan(world.goal, world.have.elements()))
