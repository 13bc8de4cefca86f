"""Which candidate is a problem's answer, by hand values; accuracy over tokens of candidates that share samples."""

from __future__ import annotations

import pytest

from selfimprove.report.curve import Point, baselines, curve, sampled_tokens, trace, worth
from selfimprove.report.metrics import maj_at_k, round_metrics
from selfimprove.types import Attempt, Problem, Sample, Status, Trajectory, Verdict
from selfimprove.verify.answers import best, last, vote, weighted
from selfimprove.verify.equality import canonical
from selfimprove.verify.math import check


def attempt(answer: str | None, stage: int = 0, reward: float = 0.0, status: Status = "wrong", *samples: Sample):
    verdict = Verdict("t", status, reward, answer)
    return Attempt(Problem("p", "?"), Trajectory("p", list(samples), {"stage": stage}), verdict)


def sample(seed: int, tokens: int) -> Sample:
    return Sample([0], [seed] * tokens, [0.0] * tokens, "", "stop", seed)


def test_the_vote_is_of_the_last_stages_there_are():
    group = [attempt("1", 0), attempt("1", 0), attempt("1", 1), attempt("2", 1), attempt("2", 3), attempt("3", 3)]
    assert vote(group) == 0
    assert vote(group, window=1) == 4, "a tie goes to the answer that was there first"
    assert vote(group, window=2) == 3
    assert vote(group, window=3) == 0, "stage 2 is not there, and does not count"
    assert vote(group, window=99) == 0


def test_white_space_is_no_difference_and_what_states_nothing_does_not_vote():
    assert vote([attempt(None), attempt("1 2"), attempt("3"), attempt(" 1  2")]) == 1
    assert vote([attempt(None), attempt(None)]) is None
    assert vote([]) is None


def test_the_best_is_the_first_of_the_highest_reward():
    group = [attempt("1", reward=0.2), attempt("2", reward=0.7), attempt("3", reward=0.7), attempt("4", reward=-1)]
    assert best(group) == 1
    assert best([]) is None


def test_the_last_is_of_the_last_stage():
    assert last([attempt("1", 0), attempt("2", 2), attempt("3", 2), attempt("4", 1)]) == 1
    assert last([attempt("1")]) == 0
    assert last([]) is None


@pytest.mark.parametrize("rule", [vote, best, last, weighted])
def test_no_rule_looks_at_what_is_right(rule):
    group = [attempt("1", 0, 0.5), attempt("2", 1, 0.1), attempt("2", 1, 0.9)]
    turned = [attempt(a.verdict.extracted, i > 0, a.verdict.reward, "correct") for i, a in enumerate(group)]
    assert rule(group) == rule(turned)


def test_a_shared_sample_is_paid_for_once_on_the_way():
    draft, one, two = sample(1, 10), sample(2, 5), sample(3, 7)
    group = [
        attempt("1", 0, 0, "correct", draft),
        attempt("2", 1, 0, "wrong", draft, one),
        attempt("2", 2, 0, "wrong", draft, one, two),
    ]
    right = [True, False, False]
    assert trace(group, right, last) == {0: Point(10, True), 1: Point(15, False), 2: Point(22, False)}
    assert trace(group, right, vote) == {0: Point(10, True), 1: Point(15, True), 2: Point(22, False)}
    assert sampled_tokens(group) == 22


def test_a_problem_that_came_to_an_end_keeps_its_answer():
    traces = [{0: Point(10, True)}, {0: Point(20, False), 2: Point(60, True)}, {}]
    rows = curve(traces)
    assert [row["stage"] for row in rows] == [0, 2]
    assert [row["tokens"] for row in rows] == [10, pytest.approx(70 / 3)]
    assert [row["accuracy"] for row in rows] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_plain_samples_of_as_many_tokens():
    group = [attempt("1", 0, 0, "wrong", sample(1, 4)), attempt("1", 0, 0, "wrong", sample(2, 4))]
    group.append(attempt("2", 0, 1, "correct", sample(3, 4)))
    assert [worth(group, tokens) for tokens in (0, 4, 4.5, 8, 9, 12, 50)] == [1, 1, 2, 2, 3, 3, 3]
    right = [False, False, True]
    rules = {"maj": vote, "best": best}
    assert baselines(group, right, 8, rules) == {"maj": False, "best": False, "pass": False}
    assert baselines(group, right, 9, rules) == {"maj": False, "best": True, "pass": True}


SAME = [  # a gold answer, notations of it, and another answer in two notations
    ("1/2", ["1/2", "0.5", "0.50", "\\frac12", "50\\%"], ["2", "2.0"]),
    ("1000", ["1000", "1,000", "1000.0", "1 thousand"], ["7", "7.00"]),
    ("5", ["5", "\\$5", "5 dollars", "x = 5"], ["6", "x=6"]),
    ("2\\sqrt{2}", ["\\sqrt{8}", "2\\sqrt{2}", "\\frac{4}{\\sqrt{2}}"], ["\\sqrt{12}", "2\\sqrt3"]),
    ("x^2+2x+1", ["(x+1)^2", "x^2+2x+1", "1+2x+x^2"], ["x^2-1", "(x+1)(x-1)"]),
    ("\\{1,2\\}", ["1, 2", "\\{2,1\\}", "2 \\text{ and } 1"], ["3, 1", "\\{1,3\\}"]),
    ("\\text{Monday}", ["\\text{monday}", "Monday"], ["Tuesday", "\\text{Tuesday}"]),
]


@pytest.mark.parametrize(("gold", "right", "other"), SAME)
def test_a_vote_counts_notations_of_one_answer_together_as_the_verdicts_do(gold, right, other):
    right = [answer for answer in right if "\\%" not in answer]  # 50% is 50 and 0.5, which are two answers to a vote
    outcomes = [check(f"\\boxed{{{answer}}}", gold, {}) for answer in [*other, *right, right[0]]]
    assert [o.status for o in outcomes] == ["wrong"] * len(other) + ["correct"] * (len(right) + 1)
    forms = [canonical(o.extracted) for o in outcomes]
    assert len(set(forms)) == 2
    assert len(set(forms[: len(other)])) == 1
    group = [attempt(o.extracted, status=o.status) for o in outcomes]
    assert vote(group) == len(other)
    assert maj_at_k([[a.verdict for a in group]], len(group)).value == 1
    assert round_metrics([group], kept=())["explore/distinct_answers"] == 2


def test_different_answers_are_not_one_vote():
    apart = [
        "1e-7",
        "2e-7",
        "0.333",
        "1/3",
        "2^{100}",
        "2^{100}+1",
        "(1,2)",
        "(2,1)",
        "room 12",
        "12",
        "1 2",
        "12 x",
        "<",
        ">",
    ]
    assert len({canonical(answer) for answer in apart}) == len(apart)
    assert [canonical(answer) for answer in ("", " ? ", "...")] == [None] * 3
