"""Questions of one to three hops over a small made-up world. Its facts are documents: "The boss of 471 is 208."

The world has robots with numbers. Each has one boss, aide, pal and heir. "Who is the boss of the pal of 471?" needs two
documents, one after the other. The robots of a fact are all of one side (train, dev or held out). So training problems
teach no fact of the held-out side. The world is the same for every seed.

`metadata["hops"]` is the number of documents that a question needs, and `metadata["facts"]` has these documents in
order. `metadata["sub_answers"]` has the robot that each names. `metadata["missing"]` is the number that the corpus
lacks.
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
from selfimprove.types import Count, Problem, Share

RELATIONS = ("boss", "aide", "pal", "heir")
ROBOTS: dict[Side, int] = {"train": 300, "dev": 60, "test": 100}
HOPS = (1, 2, 3)
_QUESTION = re.compile(r"Who is ((?:the [a-z]+ of )+)(\d{3})\?")
FACT = re.compile(r"The ([a-z]+) of (\d{3}) is (\d{3})\.")

Fact = tuple[str, str, str]  # relation, robot, the robot that it names


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
    """Whether a corpus lacks a fact if a share of all facts is removed. It is always the same facts."""
    place = hashlib.blake2b(sentence(fact).encode(), digest_size=6).digest()
    return int.from_bytes(place, "big") / 2**48 < share


def documents(*, removed: Share = 0.0) -> list[str]:
    """The corpus: one sentence for each fact, of all sides. A share `removed` of the facts is in no document."""
    facts = [(relation, robot, other) for own in world().values() for (relation, robot), other in own.items()]
    return [sentence(fact) for fact in facts if not is_removed(fact, removed)]


def triples(*, removed: Share = 0.0) -> list[tuple[str, str, str]]:
    """The facts as a knowledge graph: (robot, relation, robot), without a share `removed` of them."""
    facts = [(relation, robot, other) for own in world().values() for (relation, robot), other in own.items()]
    return [(fact[1], fact[0], fact[2]) for fact in facts if not is_removed(fact, removed)]


def known(*, count: Count) -> list[tuple[str, str, str]]:
    """`count` training questions with their robot and their answer, the same for every seed of a run."""
    found = load(seed=0, prompt="{question}", train_size=count, heldout_size=1)
    questions = [(str(p.metadata["question"]), str(p.gold)) for p in found if p.split == "train"]
    return [(question, read(question)[1], answer) for question, answer in questions]


def load(*, removed: Share = 0.0, seed: int, **options: Unpack[Generated]) -> list[Problem]:
    """Different questions of one, two and three hops, in equal parts.

    `removed` is that of the corpus. Raises ConfigError if there are too few questions.
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
    """The question for the last robot of a path of relations, which is in the order of look-up."""
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


def read(question: str) -> tuple[list[str], str]:
    """The relations of a question in the order of look-up, and the robot that it starts from.

    Raises ValueError for a question of another form.
    """
    match = _QUESTION.search(question)
    if match is None:
        raise ValueError(f"scripted teachers read only questions of dataset=docqa, not {question[:60]!r}")
    return list(reversed(re.findall(r"the ([a-z]+) of", match[1]))), match[2]
