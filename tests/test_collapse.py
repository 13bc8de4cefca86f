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
    "method=grpo rounds=1 method.parts=6 dataset.train_size=24 dataset.heldout_size=2 dataset.levels=[5,6] "
    "method.generate.n=4 method.train.batch_size=16 +method.train.epochs=6 method.train.learning_rate=3e-4 "
    "method.train.clip=1 method.train.clip_high=1e9 method.train.beta=0 "
    "verify.workers=1 tracker=none model.max_tokens=64"
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


@pytest.mark.parametrize(
    ("weight", "line"),
    [
        pytest.param(-1.0, r"% of them are cut at the limit", marks=pytest.mark.slow, id="long answers"),
        pytest.param(1.0, r"the same (reward|words)|nearly the same", id="short answers"),
    ],
)
def test_a_run_that_is_rewarded_for_length_alone_says_that_it_collapses(tmp_path, weight, line):
    """With many steps on few answers, and nothing that clips them or holds them near the base policy."""
    shape = f"+method.filter.shape={{_target_:tests.filter.shapes.short,weight:{weight}}}"
    run.start(compose([*SMALL.split(), shape]), tmp_path)
    said = re.findall(r"WARNING \S+ round (\S+): (.*)", (tmp_path / "run.log").read_text())
    assert [text for _, text in said if re.search(line, text)], said
    assert "0.0" not in [where for where, _ in said], "not of the first pass"
