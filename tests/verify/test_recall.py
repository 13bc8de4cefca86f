"""The recall of a set of answers."""

from __future__ import annotations

import pytest

from selfimprove.verify.recall import recall, reference


@pytest.mark.parametrize(
    ("text", "answers", "status", "reward"),
    [
        ("finish(p, q)", ["p", "q"], "correct", 1.0),
        ("finish(Q, the P, r)", ["p", "q"], "correct", 1.0),
        ("so finish(p)", ["p", "q"], "wrong", 0.5),
        ("finish(p) no, finish(r)", ["p"], "wrong", 0.0),
        ("finish()", ["p"], "wrong", 0.0),
        ("p", ["p"], "unparseable", 0.0),
        ("finish(p", ["p"], "unparseable", 0.0),
    ],
)
def test_recall_is_of_the_last_finish(text: str, answers: list[str], status: str, reward: float) -> None:
    outcome = recall(text, answers[0], {"answers": answers})
    assert (outcome.status, outcome.reward) == (status, reward)
    if len(answers) == 1:
        assert recall(text, answers[0], {}).reward == reward


def test_the_gold_answers_pass() -> None:
    assert recall(reference("p", {"answers": ["p", "q"]}), "p", {"answers": ["p", "q"]}).status == "correct"
    assert recall(reference("7", {}), "7", {}).status == "correct"
    assert recall("finish(7)", None, {}).status == "error"
