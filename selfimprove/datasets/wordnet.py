"""Questions of one to three hops over WordNet's nouns (Miller 1995). The glosses are the documents.

WordNet 3.0 is in Debian's package wordnet-base. A question follows part-of links from a named instance, such as a town:
"Nice is part of something. What is that part of?" Each gloss on the way names the next step, so the corpus holds the
answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Unpack

from selfimprove.datasets import Common, Row, finish
from selfimprove.errors import ConfigError
from selfimprove.types import Problem

FOLDER = "/usr/share/wordnet"
RELATIONS = {"@": "is_a", "@i": "instance_of", "#p": "part_of"}  # WordNet's pointer -> its name here
HOPS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Synset:
    names: list[str]
    gloss: str
    links: list[tuple[str, str]] = field(default_factory=list)  # relation, id of the other synset


@cache
def nouns(path: str = FOLDER) -> dict[str, Synset]:
    """The noun synsets of `path`/data.noun by id, in the file's order. Raises ConfigError if there is no such file.

    The format is that of the manual page wndb(5).
    """
    file = Path(path, "data.noun")
    if not file.is_file():
        raise ConfigError(f"{file}: WordNet is missing: apt-get install wordnet-base", "dataset.path")
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        data, _, gloss = line.partition(" | ")
        parts = data.split()
        words, links = int(parts[3], 16), 4 + 2 * int(parts[3], 16)
        names = [word.replace("_", " ") for word in parts[4 : 4 + 2 * words : 2]]
        pointers = [parts[i : i + 3] for i in range(links + 1, links + 1 + 4 * int(parts[links]), 4)]
        own = [(RELATIONS[kind], other) for kind, other, pos in pointers if kind in RELATIONS and pos == "n"]
        found[parts[0]] = Synset(names, gloss.strip(), own)
    return found


def documents(*, path: str = FOLDER) -> list[str]:
    """The corpus: one passage for each synset, with its names and its gloss."""
    return [f"{', '.join(synset.names)}: {synset.gloss}" for synset in nouns(path).values()]


def load(*, path: str = FOLDER, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The questions, with ids such as "wordnet-2-08939201". Raises ConfigError if WordNet is missing."""
    return finish(_rows(path), name="wordnet", seed=seed, **common)


def _rows(path: str) -> Iterator[Row]:
    synsets = nouns(path)
    for start, synset in synsets.items():
        if "instance_of" not in {relation for relation, _ in synset.links}:
            continue
        steps, at = list[Synset](), synset
        for hops in HOPS:
            wholes = [other for relation, other in at.links if relation == "part_of"]
            if len(wholes) != 1 or not named(synsets[wholes[0]], at.gloss):
                break
            at = synsets[wholes[0]]
            steps.append(at)
            metadata: dict[str, Any] = {
                "hops": hops,
                "sub_answers": [step.names[0] for step in steps],
                "answers": at.names,
            }
            between = ", which is part of something" * (hops - 2)
            question = f"{synset.names[0]} is part of something{between}. What is that part of?"
            if hops == 1:
                question = f"What is {synset.names[0]} part of?"
            yield Row(f"wordnet-{hops}-{start}", question, at.names[0], f"{path}: {start}", None, metadata)


def named(synset: Synset, text: str) -> bool:
    """Whether a text has one of a synset's names in it, as whole words."""
    return any(re.search(rf"\b{re.escape(name)}\b", text) for name in synset.names)
