"""Consistency figures against hand values, beam search against transformers itself, and the method end to end."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import numpy as np
import pytest
import torch

from selfimprove.config import compose
from selfimprove.datasets.arithmetic import load
from selfimprove.errors import ConfigError
from selfimprove.generate.decodings import decodings
from selfimprove.methods.internal_consistency import update
from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.report.consistency import DECODERS, agreement, consistency, entropy
from selfimprove.studies.internal_consistency import constant, correlation, guesser
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict
from tests.conftest import HELDOUT, TRAIN, run_here


@pytest.mark.parametrize(
    ("answers", "agreed", "spread"),
    [
        (["7"] * 16, 1, 0),
        (["1", "2", "3", "4"] * 4, 1 / 4, math.log(4)),
        (["1", "1", "1", "2"], 3 / 4, -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))),
        (["1", " 1 "], 1, 0),
        ([None, None], 1 / 2, math.log(2)),
        (["1", "1", None, None], 1 / 2, 1.5 * math.log(2)),
    ],
)
def test_agreement_and_entropy_of_answers(answers, agreed, spread):
    assert agreement(answers) == pytest.approx(agreed, abs=1e-12)
    assert entropy(answers) == pytest.approx(spread, abs=1e-12)


def attempt(answer, decoding="greedy", reward=0.0, status="wrong", ids=(1,), finish="stop", problem="p"):
    sample = Sample([0], list(ids), [0.0] * len(ids), "", finish, 0)
    trajectory = Trajectory(problem, [sample], {"decoding": decoding}, f"{problem}/{ids}")
    return Attempt(Problem(problem, ""), trajectory, Verdict(trajectory.id, status, reward, answer))


def test_the_three_figures_of_an_evaluation():
    def problem(samples, decoded):
        return [attempt(a, d) for d, a in zip(DECODERS[:-1], decoded, strict=True)] + [
            attempt(a, "consistency") for a in samples
        ]

    figures = consistency([problem(["1", "1"], "1123"), problem(["1", "2"], "2222")])
    assert figures["consistency/agreement"] == pytest.approx(3 / 4)
    assert figures["consistency/entropy"] == pytest.approx(math.log(2) / 2)
    assert figures["consistency/decoding"] == pytest.approx((3 / 5 + 4 / 5) / 2)
    assert figures["consistency/entropy_low"] <= figures["consistency/entropy"] <= figures["consistency/entropy_high"]


def test_ways_of_decoding_one_problem():
    engine = ScriptedEngine({"Q": "5"}, p_correct=0.3, wrong_values=2)  # 0.3, 0.35, 0.35
    found = asyncio.run(decodings(Problem("p", "Q", "5"), Policy(engine, 0), 12, 0.7))
    assert Counter(t.metadata["decoding"] for t in found) == {"beam": 1, "top_k": 1, "top_p": 1, "consistency": 12}
    (beam,) = (t for t in found if t.metadata["decoding"] == "beam")
    assert beam.text == ANSWER + "6"
    assert sum(beam.samples[-1].logprobs) == pytest.approx(math.log(0.35))
    assert {t.samples[-1].temperature for t in found if t.metadata["decoding"] == "consistency"} == {0.7}


def test_beam_search_of_a_batch_is_transformers_own_of_each_prompt():
    torch.set_num_threads(1)
    engine = TransformersEngine(str(PACKAGED / "tiny"), device="cpu", max_batch=16)
    problems = load(seed=0, train_size=6, heldout_size=1)[:6]
    policy = Policy(engine, 0, max_tokens=96)

    async def ask():
        beams = asyncio.gather(*(policy.for_problem(p).beam(p.prompt, 5) for p in problems))
        sampled = asyncio.gather(*(policy.for_problem(p).sample(p.prompt) for p in problems))
        return await beams, await sampled

    async def alone():
        return await asyncio.gather(*(policy.for_problem(p).sample(p.prompt) for p in problems))

    found, sampled = asyncio.run(ask())
    assert [s[0].completion_ids for s in sampled] == [s[0].completion_ids for s in asyncio.run(alone())]
    assert len({len(sample.prompt_ids) for sample in found}) > 1, "prompts of several lengths are padded"
    better = 0.0
    for problem, sample in zip(problems, found, strict=True):
        ids = engine.render(problem.prompt)
        own = engine.model.generate(torch.tensor([ids]), num_beams=5, do_sample=False, max_new_tokens=96)
        assert sample.completion_ids == own[0, len(ids) :].tolist()
        greedy = asyncio.run(policy.sample(problem.prompt, temperature=0))[0]
        assert sample.finish == "stop"
        better += sum(sample.logprobs) - sum(greedy.logprobs)
    assert better >= 0, "a beam is there to find what is more probable"


def test_an_update_learns_from_large_majorities_alone():
    def group(name, share):
        kept = [attempt("1", reward=share, status="correct", ids=(i, 9), problem=name) for i in range(3)]
        cut = attempt("1", reward=share, status="correct", ids=(7,), finish="length", problem=name)
        return [*kept, kept[0], cut, attempt("2", reward=1 - share, ids=(8,), problem=name)]

    examples = list(update([group("a", 0.75), group("b", 0.4)], agreement=0.5, per_problem=4, seed=0))
    assert [(e.problem_id, e.completion_ids) for e in examples] == [("a", [0, 9]), ("a", [1, 9]), ("a", [2, 9])]
    assert len(list(update([group("a", 0.75)], agreement=0.5, per_problem=2, seed=0))) == 2


def test_consistency_says_nothing_where_all_items_are_alike():
    tables = [guesser(200, seed) for seed in (0, 1)]
    assert not any(map(constant, tables))
    found = correlation(tables)
    assert found.low <= 0 <= found.high
    linked = np.stack([np.arange(50.0), np.arange(50.0) ** 3], 1)
    assert correlation([linked]).value == pytest.approx(1)


def test_an_engine_without_beam_search_is_refused():
    assert compose(["eval.consistency={temperature:0.7}"]).eval.consistency.samples == 16
    with pytest.raises(ConfigError, match=r"eval\.consistency: needs beam search, which engine=categorical"):
        compose(["experiment=curated_categorical", "eval.consistency={samples:4}"])


def test_a_run_says_how_consistent_the_policy_is_before_and_after_a_round(tmp_path):
    measured = "eval.consistency={samples:4,temperature:0.7}"
    summary = run_here(tmp_path, "method=internal_consistency", "rounds=1", measured, "method.generate.n=4")
    for figures in (summary["base"], summary["final"]):
        assert 0.2 <= figures["consistency/agreement"] <= 1
        assert 0 <= figures["consistency/entropy"] <= math.log(4)
        assert 0.2 <= figures["consistency/decoding"] <= 1
        assert figures["n"] == HELDOUT
        assert "mean@4" not in figures, "accuracy is the greedy answers', as without consistency"
    assert 0 < summary["rounds"][0]["examples"] <= TRAIN * 4
