"""Make a thing from raw things, by a small book of recipes: the embedded environment. It needs no download.

It is TextCraft (Prasad et al. 2023, arXiv 2311.05772) in small: `get ore` gives a raw thing, and `craft bar` makes a
thing of two others, which are used up. The task names the goal, what is there at first, and some of the recipes: those
that are needed and one that is not. To make the goal gains 1 and ends the episode. Nothing is drawn at random in it.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from selfimprove import seeds
from selfimprove.datasets import Row, Side
from selfimprove.env import WAIT, Seen, action_of
from selfimprove.types import Message

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
    """One task: {"goal": a thing, "have": things that are there at first}."""

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
    """The fewest actions that make the goal, each with the thing that it is done for."""
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
    """`count` different tasks of a side, or as many as are found. The seed chooses the train tasks alone.

    A fifth of all is held out and a fifth is for dev, by a hash of the task.
    """
    rng = random.Random(seeds.derive(seed if side == "train" else 0, "craft", side))
    known, misses = set[str](), 0
    while len(known) < count and misses < 2000:
        row, misses = _drawn(rng), misses + 1
        if row.side == side and row.id not in known:
            known.add(row.id)
            misses = 0
            yield row


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
    """A step as the teacher says it: a thought, then the action."""
    return f"For {thing}.\nAction: {action}"


def wrong(task: dict[str, Any], actions: Iterable[str], rng: random.Random) -> str:
    """An action that brings the goal no nearer: a raw thing that is of no use, or a thing that cannot be made yet."""
    before = _state(task, actions)
    choices = [*(f"get {thing}" for thing in RAW), *(f"craft {thing}" for thing in BOOK)]
    rng.shuffle(choices)
    left = len(plan(before.goal, before.have.elements()))
    return next(action for action in choices if _left(task, [*actions, action]) >= left)


def _state(task: dict[str, Any], actions: Iterable[str]) -> Craft:
    world = Craft(task)
    for action in actions:
        world.step(action)
    return world


def _left(task: dict[str, Any], actions: Iterable[str]) -> int:
    """How many actions are still needed; 0 where the goal is there."""
    world = _state(task, actions)
    return 0 if world.have[world.goal] else len(plan(world.goal, world.have.elements()))


class Teacher:
    """Answers a chat about a task: with the next step, or, where it is asked a question, with what the last was worth.

    A step brings the goal nearer at temperature 0. At another temperature T it is a wrong one with probability T / 2.
    """

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        """The next message; a last message that ends with "?" asks how good the action before it was."""
        task = read(chat[0]["content"])
        said = [action_of(message["content"]) or "" for message in chat if message["role"] == "assistant"]
        done = [action for action in said if action != WAIT]
        if chat[-1]["content"].endswith("?"):
            if said[-1] in (WAIT, "inventory"):
                return "uncertain"
            return "good" if _left(task, done) < _left(task, done[:-1]) else "bad"
        world, rng = _state(task, done), random.Random(f"{seed}/{chat[0]['content']}/{len(said)}")
        (thing, action), *_ = plan(world.goal, world.have.elements())
        return written(thing, wrong(task, done, rng) if rng.random() < temperature / 2 else action)


def teacher() -> Teacher:
    """It knows the book, and reads prompts of dataset=craft alone."""
    return Teacher()


def read(question: str) -> dict[str, Any]:
    """The task that a prompt of this environment tells. Raises ValueError for another prompt."""
    _, made, rest = question.partition("Make ")
    goal, _, rest = rest.partition(".\nYou have ")
    if not made or goal not in BOOK:
        raise ValueError(f"the scripted teacher reads prompts of dataset=craft alone, not {question[:60]!r}")
    have = rest.partition(".")[0]
    return {"goal": goal, "have": [] if have == "nothing" else have.split(", ")}
