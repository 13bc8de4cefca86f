"""Questions of one to three hops over a small made-up world, whose facts are documents: "The boss of 471 is 208."

In it live robots, which have numbers. Each has one boss, aide, pal and heir. "Who is the boss of the pal of 471?" needs
two documents, one after the other. A fact is about robots of one side alone (train, dev or held out), so nothing of the
held-out world can be learnt by heart from training problems. The world is the same for every seed.

`metadata["hops"]` is the number of documents that a question needs, `metadata["facts"]` are these documents, in order,
`metadata["sub_answers"]` the robot that each names, and `metadata["missing"]` how many of them the corpus lacks.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Unpack

from selfimprove import seeds
from selfimprove.datasets import Generated, Row, Side, finish, sizes_of
from selfimprove.errors import ConfigError
from selfimprove.types import Message, Problem, Share

NEEDS = ("facts",)  # of a data set, for the teacher: questions of this one

RELATIONS = ("boss", "aide", "pal", "heir")
ROBOTS: dict[Side, int] = {"train": 300, "dev": 60, "test": 100}
HOPS = (1, 2, 3)
_QUESTION = re.compile(r"Who is ((?:the [a-z]+ of )+)(\d{3})\?")
_FACT = re.compile(r"The ([a-z]+) of (\d{3}) is (\d{3})\.")
NOTHING = "No information."

Fact = tuple[str, str, str]  # relation, of whom, who


def sentence(fact: Fact) -> str:
    relation, robot, other = fact
    return f"The {relation} of {robot} is {other}."


@cache
def world() -> dict[Side, dict[tuple[str, str], str]]:
    """Each side's facts: (relation, robot) -> robot."""
    rng = random.Random(seeds.derive(0, "docqa", "world"))
    names = [str(number) for number in range(100, 1000)]
    rng.shuffle(names)
    found: dict[Side, dict[tuple[str, str], str]] = {}
    for side, count in ROBOTS.items():
        own, names = names[:count], names[count:]
        found[side] = {(r, p): rng.choice([q for q in own if q != p]) for p in own for r in RELATIONS}
    return found


def is_removed(fact: Fact, share: float) -> bool:
    """Whether a corpus lacks a fact of which a share is removed: the same facts every time."""
    place = hashlib.blake2b(sentence(fact).encode(), digest_size=6).digest()
    return int.from_bytes(place, "big") / 2**48 < share


def documents(*, removed: Share = 0.0) -> list[str]:
    """The corpus: a sentence a fact, of all sides. A share `removed` of the facts stands in no document."""
    facts = [(relation, robot, other) for own in world().values() for (relation, robot), other in own.items()]
    return [sentence(fact) for fact in facts if not is_removed(fact, removed)]


def load(*, removed: Share = 0.0, seed: int, **options: Unpack[Generated]) -> list[Problem]:
    """Questions of one to three hops, in equal parts, no two alike.

    `removed` is that of the corpus. Raises ConfigError where there are too few questions.
    """
    rows: list[Row] = []
    for side, size in sizes_of(options).items():
        rng = random.Random(seeds.derive(seed if side == "train" else 0, "docqa", side))
        robots = sorted({robot for _, robot in world()[side]})
        found: dict[str, Row] = {}
        misses = 0
        while len(found) < size and misses < 2000:
            path = rng.choices(RELATIONS, k=HOPS[len(found) % len(HOPS)])
            row = _row(side, rng.choice(robots), path, removed)
            misses = misses + 1 if row.id in found else 0
            found[row.id] = row
        if len(found) < size:
            key = f"dataset.{'heldout' if side == 'test' else side}_size"
            raise ConfigError(f"{key}={size}: there are only {len(found)} such questions", key)
        rows += found.values()
    return finish(rows, name="docqa", seed=seed, **options)


def _row(side: Side, robot: str, path: Sequence[str], removed: float) -> Row:
    """The question for the last robot of a path of relations, which are named in the order they are looked up."""
    facts = list[Fact]()
    at = robot
    for relation in path:
        facts.append((relation, at, world()[side][relation, at]))
        at = facts[-1][2]
    question = f"Who is {''.join(f'the {relation} of ' for relation in reversed(path))}{robot}?"
    metadata = {
        "hops": len(path),
        "facts": [sentence(fact) for fact in facts],
        "sub_answers": [fact[2] for fact in facts],
        "missing": sum(is_removed(fact, removed) for fact in facts),
    }
    return Row(f"docqa-{'-'.join([*path, robot])}", question, at, question, side, metadata)


# The teacher


class Teacher:
    """Answers a question by asking for one document after the other: the planner of `selfimprove.methods.auto_rag`.

    It stands in the place of a strong model. It is shown a question, and then its own turns with what was retrieved.
    What it draws depends on what it is shown and on the seed.
    """

    def __init__(self, wrong_queries: float, misreads: float) -> None:
        self.wrong_queries, self.misreads = wrong_queries, misreads

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        """The next turn. Raises ValueError for a question of another data set."""
        question, *told = (message["content"] for message in chat if message["role"] != "system")
        path, at = read(question)
        rng = random.Random(f"{seed}/{question}/{len(told)}")
        for fact in (fact for text in told[::2] for fact in _FACT.findall(text)):  # what it has read out so far
            path, at = path[1:], fact[2]
        documents = [_FACT.findall(text) for text in told[1::2]]
        there = {fact[:2]: fact for facts in documents for fact in facts}
        if documents and documents[-1] and rng.random() < self.misreads:
            there[path[0], at] = (path[0], at, rng.choice(documents[-1])[2])
        lines = list[str]()
        while path and (path[0], at) in there:
            lines.append(sentence(fact := there[path.pop(0), at]))
            at = fact[2]
        if not path:
            return "\n".join([*lines, f"Final Answer: {at}"])
        query = self.asked(rng, (path[0], at))
        if lines or not documents:
            return "\n".join([*lines, f"Query: {query}"])
        return f"{NOTHING}\nRefined Query: {query}"

    def asked(self, rng: random.Random, wanted: tuple[str, str]) -> str:
        """A query for what is wanted, or for another relation."""
        relation, robot = wanted
        if rng.random() < self.wrong_queries:
            relation = rng.choice([other for other in RELATIONS if other != relation])
        return f"{relation} of {robot}"


def teacher(*, wrong_queries: Share, misreads: Share) -> Teacher:
    """wrong_queries: the share of queries for another relation; misreads: the share of turns that take for an answer
    whatever is named in some document."""
    return Teacher(wrong_queries, misreads)


def read(question: str) -> tuple[list[str], str]:
    """The relations of a question in the order they are looked up, and the robot that it starts from."""
    match = _QUESTION.search(question)
    if match is None:
        raise ValueError(f"the scripted teacher reads questions of dataset=docqa alone, not {question[:60]!r}")
    return list(reversed(re.findall(r"the ([a-z]+) of", match[1]))), match[2]
