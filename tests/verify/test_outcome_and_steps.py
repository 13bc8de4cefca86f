"""Two reward models as one, and the data set's check as models that err, against hand values."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from selfimprove.config import compose, reads_gold
from selfimprove.datasets import arithmetic as data
from selfimprove.errors import ConfigError
from selfimprove.types import Sample, Trajectory
from selfimprove.verify import Outcome, arithmetic, noisy
from selfimprove.verify.outcome_and_steps import product, resource, verify

CHAIN = data.Chain(7, (("+", 5), ("*", 3), ("-", 8)))
PROBLEM = data.problem(CHAIN, "solve")
SLIP = "7 + 5 = 12\n12 * 3 = 35\n35 - 8 = 27\nThe answer is 27."
LOW, HIGH = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))


async def checked(text, problem):
    return Outcome("timeout", 0.0) if text == "slow" else arithmetic.check(text, problem.gold, problem.metadata)


def nodes(noise):
    return {kind: {"_target_": f"selfimprove.verify.noisy.{kind}", "noise": noise} for kind in ("outcome", "steps")}


def judge(contexts, texts, how, **options):
    opened = resource(None, **options) if how is verify else None
    context = contexts(opened, checked)(PROBLEM)
    return asyncio.run(
        how(PROBLEM, [Trajectory("p", [Sample([], [], [], t, "stop", 0)]) for t in texts], context, **options)
    )


def test_without_noise_the_scores_are_the_checks(contexts):
    right, slip, cut, slow = judge(contexts, [data.solution(CHAIN), SLIP, "7 + 5 = 12", "slow"], verify, **nodes(0.0))
    assert right.step_rewards == pytest.approx([HIGH] * 4)
    assert right.reward == pytest.approx(HIGH + HIGH**4)
    assert (right.status, right.extracted) == ("correct", "28")
    assert slip.step_rewards == pytest.approx([HIGH, LOW, LOW, LOW])
    assert slip.reward == pytest.approx(LOW + HIGH * LOW**3)
    assert (slip.status, slip.extracted) == ("wrong", "27")
    assert cut.reward == pytest.approx(LOW), "it states no answer, so its steps count nothing"
    assert cut.step_rewards == pytest.approx([HIGH])
    assert slow.status == "timeout"


def test_noise_is_a_texts_own_and_as_large_as_it_is_said(contexts):
    texts = [SLIP.replace("27.", f"{i}.") for i in range(28, 328)]
    one = judge(contexts, texts, noisy.steps, noise=2.0)
    again = judge(contexts, texts[::-1], noisy.steps, noise=2.0)[::-1]
    assert [o.step_rewards for o in one] == [o.step_rewards for o in again]
    logits = np.array([[math.log(p / (1 - p)) for p in o.step_rewards] for o in one])
    assert logits.mean(axis=0) == pytest.approx([2, -2, -2, -2], abs=0.5)
    assert logits.std() > 2
    assert ((logits[:, 0] - 2).std(), (logits[:, 1] + 2).std()) == pytest.approx((2, 2), abs=0.4)
    assert len({o.reward for o in judge(contexts, texts, noisy.outcome, noise=2.0)}) == len(texts)


def test_the_product_by_hand():
    assert product([0.5, 0.4], "7") == pytest.approx(0.2)
    assert product([0.5, 0.4], None) == 0
    assert product([], "7") == product(None, "7") == 0


def test_whether_gold_is_read_is_the_affair_of_its_parts():
    models = {"outcome": {"_target_": "selfimprove.verify.reward_model.verify", "model": "a"},
              "steps": {"_target_": "selfimprove.verify.steps.verify", "model": "b"}}  # fmt: skip
    both = {"_target_": "selfimprove.verify.outcome_and_steps.verify"}
    assert not reads_gold(both | models)
    assert reads_gold(both | models | {"steps": {"_target_": "selfimprove.verify.steps.verify", "model": None}})
    assert reads_gold(both | nodes(1.0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verifier=noisy", "verifier.steps.noise=-1"], r"verifier\.steps\.noise=-1"),
        (["verifier=noisy", "+verifier.outcome.nose=1"], r"verifier\.outcome\.nose: unknown key"),
        (["verifier=reward_models", "verifier.steps.model=b"], r"verifier\.outcome\.model: needs a value"),
    ],
)
def test_a_mistake_in_a_part_is_one_line(words, said):
    with pytest.raises(ConfigError, match=said) as refused:
        compose(words)
    assert "\n" not in str(refused.value)
