"""GRPO and RLOO: the advantages that their configuration gives, and what they do to a policy."""

import pytest

from selfimprove import run, store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict

REWARDS = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
SMALL = (
    "rounds=1 method.parts=2 dataset.train_size=4 dataset.heldout_size=4 dataset.levels=[3] method.generate.n=4 "
    "method.train.batch_size=8 verify.workers=1 tracker=none model.max_tokens=40"
)


def group():
    sample = Sample([1], [2, 3], [-1.0, -1.0], "x", "stop", 0)
    return [
        Attempt(Problem("p", "?"), Trajectory("p", [sample], id=f"r0/p/{i}"), Verdict("", "correct", reward))
        for i, reward in enumerate(REWARDS)
    ]


@pytest.mark.parametrize(
    ("method", "right", "wrong"),
    [
        ("grpo", 0.625 / (0.2678571**0.5 + 1e-4), -0.375 / (0.2678571**0.5 + 1e-4)),
        ("rloo", 1 - 2 / 7, -3 / 7),
    ],
)
def test_advantages_as_configured(method, right, wrong):
    keep = bind(compose([f"method={method}"]).method.filter, "filter")
    expected = [[right if reward else wrong] * 2 for reward in REWARDS]
    found = [example.advantages for example in keep([group()])]
    assert [pytest.approx(row) for row in expected] == found


def test_a_pass_is_one_optimizer_step_on_all_answers_and_the_next_goes_on_from_it(tmp_path):
    run.start(compose(["method=grpo", *SMALL.split()]), tmp_path)
    steps = [store.read_json(tmp_path / f"rounds/000.{i}/train.manifest.json")["metrics"] for i in (0, 1)]
    assert [figures["steps"] for figures in steps] == [1, 1]
    assert store.read_json(tmp_path / "rounds/000.1/state/steps.json") == {"steps": 2}
    rows = list(store.read_records(tmp_path / "rounds/000.1/examples.parquet", Example))
    assert len(rows) == 8
    assert all(len(row.advantages) == len(row.logprobs) == len(row.completion_ids) for row in rows)
    for figures in steps:
        assert figures["sampler_ratio"] == pytest.approx(1, abs=1e-4)
        assert figures["clipped"] == 0
        assert figures["entropy"] > 0
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-9), "the first pass begins at the reference"
    assert steps[1]["kl"] > 0


def test_both_refuse_samples_of_another_temperature():
    for method in ("grpo", "rloo"):
        config = compose([f"method={method}"])
        assert config.method.generate["temperature"] == 1
        with pytest.raises(Exception, match="set it to 1"):
            compose([f"method={method}", "method.generate.temperature=0.9"])


def test_each_yaml_trains_and_names_what_it_stands_on():
    for method in ("grpo", "rloo"):
        config = compose([f"method={method}"])
        stage = config.stages[""]
        assert (stage.parts, stage.keep) == (31, 10)
        assert stage.train["carry"] is True
        assert stage.train["batch_size"] == stage.generate["n"] * 16
