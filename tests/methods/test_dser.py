"""Chains of verify and refine against the Markov chain's closed forms, small."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

from selfimprove.methods.dser import generate, review_rates, right_after, solutions_of, stationary, stopped, vote_right
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.studies.dser import critique, scripted
from selfimprove.types import Problem
from selfimprove.verify.answers import vote


def test_the_formulas_by_hand():
    assert stationary(0.3, 0.1) == pytest.approx(0.75)
    assert right_after(0, 0.2, 0.3, 0.1) == pytest.approx(0.2)
    assert right_after(1, 0.2, 0.3, 0.1) == pytest.approx(0.2 * 0.9 + 0.8 * 0.3)
    step = np.array([[0.7, 0.3], [0.1, 0.9]])  # rows: from wrong, from right
    assert right_after(7, 0.2, 0.3, 0.1) == pytest.approx((np.array([0.8, 0.2]) @ np.linalg.matrix_power(step, 7))[1])
    with pytest.raises(ValueError, match="stays what it was"):
        stationary(0, 0)


def test_a_vote_of_few_by_hand():
    assert vote_right(0.6, 1) == pytest.approx(0.6)
    assert vote_right(0.6, 2) == pytest.approx(0.6), "a tie goes to the first"
    assert vote_right(0.6, 3) == pytest.approx(0.6**3 + 3 * 0.6**2 * 0.4)
    assert vote_right(0.5, 14) == pytest.approx(0.5)
    assert vote_right(0.55, 99) > vote_right(0.55, 9) > 0.55
    assert vote_right(0.45, 99) < vote_right(0.45, 9) < 0.45


def chains(**rates):
    engine = ScriptedEngine({"Question?": "7"}, **rates)
    solver = generate(
        Problem("p", "Question?", "7"),
        Policy(engine, 0),
        critique=critique("default"),
        chains=3,
        iterations=4,
        temperature=0.6,
    )
    return asyncio.run(solver)


def test_a_trajectory_has_the_draft_and_what_led_to_its_solution():
    found = chains(p_correct=0.0, p_improve=1.0, fpr=1.0)
    assert [(t.metadata["stage"], t.metadata["chain"]) for t in found] == [(n, k) for n in range(5) for k in range(3)]
    for n in range(1, 5):
        for k in range(3):
            now, before = found[3 * n + k], found[3 * (n - 1) + k]
            assert now.samples[0] is found[k].samples[0], "the chain's draft, the same object"
            solution, review, new = now.samples[-3:]
            assert solution is before.samples[-1]
            assert solution.text in "".join(map(chr, review.prompt_ids))
            assert f"Review of this solution:\n{review.text}\n" in "".join(map(chr, new.prompt_ids))
            assert len(now.samples) == (3 if n == 1 else 4)
    assert [t.text for t in found[:6]] == [f"{ANSWER}8"] * 3 + [f"{ANSWER}7"] * 3


def test_no_verdict_stops_a_chain_or_turns_a_solution_down():
    found = chains(p_correct=1.0, p_degrade=1.0, tpr=1.0)
    assert [t.metadata["verified"] for t in found[3:6]] == [True] * 3
    assert [t.text for t in found[3:6]] == [f"{ANSWER}8"] * 3, "a verified solution is refined all the same"


def test_a_chain_does_not_depend_on_the_others():
    few = asyncio.run(
        generate(
            Problem("p", "Question?", "7"),
            Policy(ScriptedEngine({"Question?": "7"}, p_improve=0.5, p_degrade=0.5), 0),
            critique=critique("default"),
            chains=2,
            iterations=4,
            temperature=0.6,
        )
    )
    many = [t for t in chains(p_improve=0.5, p_degrade=0.5) if t.metadata["chain"] < 2]
    assert [t.samples for t in few] == [t.samples for t in many]


@pytest.mark.parametrize(("p_ic", "p_ci"), [(0.3, 0.1), (0.1, 0.3)])
def test_chains_and_their_vote_go_where_the_formulas_say(p_ic, p_ci):
    problems, voters, n = 50, 9, 5
    groups = scripted(problems, voters, n, seed=2, p_improve=p_ic, p_degrade=p_ci)
    shares = solutions_of(groups, voters)
    for stage in (1, n):
        p = right_after(stage, 0.5, p_ic, p_ci)
        assert abs(shares[:, stage].mean() - p) <= 3 * math.sqrt(p * (1 - p) / (problems * voters))
    solved = np.mean([a[vote(a, window=1)].verdict.status == "correct" for a in groups])
    expected = vote_right(right_after(n, 0.5, p_ic, p_ci), voters)
    assert abs(solved - expected) <= 3 * math.sqrt(expected * (1 - expected) / problems)
    assert (solved > shares[:, n].mean()) == (p_ic > p_ci)


def test_stopping_when_verified_pays_only_with_a_verifier_that_can_tell():
    for fpr, pays in ((0.7, False), (0.0, True)):
        rates = {"p_improve": 0.3, "p_degrade": 0.1, "tpr": 0.9, "fpr": fpr}
        groups = scripted(40, 6, 8, start=0.3, **rates)
        assert (stopped(groups, 6).mean() > solutions_of(groups, 6)[:, -1].mean()) == pays
        wrong, right = review_rates(groups)
        assert wrong == pytest.approx(fpr, abs=0.05)
        assert right == pytest.approx(0.9, abs=0.05)
