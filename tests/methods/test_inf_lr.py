"""Infinite rates: reading, the corpora's rounds, the annealed branch, and a whole small run."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.generate.read import read
from selfimprove.methods.inf_lr import every
from selfimprove.policy import Policy
from selfimprove.studies import Result, overall
from selfimprove.studies import inf_lr as study
from selfimprove.studies.staged import over_rounds
from selfimprove.studies.tiny import shipped
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict
from selfimprove.verify.likelihood import likelihood
from tests.forks import drive

SIZES = ["method=inf_lr", "tracker=none", "verify.workers=1", "dataset.train_size=24", "dataset.heldout_size=6",
         "dataset.chars=40", "rounds=2", "method.train.batch_size=4"]  # fmt: skip
EVERY = "method.stages.anneal.when=every"


def test_a_text_is_read_and_its_score_is_its_mean_log_probability() -> None:
    engine = shipped(max_length=40)
    policy = Policy(engine, 0, max_tokens=8)
    problem = Problem("p", "\n", "def f(x):\n    return x" * 4)
    (trajectory,) = asyncio.run(read(problem, policy))
    (sample,) = trajectory.samples
    assert len(sample.prompt_ids) + len(sample.completion_ids) == 40  # the window
    assert sample.completion_ids == policy.encode(problem.gold or "")[: len(sample.completion_ids)]
    (outcome,) = asyncio.run(likelihood(problem, [trajectory], None))
    assert outcome.reward == pytest.approx(sum(sample.logprobs) / len(sample.logprobs))
    assert outcome.reward < 0


def test_a_text_without_a_token_has_no_likelihood() -> None:
    (outcome,) = asyncio.run(
        likelihood(Problem("p", "", ""), [Trajectory("p", [Sample([1], [], [], "", "stop", 0)])], None)
    )
    assert (outcome.status, outcome.reward) == ("unparseable", -math.inf)


def test_all_that_was_read_is_learnt() -> None:
    def attempt(name: str) -> Attempt:
        trajectory = Trajectory(name, [Sample([1], [2, 3], [-1.0, -2.0], "ab", "stop", 0)], id=f"r0/{name}/0")
        return Attempt(Problem(name, "\n", "ab"), trajectory, Verdict(trajectory.id, "correct", -1.5))

    found = list(every([[attempt("a")], [attempt("b")]]))
    assert [(e.problem_id, e.prompt_ids, e.completion_ids, e.mask) for e in found] == [
        ("a", [1], [2, 3], None),
        ("b", [1], [2, 3], None),
    ]


def test_it_needs_log_probabilities_and_no_more_rounds_than_corpora() -> None:
    with pytest.raises(ConfigError, match="rounds=4: a round is a task"):
        compose(["method=inf_lr", "rounds=4"])
    with pytest.raises(ConfigError, match=r"method.stages.learn.start=nobody: must be last, base or a stage"):
        compose(["method=inf_lr", "method.stages.learn.start=nobody"])
    with pytest.raises(ConfigError, match="needs logprobs"):
        compose(["method=inf_lr", "engine=categorical"])


def test_the_next_corpus_goes_on_from_the_policy_before_the_annealing(tmp_path: Path) -> None:
    """Only the annealing moves the weights, and the second corpus begins where they have not moved."""
    rates = ["method.train.learning_rate=1e-7", "+method.stages.anneal.train.learning_rate=1e-2"]
    summary = run.start(compose([*SIZES, EVERY, *rates]), tmp_path)
    assert summary["status"] == "complete"
    learn, anneal, again, _ = (weights(path) for path in sorted(tmp_path.glob("rounds/*/policy")))
    assert far(learn, anneal) > 5e-5
    assert far(learn, again) < 2e-6
    steps = [store.read_json(path)["steps"] for path in sorted(tmp_path.glob("rounds/*/state/steps.json"))]
    assert steps == [2, 3, 4, 5]  # learn, anneal, learn, anneal: 2 steps a corpus, and one of an annealing
    figures = store.read_json(sorted(tmp_path.glob("rounds/*/evaluate.manifest.json"))[-1])["metrics"]
    assert {"AA", "FM", "log_likelihood/task=0"} <= figures.keys()
    result = Result(tmp_path, summary, ("method=inf_lr",))
    assert over_rounds(result, "steps") == 6
    runs = {arm: [result] for arm in study.ARMS}
    same = list(study.claims(runs))
    assert [same[i].value for i in (1, 3)] == [0, 0]  # against itself
    assert str(same[2].value).startswith("cannot be tested here: a repeated cosine does not clearly forget")
    assert [claim.holds for claim in same[1:4]] == [None, None, None]
    loss = -overall([study.read(result)])
    assert same[4].value == pytest.approx((study.MARGIN - 1) * loss)
    study.table(runs, dict.fromkeys(runs, 1e-3))


def test_arms_of_the_study_take_as_many_steps() -> None:
    """60 steps a corpus and 9 of the annealing, or 63 steps a corpus."""
    for arm, words in study.ARMS.items():
        config = compose(["method=inf_lr", *words])
        assert list(config.stages) == ["learn", "anneal"][: 2 if arm == study.OWN else 1]
        per_corpus = config.dataset.model_dump()["train_size"] // 3
        size, shares = 8, [(stage.train or {})["epochs"] for stage in config.stages.values()]
        steps = [math.ceil(round(share * per_corpus) / size) for share in shares]
        assert 3 * steps[0] + sum(steps[1:]) == 189


def weights(policy: Path) -> dict[str, torch.Tensor]:
    return load_file(policy / "model.safetensors")


def far(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.slow
def test_a_run_killed_at_the_branch_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = f"method=inf_lr dataset=corpora dataset.chars=40 method.train.batch_size=1 {EVERY}"
    drive(tmp_path, small, ["manifest:0/train", "manifest:1/train", "train:2"])
