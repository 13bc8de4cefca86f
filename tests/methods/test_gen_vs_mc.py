"""The loop in both spaces, the figures against hand values and closed forms, and what is refused."""

from __future__ import annotations

import asyncio
import math
from functools import partial

import numpy as np
import pytest

from selfimprove.config import check_solver, compose
from selfimprove.datasets.arithmetic import load
from selfimprove.errors import ConfigError
from selfimprove.methods.gen_vs_mc import flip_rate, generate, lead, turns
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.studies.costs import Answers
from selfimprove.studies.gen_vs_mc import REVIEW, mean, scripted
from selfimprove.studies.solving import solve
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict


def attempt(stage, right, answer, problem="p"):
    verdict = Verdict(f"{problem}/{stage}", "correct" if right else "wrong", float(right), answer)
    return Attempt(Problem(problem, ""), Trajectory(problem, [], {"stage": stage}), verdict)


def chain(problem, *answers):
    """Answers of one problem, "28" being right."""
    return [attempt(i, answer == "28", answer, problem) for i, answer in enumerate(answers)]


def test_figures_of_three_problems_by_hand():
    found = turns([chain("a", "28", "28", "30"), chain("b", "1", " 28", "28"), chain("c", "5", None, None)])
    # "b" says " 28", which is read as wrong above though it is the same answer
    assert found.right.tolist() == [[True, True, False], [False, False, True], [False, False, False]]
    assert found.accuracy.tolist() == [1 / 3, 1 / 3, 1 / 3]
    assert found.cumulative.tolist() == [1 / 3, 1 / 3, 2 / 3]
    assert found.transitions.tolist() == [[1, 1], [1, 3]]
    assert found.flipped.tolist() == [0.5, 0.5, 0.0]
    assert found.flipped_first.tolist() == [0, 0, 0]
    assert found.inertia.tolist() == [0.5, 0.5, 0.0], "no answer is not the same as no answer"
    assert found.drift.tolist() == [0, 2 / 3, 1]


def test_a_full_window_keeps_the_last_answer():
    found = turns([chain("a", "28"), chain("b", "1", "28", "28")])
    assert found.right.tolist() == [[True, True, True], [False, True, True]]


def test_rates_of_flips_are_over_the_answers_that_could():
    seen = [turns([chain("a", "28", "1", "1"), chain("b", "28", "28", "28")])]
    lost, mended = flip_rate(seen, True), flip_rate(seen, False)
    assert lost is not None
    assert lost.value == pytest.approx(1 / 3)
    assert mended is not None
    assert mended.value == 0
    assert flip_rate([turns([chain("a", "28", "28")])], False) is None


def talk(space, problem, golds, **options):
    engine = ScriptedEngine(golds, 0.5, p_improve=0.5, p_degrade=0.5)
    solver = partial(generate, space=space, rounds=2, ask="{question} Say it.", review=REVIEW, **options)
    (found,) = solve(solver, engine, [problem])
    return found


def said(ids):
    return "".join(map(chr, ids))


@pytest.mark.parametrize("space", ["open", "choice"])
def test_each_round_has_the_whole_conversation_before_it(space):
    (problem,) = load(form="choice", levels=[2], train_size=0, heldout_size=1, seed=0)
    question = problem.metadata["question"]
    found = talk(space, problem, {question: str(problem.gold)})
    assert [t.metadata["stage"] for t in found] == [0, 1, 2]
    for i, trajectory in enumerate(found):
        assert trajectory.samples == found[-1].samples[: i + 1]
    first, second, third = found[-1].samples
    assert third.prompt_ids[: len(second.prompt_ids)] == second.prompt_ids
    assert said(third.prompt_ids).count("Review your previous responses") == 2
    assert first.text in said(second.prompt_ids)
    listed = f"A) {problem.metadata['options'][0]}"
    assert (listed in said(third.prompt_ids)) == (space == "choice")
    assert said(third.prompt_ids).count(listed) == (3 if space == "choice" else 0)
    assert ("Say it." in said(first.prompt_ids)) == (space == "open")


def test_an_open_problem_without_options_is_asked_as_it_is():
    (problem,) = load(levels=[2], train_size=0, heldout_size=1, seed=0)
    found = talk("open", problem, {problem.metadata["question"]: str(problem.gold)})
    assert said(found[0].samples[0].prompt_ids) == problem.prompt[-1]["content"]


def test_the_margin_is_between_the_two_best_letters():
    engine = ScriptedEngine({"Q": "B"}, 0.6, wrong_values={"Q": ["A", "C"]})  # B .6, A .2, C .2, D never
    reply = Sample(engine.render("Q"), [], [], "I think. The answer is C", "stop", 0)
    policy = Policy(engine, 0)
    whole = reply.text
    reply.text = "The answer is C"
    assert asyncio.run(lead(policy, reply, "The answer is ", 3)) == pytest.approx(math.log(0.6 / 0.2))
    assert asyncio.run(lead(policy, reply, "I choose ", 3)) is None
    reply.text = whole
    assert math.isnan(asyncio.run(lead(policy, reply, "The answer is ", 3))), "the script never says such a thing"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=asdiv", "method.generate.space=choice"], r"gen_vs_mc\.generate needs options, .* dataset=asdiv"),
        (["method.generate.space=choice"], r"needs options, which .* dataset=arithmetic"),
        (["method.generate.margin=x"], r"generate\.margin: is between options"),
        (
            ["dataset.form=choice", "method.generate.space=choice", "method.generate.margin=x", "engine=flow"],
            "needs logprobs, which engine=flow",
        ),
    ],
)
def test_what_is_refused_before_a_request(overrides, message):
    config = compose(["method=gen_vs_mc", *overrides], needs=False)
    with pytest.raises(ConfigError, match=message):
        check_solver(config)


def test_both_spaces_are_accepted_where_there_are_options():
    for space in ("open", "choice"):
        for data in ("openbookqa", "arithmetic"):
            form = ["dataset.form=choice"] if data == "arithmetic" else []
            words = ["method=gen_vs_mc", f"dataset={data}", f"method.generate.space={space}", *form]
            check_solver(compose(words, needs=False))
    check_solver(compose(["method=rejection_sampling", "generate=gen_vs_mc"]))


@pytest.mark.parametrize("space", ["open", "choice"])
def test_known_flip_rates_are_measured(space):
    claims = list(scripted(space, 100))
    assert len(claims) == 2
    assert all(claim.holds for claim in claims), claims


def test_an_arm_has_its_figures():
    arm = [Answers([chain("a", "28", "1"), chain("b", "1", "28")], 0.0)]
    assert np.array_equal(mean(arm, "accuracy"), [0.5, 0.5])
