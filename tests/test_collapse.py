"""A run that stops learning says so, once."""

import re

import pytest

from selfimprove import run
from selfimprove.collapse import signs
from selfimprove.config import compose

FIRST = {
    "train/idle": 0.2,
    "filter/explore/distinct_solutions": 6.0,
    "generate/completion/mean_tokens": 30.0,
    "generate/completion/truncated": 0.0,
    "train/entropy": 0.4,
}
SMALL = (
    "method=grpo rounds=1 method.parts=4 dataset.train_size=8 dataset.heldout_size=2 dataset.levels=[5,6] "
    "method.generate.n=4 method.train.batch_size=8 verify.workers=1 tracker=none model.max_tokens=64 method.train.beta=0"
)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({}, None),
        ({"train/idle": 1.0}, "rewards"),
        ({"train/entropy": 0.039}, "entropy"),
        ({"train/entropy": 0.041}, None),
        ({"filter/explore/distinct_solutions": 1.0}, "distinct"),
        ({"generate/completion/mean_tokens": 61.0}, "length"),
        ({"generate/completion/truncated": 0.6}, "length"),
    ],
)
def test_each_sign_by_its_figures(changed, name):
    assert list(signs(FIRST, FIRST | changed)) == ([name] if name else [])


def test_answers_that_are_only_rewarded_for_length_run_away(tmp_path):
    shape = "+method.filter.shape={_target_:tests.filter.shapes.short,weight:-1.0}"
    run.start(compose([*SMALL.split(), shape, "method.train.learning_rate=3e-3"]), tmp_path)
    said = re.findall(r"WARNING (round .*)", (tmp_path / "run.log").read_text())
    assert [line for line in said if "cut at the limit" in line]
    assert len(said) == len({re.sub(r"round \S+", "", line) for line in said}), "each is said once"


def test_a_policy_that_is_always_right_whatever_it_says_loses_its_entropy(tmp_path):
    overrides = ["method.filter.baseline=none", "method.filter.scale=none", "method.train.learning_rate=3e-3"]
    always = "verifier={_target_:tests.loop_parts.always_right}"
    run.start(compose([*SMALL.split(), *overrides, f"+{always}"]), tmp_path)
    said = (tmp_path / "run.log").read_text()
    assert "all answers to a problem have the same reward" in said
    assert "it samples nearly the same each time" in said
