"""Schedules: their values by hand, at the borders of phases, and as a trainer follows them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_rows import rows
from test_checkpoints import die_at, killed

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.schema import Training
from selfimprove.store import file_digest
from selfimprove.train import TrainContext, unfinished
from selfimprove.train.schedules import Infinite, infinite, spanning
from selfimprove.train.sft import sft

Make = Callable[..., TrainContext]
STREAM = Infinite(warmup=4, cooldown=10, constant=0.4, minimum=0.01)
ANNEAL = replace(STREAM, anneal=True)


def test_an_infinite_schedule_has_its_values_at_the_borders_of_its_phases() -> None:
    assert [STREAM.share(n) for n in (1, 2, 4)] == [0.25, 0.5, 1.0]  # n / N_w
    assert STREAM.share(7) == pytest.approx(0.4 + 0.3)  # half of the cooldown
    assert STREAM.share(9) == pytest.approx(0.4 + 0.3 * (1 + math.cos(math.pi * 5 / 6)))
    assert [STREAM.share(n) for n in (10, 11, 10**9)] == [0.4, 0.4, 0.4]
    assert ANNEAL.annealed(0) == 0.4
    assert ANNEAL.annealed(0.5) == pytest.approx(math.sqrt(0.4 * 0.01))
    assert ANNEAL.annealed(1) == pytest.approx(0.01)


def test_an_infinite_schedule_is_continuous() -> None:
    """With steps a hundred times smaller the largest jump is a hundred times smaller."""
    fine = Infinite(warmup=400, cooldown=1000, constant=0.4, minimum=0.01)
    for schedule, least in ((STREAM, 10), (fine, 1000)):
        shares = [0.0, *(schedule.share(n) for n in range(1, 2 * least))]
        assert max(abs(b - a) for a, b in itertools.pairwise(shares)) <= 2.6 / least
    annealing = infinite(replace(fine, anneal=True), 1000, before=5000)
    assert annealing(0) == pytest.approx(fine.share(5000), rel=0.01)


@pytest.mark.parametrize("borders", [[0, 12], [0, 3, 12], [0, 5, 6, 12]])
def test_phases_of_any_length_follow_one_curve(borders: list[int]) -> None:
    found = [
        infinite(STREAM, end - begin, begin)(i)
        for begin, end in itertools.pairwise(borders)
        for i in range(end - begin)
    ]
    assert found == [STREAM.share(n) for n in range(1, 13)]


def test_without_warm_up_or_cooldown_the_rate_is_constant_at_once() -> None:
    assert [Infinite(0, 0, 0.5, 0.1).share(n) for n in (1, 2)] == [0.5, 0.5]
    assert [Infinite(2, 2, 0.5, 0.1).share(n) for n in (1, 2, 3)] == [0.5, 1.0, 0.5]


def test_a_schedule_over_all_phases_by_hand() -> None:
    rising = [spanning("cosine", 0.5, 1, turn, 4)(0) for turn in range(4)]
    assert rising == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert [spanning("constant", 0.0, 2, 0, 1)(step) for step in (0, 1, 2)] == [1, 1, 1]
    assert [spanning("linear", 0.0, 2, 1, 2)(step) for step in (0, 1, 2)] == pytest.approx([0.5, 0.25, 0.0])
    again = [spanning("cosine_with_restarts", 0.0, 2, turn, 3)(step) for turn in range(3) for step in range(2)]
    assert again == pytest.approx([1.0, 0.5] * 3)


def followed(context: Make, name: str, sizes: list[int], killed_at: int = 0) -> tuple[list[float], str]:
    """The rates of phases of `sizes` steps, the last one an annealing, and the hash of the last policy. The last phase
    but one is killed at a step, and goes on from a checkpoint."""
    logged: dict[tuple[int, float], float] = {}
    last: TrainContext | None = None
    for i, size in enumerate(sizes):

        def log(figures: dict[str, float], i: int = i) -> None:
            logged[i, figures["step"]] = figures["learning_rate"]

        own = context(f"{name}{i}", log=log, training=Training(checkpoint_steps=2))
        own = replace(
            own, state=own.out.with_name(f"{name}{i}_state"), parts=unfinished(Path(f"{own.out}.parts"), "key")
        )
        if last:
            own = replace(own, start=str(last.out), last_state=last.state)
        how: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "carry": True, "schedule": "infinite"}
        how["infinite"] = ANNEAL if i == len(sizes) - 1 else STREAM
        if killed_at and i == len(sizes) - 2:
            dying = replace(own, log=die_at(killed_at))
            assert killed(lambda d=dying, n=size, h=how: sft(rows(4 * n), d, **h))  # type: ignore[misc]
        sft(rows(4 * size), own, **how)
        last = own
    assert last
    return [logged[key] for key in sorted(logged)], file_digest(last.out)


def test_a_trainer_follows_the_schedule_also_where_it_was_killed(context: Make) -> None:
    whole, policy = followed(context, "whole", [3, 6, 4])
    expected = [STREAM.share(n) for n in range(1, 10)] + [ANNEAL.annealed(i / 4) for i in (1, 2, 3, 4)]
    assert whole == pytest.approx([1e-2 * share for share in expected])
    again, same = followed(context, "again", [3, 6, 4], killed_at=5)
    assert again == whole
    assert same == policy


def test_any_method_can_follow_it() -> None:
    train = compose(["method=grpo", "+schedule@method.train=infinite"]).method.train
    assert train
    assert (train["schedule"], train["carry"], train["infinite"]["constant"]) == ("infinite", True, 0.5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method.train.carry=false"], "method.train.carry=false: an infinite schedule goes on from phase to phase"),
        (["method.train.schedule=cosine"], "method.train.schedule=cosine: an infinite schedule"),
        (["~method.train.infinite"], "method.train.infinite: needs a value"),
        (["method.train.infinite.cooldown=2"], "infinite.cooldown=2: must be at least infinite.warmup=5"),
        (["method.train.infinite.minimum=0.6"], "infinite.minimum=0.6: must be at most infinite.constant=0.5"),
        (["method.train.infinite.constant=0"], "method.train.infinite.constant=0"),
        (["+method.train.infinite.end=9"], "method.train.infinite.end: unknown key"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("+", r"\+")):
        compose(["method=rejection_sampling", "+schedule@method.train=infinite", *words])
