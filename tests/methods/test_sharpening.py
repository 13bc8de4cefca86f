"""Sharpening: best-of-n, the self-rewards, pairs, the optimum of the loss on six outcomes, and a whole small study."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest
import torch

from selfimprove import store
from selfimprove.methods.sharpening import bon, keep_best, optimum, pairs, sharpened, total_variation
from selfimprove.policy import Policy
from selfimprove.studies import Claim, Lab
from selfimprove.studies.sharpening import CLEAR, TIED
from selfimprove.train.residual import squared_residual
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Context, Outcome
from selfimprove.verify.self_reward import self_reward

SMALLER = ("dataset.train_size=16",)
PROBLEM = Problem("p", "1 + 1?")


def trajectory(text: str, *logprobs: float, finish: Any = "stop", version: int = 0) -> Trajectory:
    ids = list(range(len(logprobs)))
    return Trajectory(
        "p", [Sample([7], ids, list(logprobs), text, finish, 0, version=version)], id=f"{text}{sum(logprobs)}"
    )


# Best of n


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_is_the_mean_over_all_subsets(n: int) -> None:
    rng = random.Random(n)
    rewards, values = [rng.random() for _ in range(6)], [rng.random() for _ in range(6)]
    subsets = list(itertools.combinations(range(6), n))
    expected = sum(values[max(subset, key=lambda i: rewards[i])] for subset in subsets) / len(subsets)
    assert bon(rewards, values, n) == pytest.approx(expected)


def test_best_of_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="best of 3 out of 2"):
        bon([0.0, 1.0], [0.0, 1.0], 3)


# The reward


class Fixed:
    """An engine that scores every completion with the same log-probability a token."""

    def __init__(self, each: float) -> None:
        self.each = each

    async def logprobs(self, prompt_ids: Any, completion_ids: Any) -> list[float]:
        return [self.each] * len(completion_ids)


async def no_check(text: str, problem: Problem) -> Outcome:
    raise AssertionError("the gold answer's check was asked")


def judged(form: Any, *trajectories: Trajectory, base: float = 0.0) -> list[Outcome]:
    engine: Any = Fixed(base)
    resource = type("Resource", (), {"engine": engine})()
    context = Context(Policy(engine, 0), no_check, resource)
    return asyncio.run(self_reward(PROBLEM, list(trajectories), context, form=form))


def test_the_most_probable_response_is_the_best() -> None:
    found = judged("logprob", trajectory("a", -1.0, -1.0, -1.0), trajectory("b", -2.0), trajectory("c", -4.0))
    assert [(o.status, o.reward) for o in found] == [("wrong", -3.0), ("correct", -2.0), ("wrong", -4.0)]
    found = judged("mean_logprob", trajectory("a", -1.0, -1.0, -1.0), trajectory("b", -2.0))
    assert [(o.status, o.reward) for o in found] == [("correct", -1.0), ("wrong", -2.0)]


def test_the_majority_is_the_best_and_no_gold_answer_is_read() -> None:
    said = [trajectory(f"The answer is {x}.", -float(i)) for i, x in enumerate((3, 2, 2, 5))]
    found = judged("majority", *said)
    assert [o.status for o in found] == ["wrong", "correct", "wrong", "wrong"]
    assert [o.reward for o in found] == [0.25, 0.5, 0.5, 0.25]


def test_a_response_that_was_cut_off_is_never_the_best() -> None:
    found = judged("logprob", trajectory("a", -0.1, finish="length"), trajectory("b", -5.0))
    assert [o.status for o in found] == ["wrong", "correct"]
    assert [o.status for o in judged("logprob", trajectory("a", -0.1, finish="length"))] == ["wrong"]


def test_samples_of_a_trained_policy_are_scored_by_the_base() -> None:
    found = judged("logprob", trajectory("a", -1.0), trajectory("b", -9.0, -9.0, version=1), base=-0.25)
    assert [(o.status, o.reward) for o in found] == [("wrong", -1.0), ("correct", -0.5)]


# Examples


def attempts(*trajectories: Trajectory) -> list[Attempt]:
    outcomes = judged("logprob", *trajectories)
    return [Attempt(PROBLEM, t, Verdict(t.id, o.status, o.reward)) for t, o in zip(trajectories, outcomes, strict=True)]


def test_the_best_response_is_imitated() -> None:
    (example,) = keep_best([attempts(trajectory("a", -3.0), trajectory("b", -1.0, -1.0))], seed=0)
    assert (example.trajectory_ids, example.prompt_ids, example.completion_ids) == (["b-2.0"], [7], [0, 1])


def test_pairs_are_disjoint_and_carry_the_difference_of_rewards() -> None:
    group = attempts(*(trajectory("x" * i, *[-1.0] * i) for i in range(1, 8)), trajectory("y", -0.1, finish="length"))
    found = list(pairs([group], per_problem=9, seed=0))
    assert len(found) == 3
    used = [name for example in found for name in example.trajectory_ids]
    assert len(set(used)) == 6
    for example in found:
        assert example.rejected_ids is not None
        assert example.metadata == {"margin": len(example.rejected_ids) - len(example.completion_ids)}
        assert example.metadata["margin"] > 0
    assert len(list(pairs([group], per_problem=2, seed=0))) == 2
    same = attempts(trajectory("a", -1.0), trajectory("a", -1.0))
    assert not list(pairs([same], per_problem=9, seed=0))


# Six outcomes, with the loss of the train slot


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_optimum_is_the_closed_form(beta: float) -> None:
    assert total_variation(optimum(CLEAR, beta), sharpened(CLEAR, beta)) < 1e-4


def test_the_loss_is_zero_at_the_closed_form_and_only_there() -> None:
    p, q = (torch.tensor(values, dtype=torch.float64) for values in (CLEAR, sharpened(CLEAR, 0.5)))
    for policy, expected in ((q, 0.0), (p, None)):
        ratio, margin = (policy / p).log(), p.log()[:, None] - p.log()[None]
        loss = squared_residual(ratio[:, None], ratio[None], margin, 0.5).sum().item()
        assert loss == pytest.approx(0.0, abs=1e-12) if expected == 0 else loss > 0.1


def test_without_a_margin_the_optimum_is_not_sharp() -> None:
    assert optimum(CLEAR, 0.1)[0] > 0.99
    assert 0.5 < optimum(TIED, 0.1)[0] < 0.6
    assert 1 - (1 - TIED[0]) ** 50 > 0.99  # what imitating best-of-50 would reach


# A whole study in its small form


@pytest.mark.slow
def test_the_study_measures_its_claims(done: tuple[list[Claim], Lab]) -> None:
    claims, _ = done
    assert len(claims) == 9
    assert claims[0].claim.startswith("E log pi_base(y) of best-of-N rises")
    assert claims[0].holds
    assert all(claim.value.startswith("cannot be tested here: ") for claim in claims[-5:-3]), "12 items are too few"
    assert all(claim.holds for claim in claims[-3:])  # the six outcomes
    assert [claim.check for claim in claims] == [False] * 6 + [True] * 3


@pytest.mark.slow
def test_training_reads_no_gold_answer(done: tuple[list[Claim], Lab]) -> None:
    """Every kept answer is the most probable of its problem's, and some of them are wrong."""
    runs = [path.parent for path in done[1].folder.glob("*/summary.json")]
    (folder,) = (r / "rounds/000" for r in runs if store.read_json(r / "summary.json")["method"] == "sharpening")
    trajectories = {t.id: t for t in store.read_records(folder / "trajectories.parquet", Trajectory)}
    problems = {p.id: p for p in store.read_records(folder.parent.parent / "problems.parquet", Problem)}
    examples = list(store.read_records(folder / "examples.parquet", Example))
    assert len(examples) == 16
    wrong = 0
    for example in examples:
        kept = trajectories[example.trajectory_ids[0]]
        others = [t for t in trajectories.values() if t.problem_id == example.problem_id]
        whole = [t for t in others if t.samples[0].finish == "stop"]
        assert sum(kept.samples[0].logprobs) == max(sum(t.samples[0].logprobs) for t in whole)
        wrong += not kept.text.endswith(f"The answer is {problems[example.problem_id].gold}.")
    assert wrong
