"""Dialogues of several turns by fixed words, on a scripted policy of known rates."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from selfimprove.generate.dialogue import Dialogue
from selfimprove.generate.turns import by_turn, turns
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, END, TURN, ScriptedEngine
from selfimprove.studies.solving import attempts, solve
from selfimprove.types import Problem, Trajectory
from selfimprove.verify import Context, Outcome
from selfimprove.verify.answers import last, vote
from selfimprove.verify.turns import each

ASK = "Look again."
PROBLEM = Problem("p", "Question?", "7")


def check(text: str, problem: Problem) -> Outcome:
    if ANSWER not in text:
        return Outcome("timeout" if text == "slow" else "unparseable", 0.0, reason=text)
    right = text == f"{ANSWER}7"
    return Outcome("correct" if right else "wrong", float(right), text.removeprefix(ANSWER))


async def waited(text: str, problem: Problem) -> Outcome:
    return check(text, problem)


def run(solver: Any, engine: ScriptedEngine, **options: Any) -> list[Trajectory]:
    policy = Policy(engine, 0, max_tokens=64).for_problem(PROBLEM)
    return asyncio.run(solver(PROBLEM, policy, ask=ASK, check=waited, **options))  # type: ignore[no-any-return]


def said(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_each_turn_goes_on_from_the_one_before() -> None:
    engine = ScriptedEngine({"Question?": "7"}, 0.0, p_improve=1.0)
    (one, two) = run(turns, engine, turns=3, n=2)
    assert [s.text for s in one.samples] == [f"{ANSWER}8", f"{ANSWER}7", f"{ANSWER}7"]
    for before, after in zip(one.samples, one.samples[1:], strict=False):
        assert after.prompt_ids == [*before.prompt_ids, *before.completion_ids, *engine.turn(ASK, True)]
    assert {s.seed for s in one.samples}.isdisjoint(s.seed for s in two.samples)


def test_a_dialogue_stops_at_the_first_right_answer_only_where_that_is_asked() -> None:
    engine = ScriptedEngine({"Question?": "7"}, 0.0, p_improve=1.0)
    assert [len(t.samples) for t in run(turns, engine, turns=4, until_right=True)] == [2]
    found = run(by_turn, engine, turns=4, until_right=True)
    assert [len(t.samples) for t in found] == [1, 2, 2, 2]
    assert [t.metadata["stage"] for t in found] == [1, 2, 3, 4]


def test_the_policy_sees_only_as_many_answers_as_are_shown() -> None:
    engine = ScriptedEngine({"Question?": "7"}, 0.0, wrong_values=9)
    (talk,) = run(turns, engine, turns=4, shown=1)
    answers = [s.text for s in talk.samples]
    for turn in (1, 2, 3):
        assert said(talk.samples[turn].prompt_ids) == f"Question?{answers[turn - 1]}{END}{TURN}{ASK}"
    (talk,) = run(turns, engine, turns=4, shown=2)
    answers = [s.text for s in talk.samples]
    both = f"{answers[1]}{END}{TURN}{ASK}{answers[2]}{END}{TURN}{ASK}"
    assert said(talk.samples[3].prompt_ids) == f"Question?{both}"


def test_a_dialogue_can_show_nothing_of_what_was_said() -> None:
    engine = ScriptedEngine({"Question?": "7"}, 0.0)

    async def talk() -> Dialogue:
        dialogue = Dialogue(Policy(engine, 0), "Question?")
        await dialogue.reply()
        dialogue.user(ASK)
        dialogue.show(0)
        return dialogue

    assert said(asyncio.run(talk()).ids) == "Question?"


def test_a_full_window_ends_the_dialogue_and_not_the_run() -> None:
    engine = ScriptedEngine({"Question?": "7"}, 0.0, max_length=60)
    (talk,) = run(turns, engine, turns=9)
    assert len(talk.samples) == 2
    assert [len(t.samples) for t in run(by_turn, engine, turns=4)] == [1, 2, 2, 2]


def test_accuracy_by_turn_is_that_of_the_rates() -> None:
    """With p right at first, i mended and d spoilt a turn: p_t = p_{t-1} (1 - d) + (1 - p_{t-1}) i."""
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(600)]
    engine = ScriptedEngine({str(p.prompt): "7" for p in problems}, 0.4, p_improve=0.3, p_degrade=0.1, wrong_values=3)

    async def solver(problem: Problem, policy: Policy, check: Any) -> list[Trajectory]:
        return await by_turn(problem, policy, turns=4, ask=ASK, check=check)

    groups = attempts(problems, solve(solver, engine, problems, check=check), check)
    right = np.array([[a.verdict.status == "correct" for a in group] for group in groups])
    expected = 0.4
    for turn in range(4):
        assert abs(right[:, turn].mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 600)
        expected = expected * 0.9 + (1 - expected) * 0.3
    assert np.mean([right[i][last(group)] for i, group in enumerate(groups)]) == right[:, -1].mean()
    voted = [vote(group) for group in groups]
    assert all(i is not None for i in voted)


@pytest.mark.parametrize(
    ("texts", "status", "reward", "steps"),
    [
        ([f"{ANSWER}8", f"{ANSWER}7"], "correct", 1.0, [0.0, 1.0]),
        ([f"{ANSWER}7", f"{ANSWER}8"], "wrong", 0.0, [1.0, 0.0]),
        ([f"{ANSWER}7", "what?"], "unparseable", -1.0, [1.0, -1.0]),
        (["what?", f"{ANSWER}7"], "correct", 1.0, [-1.0, 1.0]),
        (["slow", f"{ANSWER}7"], "timeout", 0.0, [0.0, 1.0]),
    ],
)
def test_every_turn_has_a_reward(texts: list[str], status: str, reward: float, steps: list[float]) -> None:
    engine = ScriptedEngine({"Question?": "7"})
    (blank,) = run(turns, engine, turns=1)
    made = []
    for text in texts:
        (copy,) = run(turns, engine, turns=1)
        copy.samples[0].text = text
        made += copy.samples
    calls = []

    async def counted(text: str, problem: Problem) -> Outcome:
        calls.append(text)
        return check(text, problem)

    context = Context(Policy(engine, 0), counted, None)
    group = [Trajectory("p", made), Trajectory("p", made[:1]), blank]
    found = asyncio.run(each(PROBLEM, group, context, unparseable=-1.0))
    assert (found[0].status, found[0].reward, found[0].step_rewards) == (status, reward, steps)
    assert found[1].step_rewards == steps[:1]
    assert len(calls) == len(set(calls)), "a turn that two dialogues share is checked once"
    assert asyncio.run(each(PROBLEM, group, context))[0].step_rewards == [max(0.0, step) for step in steps]
