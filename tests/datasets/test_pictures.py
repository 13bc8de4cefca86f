"""Streams of picture tasks."""

import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from selfimprove.config import compose
from selfimprove.datasets import passes, pictures
from selfimprove.errors import ConfigError
from selfimprove.plan import Pass
from selfimprove.sides import load
from selfimprove.types import Problem

TWO = [pictures.Task([0, 1]), pictures.Task([2], turn=90)]


def digits(**more: object) -> list[Problem]:
    return pictures.digits(**{"tasks": TWO, "train_size": 20, "heldout_size": 10, "seed": 0} | more)  # type: ignore[arg-type]


def test_a_task_has_its_classes_and_the_sides_share_no_picture() -> None:
    problems = digits(dev_size=6)
    for problem in problems:
        assert int(str(problem.gold)) in TWO[problem.metadata["task"]].classes
        assert problem.array is not None
        assert problem.array.shape == (8, 8)
    data = [problem.array.data for problem in problems if problem.array]
    assert len(set(data)) == len(data) == 36
    assert [p.metadata["task"] for p in problems if p.split == "test"] == [0, 1] * 5


def test_the_seed_changes_training_pictures_alone() -> None:
    one, other = digits(dev_size=6), digits(dev_size=6, seed=1)
    same = {p.id for p in one} & {p.id for p in other}
    assert {p.id for p in one if p.split != "train"} <= same
    assert any(p.id not in same for p in one)


def test_a_turn_is_against_the_clock_and_inverting_makes_black_of_white() -> None:
    plain = {p.id: p for p in digits(tasks=[pictures.Task([3])])}
    for task, change in (({"turn": 90}, np.rot90), ({"invert": True}, lambda x: 1 - x)):
        for problem in digits(tasks=[pictures.Task([3], **task)]):
            before = plain[problem.id].array
            assert before is not None
            assert problem.array is not None
            shown = np.reshape(problem.array.data, (8, 8))
            np.testing.assert_allclose(shown, change(np.reshape(before.data, (8, 8))), atol=1e-4)


def test_a_round_is_a_task() -> None:
    train = [p for p in digits() if p.split == "train"]
    step = Pass(1, 1)
    assert {p.metadata["task"] for p in passes.task(train, step=step)} == {1}
    assert passes.task(train, step=step, before=True) == train


def test_too_many_pictures_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.heldout_size=1000: task 0 \(classes \[0, 1\]\) has \d+ pictures"):
        digits(heldout_size=1000)


def fashion_files(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        shape = np.array([count, 28, 28], ">i4").tobytes()
        shown, classes = rng.integers(256, size=(count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + shape + shown.tobytes()))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + shape[:4] + classes.tobytes())


def test_fashion_reads_idx_files_plain_or_packed(tmp_path: Path) -> None:
    fashion_files(tmp_path)
    problems = pictures.fashion(tasks=[pictures.Task([7])], train_size=4, heldout_size=2, path=str(tmp_path), seed=0)
    assert [p.gold for p in problems] == ["7"] * 6
    assert all(p.array and p.array.shape == (28, 28) and max(p.array.data) <= 1 for p in problems)


@pytest.mark.parametrize("harm", ["missing", "cut"])
def test_fashion_without_its_files_is_refused_in_one_line(tmp_path: Path, harm: str) -> None:
    fashion_files(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    file.unlink() if harm == "missing" else file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ConfigError, match=r"dataset\.path=.*: (has no t10k|t10k.* is not an IDX file)"):
        pictures.fashion(tasks=[pictures.Task([7])], train_size=4, heldout_size=2, path=str(tmp_path), seed=0)


@pytest.mark.parametrize("name", ["digit_tasks", "digit_changes"])
def test_the_default_sizes_are_there_for_every_task(name: str) -> None:
    config = compose([f"dataset={name}", "engine=net", "model=digits_vit"])
    problems = load(config.dataset, seed=0)
    counts = Counter((p.split, p.metadata["task"]) for p in problems)
    assert counts == {(split, k): n for split, n in (("train", 180), ("test", 90)) for k in range(5)}
