"""Instructions to write about two or three topics, within a word limit, in a small language with an exact grammar.

"Write about animals, tools and plants. Use about 40 words." A text has one sentence a line: "The wolf waits quietly."
It follows the grammar of `sentence`. Each sentence must be about a thing of one of the topics. So a text of any length
can be right, and a program can check it.

A hash of the topics decides whether an instruction is for training, for dev or held out. Only held-out and dev
instructions have a limit.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from typing import Unpack

from selfimprove import seeds
from selfimprove.datasets import Generated, Row, Side, finish, lengths, sizes_of
from selfimprove.errors import ConfigError
from selfimprove.types import Count, Problem

# fmt: off
TOPICS = {
    "animals": ["wolf", "goat", "frog", "crow", "bear", "fox", "hen", "owl"],
    "tools": ["hammer", "saw", "drill", "axe", "ladder", "shovel", "knife", "brush"],
    "plants": ["rose", "oak", "fern", "moss", "lily", "pine", "vine", "grass"],
    "people": ["baker", "miller", "sailor", "farmer", "doctor", "painter", "king", "singer"],
    "foods": ["bread", "soup", "cake", "cheese", "apple", "rice", "honey", "salad"],
    "buildings": ["tower", "barn", "castle", "school", "church", "mill", "shop", "station"],
    "vehicles": ["train", "boat", "truck", "sled", "wagon", "plane", "bus", "ferry"],
    "clothes": ["coat", "hat", "shoe", "scarf", "glove", "shirt", "belt", "sock"],
    "weather": ["storm", "rain", "snow", "wind", "fog", "cloud", "sun", "frost"],
    "rooms": ["kitchen", "cellar", "attic", "hall", "library", "bedroom", "office", "garage"],
    "music": ["drum", "flute", "violin", "piano", "trumpet", "harp", "choir", "bell"],
    "waters": ["river", "lake", "pond", "ocean", "stream", "well", "bay", "spring"],
}
VERBS = [
    "waits", "moves", "changes", "stays", "returns", "helps", "rests", "shines", "works", "falls", "grows", "turns",
]
MANNERS = [
    "quietly", "slowly", "often", "again", "today", "alone", "early", "gently", "nearby", "together",
]
# fmt: on

_TOPIC, _VERB, _MANNER = (f"(?:{'|'.join(words)})" for words in (TOPICS, VERBS, MANNERS))
_SENTENCE = re.compile(rf"The (?P<thing>[a-z]+) {_VERB} {_MANNER}\.")
_INSTRUCTION = re.compile(rf"Write about {_TOPIC}(?:, {_TOPIC})? and {_TOPIC}\.")
_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


def instruction(topics: Sequence[str]) -> str:
    """The instruction to write about these topics."""
    return f"Write about {', '.join(topics[:-1])} and {topics[-1]}."


def side(topics: Sequence[str]) -> Side:
    """The side of a set of topics, whatever their order: a fifth of all sets is held out, a fifth is for dev."""
    return _SIDES.get(int(hashlib.blake2b(" ".join(sorted(topics)).encode()).hexdigest(), 16) % 5, "train")


def topics_of(question: str) -> list[str]:
    """The topics of an instruction; none if it does not follow this grammar."""
    match = _INSTRUCTION.match(question)
    return re.findall(rf"\b{_TOPIC}\b", match[0]) if match else []


def valid(text: str, question: str) -> list[bool]:
    """For each line, whether it is a sentence of the grammar about one of the topics; [False] for an empty text."""
    things = {thing for topic in topics_of(question) for thing in TOPICS[topic]}
    lines = (_SENTENCE.fullmatch(line) for line in text.strip().split("\n"))
    return [line is not None and line["thing"] in things for line in lines]


def sentence(rng: random.Random, topics: Sequence[str]) -> str:
    """A random sentence about a thing of one of these topics."""
    return f"The {rng.choice(TOPICS[rng.choice(topics)])} {rng.choice(VERBS)} {rng.choice(MANNERS)}."


def load(*, words: tuple[Count, Count], unit: Count, seed: int, **options: Unpack[Generated]) -> list[Problem]:
    """Instructions, no two alike on a side.

    `words`: the least and the greatest number of words that dev and held-out problems ask for, in multiples of `unit`.
    Raises ConfigError if a size is too large, or no multiple is within the bounds.
    """
    wanted = range(-(-words[0] // unit) * unit, words[1] + 1, unit)
    if not wanted:
        raise ConfigError(
            f"dataset.words: [{words[0]}, {words[1]}] holds no multiple of dataset.unit={unit}", "dataset.words"
        )
    rows: list[Row] = []
    for where, size in sizes_of(options).items():
        rng = random.Random(seeds.derive(seed if where == "train" else 0, "outline", where))
        distinct: dict[str, Row] = {}
        misses = 0
        while len(distinct) < size and misses < 2000:
            topics = rng.sample(list(TOPICS), rng.choice((2, 3)))
            limit = None if where == "train" else lengths.drawn(rng, rng.choice(wanted), unit)
            row = _row(topics, limit)
            misses += 1
            if row.side == where and row.id not in distinct:
                distinct[row.id], misses = row, 0
        if len(distinct) < size:
            key = f"dataset.{'heldout' if where == 'test' else where}_size"
            raise ConfigError(f"{key}={size}: there are only {len(distinct)} such instructions", key)
        rows += distinct.values()
    return finish(rows, name="outline", seed=seed, **options)


def _row(topics: Sequence[str], limit: lengths.Limit | None) -> Row:
    question = instruction(topics) + (f" {lengths.asked(limit)}" if limit else "")
    name = f"outline-{hashlib.blake2b(question.encode(), digest_size=6).hexdigest()}"
    metadata = {"limit": limit, "kind": limit["kind"]} if limit else {}
    return Row(name, question, None, name, side(topics), metadata)
