"""Episodes of few-shot learning: a support with targets, and a query to predict.

An episode's array has the shape (points, inputs + outputs + 1). Its columns are x, y, and 1 for a point of the support.
For a point of the query, y and the last column are 0. metadata["targets"] has the query's y, shape (query, outputs).

sine: waves with an amplitude in [.1, 5] and a phase in [0, pi], x in [-5, 5] (Finn et al. 2017, arXiv 1703.03400).
glyphs: pictures of 14 x 14 of letters, in the fonts that come with matplotlib; train and held-out letters differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from selfimprove import seeds
from selfimprove.datasets import Size
from selfimprove.errors import ConfigError
from selfimprove.types import Array, Count, NonNegative, Problem

SIDE = 14  # pixels of a glyph's picture
Ways = Annotated[int, Ge(2)]
Made = tuple[np.ndarray, np.ndarray]  # x (points, inputs) and y (points, outputs), the support first


def sine(
    *,
    shots: Count,
    queries: Count,
    noise: NonNegative,
    train_size: Count,
    dev_size: Size = 0,
    heldout_size: Count,
    seed: int,
) -> list[Problem]:
    """Each episode has `shots` + `queries` points of one wave. `noise` is the standard deviation of normal noise in
    y."""

    def draw(rng: np.random.Generator, side: str) -> Made:
        amplitude, phase = rng.uniform(0.1, 5), rng.uniform(0, np.pi)
        x = rng.uniform(-5, 5, size=(shots + queries, 1))
        return x, amplitude * np.sin(x + phase) + noise * rng.normal(size=x.shape)

    return _problems(draw, shots, (train_size, dev_size, heldout_size), seed)


def glyphs(
    *, ways: Ways, shots: Count, queries: Count, train_size: Count, dev_size: Size = 0, heldout_size: Count, seed: int
) -> list[Problem]:
    """Each episode has `ways` letters. Each letter has `shots` pictures in the support and `queries` in the query, all
    of different fonts.

    Raises ConfigError if no letter has so many pictures, or there are fewer letters.
    """
    classes = _classes(shots + queries)
    held = [own for i, own in enumerate(classes) if i % 3 == 2]
    learnt = [own for i, own in enumerate(classes) if i % 3 != 2]
    if ways > len(held):
        raise ConfigError(f"dataset.ways={ways}: there are {len(held)} held-out letters", "dataset.ways")

    def draw(rng: np.random.Generator, side: str) -> Made:
        chosen = rng.permutation(len(learnt if side == "train" else held))[:ways]
        pictures = [(learnt if side == "train" else held)[i] for i in chosen]
        own = [one[rng.permutation(len(one))[: shots + queries]] for one in pictures]
        x = np.concatenate([np.concatenate([one[a:b] for one in own]) for a, b in ((0, shots), (shots, None))])
        y = np.concatenate([np.repeat(np.eye(ways), n, axis=0) for n in (shots, queries)])
        return x, y

    return _problems(draw, ways * shots, (train_size, dev_size, heldout_size), seed)


def _problems(
    draw: Callable[[np.random.Generator, str], Made], shown: int, sizes: tuple[int, int, int], seed: int
) -> list[Problem]:
    """The seed chooses the train episodes; dev and held-out episodes are the same for every seed."""
    found = []
    for side, size in zip(("train", "dev", "test"), sizes, strict=True):
        rng = np.random.default_rng(seeds.derive(seed if side == "train" else 0, "episodes", side))
        found += [_problem(side, number, *draw(rng, side), shown) for number in range(size)]
    return found


def _problem(side: Any, number: int, x: np.ndarray, y: np.ndarray, shown: int) -> Problem:
    support = np.arange(len(x)) < shown
    rows = np.column_stack([x, np.where(support[:, None], y, 0.0), support])
    name = f"{side}-{number}"
    array = Array(rows.shape, tuple(np.float32(rows).flatten().tolist()))
    metadata = {"question": name, "targets": np.float32(y[shown:]).tolist()}
    return Problem(name, name, None, side, metadata, array)


@cache
def _classes(least: int) -> list[np.ndarray]:
    """All pictures of each letter that has at least `least` different ones, shape (pictures, SIDE * SIDE)."""
    found, known = list[np.ndarray](), set[bytes]()
    for letter in _letters():
        own = np.array(list(_pictures(letter)))
        if len(own) >= least and known.isdisjoint(map(bytes, own)):  # letters that look alike in a font: one stays
            found.append(own)
            known |= set(map(bytes, own))
    if not found:
        said = f"a letter has at most {len(_fonts())} pictures, but shots and queries need {least}"
        raise ConfigError(f"dataset.queries: {said}", "dataset.queries")
    return found


def _letters() -> list[str]:
    """Latin, Greek and Cyrillic letters and digits."""
    ranges = [(0x30, 0x3A), (0x41, 0x5B), (0x61, 0x7B), (0x391, 0x3A2), (0x3A3, 0x3AA), (0x3B1, 0x3CA), (0x410, 0x450)]
    return [chr(code) for code in itertools.chain.from_iterable(range(a, b) for a, b in ranges)]


@cache
def _fonts() -> list[Any]:
    import matplotlib
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [f for f in sorted(folder.glob("*.ttf")) if f.name.startswith(("DejaVu", "STIXGeneral"))]
    return [(ImageFont.truetype(str(file), 12), set(FT2Font(str(file)).get_charmap())) for file in files]


def _pictures(letter: str) -> Iterator[np.ndarray]:
    """Different pictures of a letter, one for each font that has it, in grey levels of [0, 1]."""
    from PIL import Image, ImageDraw

    known = set[bytes]()
    for font, letters in _fonts():
        if ord(letter) not in letters:
            continue
        picture = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(picture).text((SIDE / 2, SIDE / 2), letter, fill=255, font=font, anchor="mm")
        pixels = np.asarray(picture, dtype=np.float32).flatten() / 255
        if pixels.tobytes() not in known:
            known.add(pixels.tobytes())
            yield pixels
