"""The scripted engine against closed forms, each within three standard deviations, with fixed seeds."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest

from selfimprove.policy import Policy, Request
from selfimprove.policy.scripted import ANSWER, NO, VERIFY, YES, ScriptedEngine
from selfimprove.types import Sample

GOLD = {"What is 2 + 2?": "4", "What is 2 + 2? Then add 3.": "7"}
EASY, LONG = GOLD
DRAWS = 2000


@pytest.fixture
def engine() -> ScriptedEngine:
    rates = {EASY: 0.7, LONG: 0.25}
    return ScriptedEngine(GOLD, rates, p_improve=0.3, p_degrade=0.1, tpr=0.9, fpr=0.2, wrong_values=4)


def draw(engine: ScriptedEngine, *turns: str) -> list[Sample]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return asyncio.run(Policy(engine, seed=0, scope=turns).sample(messages, n=DRAWS))


def near(count: int, p: float) -> bool:
    return abs(count - DRAWS * p) <= 3 * math.sqrt(DRAWS * p * (1 - p))


@pytest.mark.parametrize(("problem", "p"), [(EASY, 0.7), (LONG, 0.25)])
def test_solve(engine: ScriptedEngine, problem: str, p: float) -> None:
    counts = Counter(sample.text for sample in draw(engine, problem))
    assert near(counts[ANSWER + GOLD[problem]], p)
    wrong = [text for text in counts if text != ANSWER + GOLD[problem]]
    assert len(wrong) == 4
    assert all(near(counts[text], (1 - p) / 4) for text in wrong)


def test_refine(engine: ScriptedEngine) -> None:
    right, wrong = ANSWER + "4", ANSWER + "6"
    counts = Counter(s.text for s in draw(engine, EASY, wrong, "Look again and mend what is wrong."))
    assert set(counts) == {right, wrong}
    assert near(counts[right], 0.3)
    counts = Counter(s.text for s in draw(engine, f"{EASY}\nA student wrote: {right}\nImprove on it."))
    assert near(counts[right], 0.9)
    assert len(counts) == 5
    counts = Counter(s.text for s in draw(engine, EASY, right, "Again.", wrong, "And again."))
    assert near(counts[right], 0.3)  # the last answer counts


def test_verify(engine: ScriptedEngine) -> None:
    for said, rate in (("4", 0.9), ("5", 0.2)):
        counts = Counter(s.text for s in draw(engine, EASY, ANSWER + said, VERIFY))
        assert set(counts) == {YES, NO}
        assert near(counts[YES], rate)


def test_wrong_answers_that_are_given() -> None:
    engine = ScriptedEngine({"Q": "B"}, 0.4, p_degrade=1.0, wrong_values={"Q": ["A", "D"]})
    counts = Counter(s.text for s in draw(engine, "Q"))
    assert near(counts[ANSWER + "B"], 0.4)
    assert near(counts[ANSWER + "D"], 0.3)
    assert set(counts) == {ANSWER + letter for letter in "ABD"}
    again = draw(engine, "Q", ANSWER + "B", "Q Review your previous responses.")  # the question a second time
    assert {s.text for s in again} == {ANSWER + "A", ANSWER + "D"}


def test_logprobs_are_those_of_the_outcome(engine: ScriptedEngine) -> None:
    for sample in draw(engine, LONG)[:50]:
        p = 0.25 if sample.text == ANSWER + "7" else 0.75 / 4
        assert sum(sample.logprobs) == pytest.approx(math.log(p))
        assert sample.logprobs == asyncio.run(engine.logprobs(sample.prompt_ids, sample.completion_ids))
        assert "".join(map(chr, sample.completion_ids[:-1])) == sample.text
    ids = engine.render(LONG)
    assert asyncio.run(engine.logprobs(ids, engine.render("maybe")))[-1] == -math.inf


def test_certainties_and_strangers() -> None:
    sure = ScriptedEngine(GOLD, 1.0)
    assert {s.text for s in draw(sure, EASY)} == {ANSWER + "4"}
    assert {s.text for s in draw(ScriptedEngine(GOLD, 0.0), EASY)} == {ANSWER + "5"}
    with pytest.raises(ValueError, match="none of the 2 problems"):
        asyncio.run(sure.sample(Request(tuple(sure.render("Who are you?")), 9, seed=0)))
    with pytest.raises(ValueError, match="no answer"):
        draw(sure, EASY + " " + VERIFY)
