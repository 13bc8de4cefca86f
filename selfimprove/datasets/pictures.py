"""Streams of picture classification. A task is some classes; all its pictures may be turned or inverted.

A round of a run is a task (`datasets/passes.py`, `task`). The held-out pictures alternate between all tasks.

digits: 1,797 handwritten digits of 8 x 8 with 17 grey levels (Alpaydin and Kaynak, UCI "Optical Recognition of
Handwritten Digits", CC BY 4.0), in the package. fashion: 70,000 pictures of clothes of 28 x 28 (Xiao et al. 2017,
arXiv:1708.07747, MIT), from Debian's package dataset-fashion-mnist or any folder with its four files.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Len

from selfimprove import seeds
from selfimprove.datasets import Side, Size
from selfimprove.errors import ConfigError
from selfimprove.types import CLOSED, Array, Count, Problem

DIGITS = Path(__file__).parent / "digits.npz"  # made by scripts/make_digits.py
FASHION = "/usr/share/datasets/fashion-mnist"
Pictures = tuple[np.ndarray, np.ndarray]  # grey levels (n, height, width) in [0, 1], and classes (n,)


@dataclass(frozen=True)
class Task:
    __pydantic_config__ = CLOSED
    classes: Annotated[list[Annotated[int, Ge(0)]], Len(1)]
    turn: Literal[0, 90, 180, 270] = 0  # degrees counter-clockwise
    invert: bool = False  # swap black and white


Tasks = Annotated[list[Task], Len(1)]


def digits(*, tasks: Tasks, train_size: Count, dev_size: Size = 0, heldout_size: Count, seed: int) -> list[Problem]:
    """Handwritten digits; the last three of every ten are held out. Each size is divided evenly among the tasks.

    Raises ConfigError if a task has too few pictures.
    """
    with np.load(DIGITS) as found:
        pictures, classes = found["pictures"] / 16, found["classes"]
    held = np.arange(len(classes)) % 10 >= 7
    sides = (pictures[~held], classes[~held]), (pictures[held], classes[held])
    return stream("digit", *sides, tasks, (train_size, dev_size, heldout_size), seed)


def fashion(
    *, tasks: Tasks, train_size: Count, dev_size: Size = 0, heldout_size: Count, path: str = FASHION, seed: int
) -> list[Problem]:
    """Clothes: the authors' training pictures; their test pictures are held out. `path`: a folder with the four files.

    Raises ConfigError if a file is missing or is not an IDX file, or a task has too few pictures.
    """

    def side(name: str) -> Pictures:
        return _idx(path, f"{name}-images-idx3-ubyte") / 255, _idx(path, f"{name}-labels-idx1-ubyte")

    return stream("clothes", side("train"), side("t10k"), tasks, (train_size, dev_size, heldout_size), seed)


def stream(
    name: str, train: Pictures, heldout: Pictures, tasks: list[Task], sizes: tuple[int, int, int], seed: int
) -> list[Problem]:
    """The train, dev and held-out problems of a stream. The problems of each side alternate between the tasks.

    The seed chooses the training pictures; dev and held-out pictures are the same for every seed.
    """
    found: dict[Side, list[list[Problem]]] = {"train": [], "dev": [], "test": []}
    for number, task in enumerate(tasks):
        for side, key, size in zip(found, ("train_size", "dev_size", "heldout_size"), sizes, strict=True):
            pictures, classes = heldout if side == "test" else train
            own = np.flatnonzero(np.isin(classes, task.classes))
            np.random.default_rng(number).shuffle(own)
            share = own[: len(own) // 8] if side == "dev" else own[len(own) // 8 :] if side == "train" else own
            if side == "train":
                np.random.default_rng(seeds.derive(seed, "stream", number)).shuffle(share)
            count = size // len(tasks) + (number < size % len(tasks))
            if count > len(share):
                said = f"task {number} (classes {task.classes}) has {len(share)} pictures, and needs {count}"
                raise ConfigError(f"dataset.{key}={size}: {said}", f"dataset.{key}")
            found[side].append([_problem(f"{name}-{side}-{number}-{i}", side, number, task, pictures[i], classes[i])
                                for i in share[:count].tolist()])  # fmt: skip
    return [problem for side in found.values() for problem in _in_turn(side)]


def _problem(name: str, side: Side, number: int, task: Task, picture: np.ndarray, label: int) -> Problem:
    picture = np.rot90(picture, task.turn // 90)
    picture = 1 - picture if task.invert else picture
    data = tuple(round(float(x), 4) for x in picture.flat)
    return Problem(name, name, str(label), side, {"question": name, "task": number}, Array(picture.shape, data))


def _in_turn(tasks: list[list[Problem]]) -> Iterator[Problem]:
    return (problem for problem in chain(*zip_longest(*tasks)) if problem is not None)


def _idx(path: str, name: str) -> np.ndarray:
    """The bytes of an IDX file (Le Cun's format of MNIST), plain or gzipped, in the shape of its header."""
    folder = Path(path).expanduser()
    file = next((f for f in (folder / f"{name}.gz", folder / name) if f.is_file()), None)
    if file is None:
        said = f"has no {name}.gz; apt-get install dataset-fashion-mnist, or name a folder with the four files"
        raise ConfigError(f"dataset.path={path}: {said}", "dataset.path")
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        shape = np.frombuffer(data, ">i4", data[3], 4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as problem:
        raise ConfigError(f"dataset.path={path}: {file.name} is not an IDX file ({problem})", "dataset.path") from None
