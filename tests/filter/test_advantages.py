"""Advantages by hand."""

import math

import pytest

from selfimprove.binding import bind
from selfimprove.errors import ConfigError, RunError
from selfimprove.filter.advantages import advantages, group_advantages
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict

NODE = {"_target_": "selfimprove.filter.advantages.advantages"}


def attempt(problem, number, reward, turns=1, steps=None, temperature=1.0, roles=None):
    samples = [
        Sample(
            [1] * (t + 1), [2] * (t + 2), [-0.5] * (t + 2), "x", "stop", 0, temperature, (roles or {}).get(t, "policy")
        )
        for t in range(turns)
    ]
    name = f"r0/{problem}/{number}"
    verdict = Verdict(name, "correct" if reward else "wrong", reward, step_rewards=steps)
    return Attempt(Problem(problem, "?"), Trajectory(problem, samples, id=name), verdict)


def group(problem, rewards):
    return [attempt(problem, i, reward) for i, reward in enumerate(rewards)]


def found(groups, **options):
    return [example.advantages[0] for example in advantages(groups, **options)]


@pytest.mark.parametrize(
    ("baseline", "scale", "expected"),
    [
        ("none", "none", [1, 0, 0, 3]),
        ("mean", "none", [0, -1, -1, 2]),
        ("leave_one_out", "none", [0, -4 / 3, -4 / 3, 8 / 3]),
        ("mean", "std", [x / (math.sqrt(2) + 1e-4) for x in (0, -1, -1, 2)]),
    ],
)
def test_rewards_of_one_problem(baseline, scale, expected):
    assert group_advantages([1, 0, 0, 3], baseline, scale) == pytest.approx(expected)
    assert found([group("p", [1, 0, 0, 3])], baseline=baseline, scale=scale) == pytest.approx(expected)


def test_equal_rewards_teach_nothing():
    for baseline in ("mean", "leave_one_out"):
        assert group_advantages([1, 1, 1], baseline, "std") == [0, 0, 0]


def test_the_batch_scale_is_that_of_all_rewards():
    groups = [group("p", [1, 0]), group("q", [0, 0])]
    spread = math.sqrt((0.75**2 + 3 * 0.25**2) / 3) + 1e-4
    assert found(groups, baseline="mean", scale="batch") == pytest.approx([0.5 / spread, -0.5 / spread, 0, 0])


def test_a_problem_with_one_attempt_has_nothing_to_be_compared_with():
    assert found([group("p", [1])], baseline="mean") == []
    assert found([group("p", [1])], baseline="none", scale="none") == [1]


def test_each_sample_is_a_row_with_its_sampler_s_log_probabilities():
    rows = list(advantages([[attempt("p", 0, 1.0, turns=2), attempt("p", 1, 0.0, turns=2)]], scale="none"))
    assert [len(row.completion_ids) for row in rows] == [2, 3, 2, 3]
    assert rows[1].advantages == [0.5] * 3
    assert rows[1].logprobs == [-0.5] * 3
    assert rows[1].metadata == {"turn": 1}
    assert rows[1].trajectory_ids == ["r0/p/0"]


def test_a_turn_is_compared_with_the_same_turn_of_others():
    attempts = [
        attempt("p", 0, 1.0, turns=2, steps=[0, 1]),
        attempt("p", 1, 0.0, turns=2, steps=[1, 0]),
        attempt("p", 2, 1.0, turns=1, steps=[1]),
    ]
    rows = list(advantages([attempts], scale="none", per="turn"))
    assert [row.advantages[0] for row in rows] == pytest.approx([-2 / 3, 0.5, 1 / 3, -0.5, 1 / 3])


def test_a_shape_gives_the_rewards():
    shape = {"_target_": "tests.filter.shapes.short", "weight": 2.0}
    keep = bind(NODE | {"baseline": "none", "scale": "none", "shape": shape}, "filter")
    assert [row.advantages[0] for row in keep([group("p", [1, 0])])] == [-4.0, -4.0]
    with pytest.raises(ConfigError, match=r"filter\.shape=.*colour: unknown key"):
        bind(NODE | {"shape": shape | {"colour": 1}}, "filter")


def test_another_role_s_samples_are_left_out():
    attempts = [attempt("p", i, float(i), turns=2, roles={0: "critic"}) for i in (0, 1)]
    assert [len(row.completion_ids) for row in advantages([attempts])] == [3, 3]


def test_what_cannot_be_right_is_refused():
    with pytest.raises(RunError, match=r"sampled at temperature 0\.7"):
        found([[attempt("p", i, 1.0, temperature=0.7) for i in (0, 1)]])
    with pytest.raises(RunError, match=r"r0/p/0 has 0 rewards and needs 2"):
        found([[attempt("p", i, 1.0, turns=2) for i in (0, 1)]], per="turn")
