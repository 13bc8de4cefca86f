"""View batches: the order of pictures, the second term, and that they go with every family."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from selfimprove import run
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods import view_batch
from selfimprove.train import own

SIZE = ["method=view_batch", "tracker=none", "verify.workers=1", "rounds=2", "dataset.train_size=40",
        "dataset.heldout_size=20", "method.train.epochs=4", "method.train.batch_size=8", "method.train.views.start=1",
        "method.remember.size=6"]  # fmt: skip


def recalls(steps: list[list[int]]) -> dict[int, list[int]]:
    """The steps in which each picture stands."""
    found = defaultdict[int, list[int]](list)
    for number, step in enumerate(steps):
        for row in dict.fromkeys(step):
            found[row].append(number)
    return found


def mean_interval(steps: list[list[int]]) -> float:
    return float(np.mean([np.diff(numbers).mean() for numbers in recalls(steps).values()]))


@pytest.mark.parametrize("repeat", [2, 4])
def test_a_picture_comes_again_v_times_later_in_as_many_steps(repeat: int) -> None:
    count, size, epochs = 64, 16, 40
    views = view_batch.views(repeat=repeat, seed=0).batches(count, epochs, size, seed=0)
    plain = own.batches(count, epochs, size, seed=0)
    assert len(views) == len(plain) == epochs * count // size
    assert all(step[i] == step[i - i % repeat] for step in views for i in range(size))  # V in a row
    length = count // size  # L
    assert mean_interval(plain) == pytest.approx(length, rel=0.05)
    assert mean_interval(views) == pytest.approx(repeat * length, rel=0.05)
    for start in range(0, len(views), repeat * length):  # V epochs are one permutation
        rows = [row for step in views[start : start + repeat * length] for row in step]
        assert sorted(rows) == sorted(list(range(count)) * repeat)


def test_the_kl_is_to_the_first_view_and_moves_only_the_others() -> None:
    logits = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    p = 1 / (1 + np.exp(-1.0))
    by_hand = p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p))  # to (1/2, 1/2); the third view is the first
    value = view_batch.spread(logits)
    assert value.item() == pytest.approx(by_hand / 2, rel=1e-5)
    value.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().max() == 0
    assert logits.grad[0, 1].abs().max() > 0


def test_the_kl_counts_from_its_epoch_on() -> None:
    views = view_batch.views(repeat=2, start=1, seed=0)
    steps = views.batches(8, 2, 4, seed=0)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    counted = [float(views.loss(logits)) for _ in steps]
    assert counted[:2] == [0, 0]
    assert min(counted[2:]) > 0


def test_the_first_view_is_the_picture_and_the_others_are_not() -> None:
    x = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = view_batch.views(repeat=4, seed=0).pictures(x)
    torch.testing.assert_close(shown[[0, 4]], x[[0, 4]])
    assert all((shown[i] != x[i]).any() for i in (1, 2, 3, 5, 6, 7))
    assert shown.min() >= 0
    assert shown.max() <= 1


def test_a_batch_that_v_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"views\.repeat=3 must divide train\.batch_size=8"):
        compose([*SIZE, "method.train.views.repeat=3"])


@pytest.mark.parametrize("method", ["method=view_batch", "method=cl_suite"])
def test_it_runs_by_itself_and_inside_another_family(tmp_path: Path, method: str) -> None:
    words = [method, *SIZE[1:]]
    if method == "method=cl_suite":
        target = "+method.train.views={_target_:selfimprove.methods.view_batch.views,start:1}"
        words = [word for word in words if "views" not in word] + [target, "method.train.family=lwf", "rounds=1"]
    summary = run.start(compose(words), tmp_path / "run")
    assert summary["status"] == "complete"
