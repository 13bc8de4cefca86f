from typing import get_args

import pytest

from selfimprove.datasets import arithmetic as data
from selfimprove.verify.arithmetic import check, evaluate, parse, reference

CHAIN = data.Chain(7, (("+", 5), ("*", 3), ("-", 8)))
PROBLEM = data.problem(CHAIN, "solve")


@pytest.mark.parametrize("form", get_args(data.Form))
def test_right_solutions_and_references_pass(form):
    for problem in data.load(form=form, train_size=100, heldout_size=50, seed=0):
        chain = data.Chain.of(problem.metadata)
        text = data.expression(chain) if form == "expression" else data.solution(chain)
        if form == "choice":
            text = text.replace(f"The answer is {chain.answer}.", f"The answer is {problem.gold}.")
        outcome = check(text, problem.gold, problem.metadata, form=form)
        assert (outcome.status, outcome.reward) == ("correct", 1.0)
        assert form == "expression" or outcome.step_rewards == [1.0] * (len(chain.steps) + 1)
        stated = reference(problem.gold, problem.metadata, form=form)
        assert check(stated, problem.gold, problem.metadata, form=form).status == "correct"


def test_a_line_about_an_option_is_right_when_it_says_yes_to_the_result_alone():
    metadata = {**PROBLEM.metadata, "options": ["36", "27", "28", "30"]}
    text = "(7 + 5) * 3 - 8 = 28\nA) 36 28 no\nB) 27 28 yes\nC) 28 28 yes\nD) 30 27 no\nThe answer is C."
    outcome = check(text, "C", metadata, form="choice")
    assert (outcome.status, outcome.step_rewards) == ("correct", [1, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("text", "status", "rewards"),
    [
        ("7 + 5 = 12\n12 * 3 = 36\n36 - 8 = 28\nThe answer is 28.", "correct", [1, 1, 1, 1]),
        ("5 + 7 = 12\n3 * 12 = 36\n36 - 8 = 28\nThe answer is 28.", "correct", [1, 1, 1, 1]),
        ("7 + 5 = 12\n12 * 3 = 46\n46 - 8 = 38\nThe answer is 38.", "wrong", [1, 0, 0, 0]),
        ("7 + 5 = 12\n12 - 8 = 4\nThe answer is 4.", "wrong", [1, 0, 0]),  # true, but not what was asked
        ("(7 + 5) * 3 = 36\n36 - 8 = 28\nThe answer is 28.", "correct", [1, 1, 1]),
        ("7 + 5 * 3 = 22\n36 - 8 = 28\nThe answer is 28.", "correct", [0, 1, 1]),  # precedence
        ("3 * (5 + 7) - 8 = 28\nThe answer is 28.", "correct", [1, 1]),
        ("(7 + 5) * 3 = 35\n35 - 8 = 27\nThe answer is 27.", "wrong", [0, 0, 0]),
        ("7 + 5 = 12\n12 * 3 = 36\n8 - 36 = 28\nThe answer is 28.", "correct", [1, 1, 0, 1]),
        ("The answer is 28.", "correct", [1]),
        ("The answer is 27.\nThe answer is 28.", "correct", [0, 1]),
        ("The answer is 28.\nThe answer is 27.", "wrong", [1, 0]),
        ("The answer is 128.", "wrong", [0]),
        ("7 + 5 = 12\n\nwell = 3\n28", "unparseable", [1, 0, 0]),
        ("7 + 5 = 12\n12 * 3 = 36\n36 - 8 = 28\n28 + 1 = 29", "unparseable", [1, 1, 1, 0]),
        ("", "unparseable", []),
    ],
)
def test_status_and_step_rewards(text, status, rewards):
    outcome = check(text, PROBLEM.gold, PROBLEM.metadata)
    assert (outcome.status, outcome.step_rewards) == (status, rewards)
    assert outcome.reward == float(status == "correct")


def test_missing_gold_is_computed_and_a_foreign_one_is_an_error():
    assert check("The answer is 28.", None, PROBLEM.metadata).status == "correct"
    assert check("The answer is B.", "B", PROBLEM.metadata).status == "error"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("((7 + 5) * 3) - 8", "correct"),
        ("Here it is:\n(7+5)*3-8", "correct"),
        ("7 + 5 * 3 - 8", "wrong"),
        ("28 if True else 0", "unparseable"),
        ("2 ** 9 ** 9 ** 9", "unparseable"),
        ("56 // 2", "unparseable"),
        ("56 / 2", "unparseable"),
        ("-(-28)", "unparseable"),
        ("__import__('os').getpid()", "unparseable"),
        ("exit()", "unparseable"),
        ("7(5)", "unparseable"),
        ("(28,)", "unparseable"),
        ("(" * 5000 + "28" + ")" * 5000, "unparseable"),
        ("28" + " + 0" * 5000, "unparseable"),
        ("9" * 100, "unparseable"),
        ("()", "unparseable"),
        ("7 +", "unparseable"),
        ("", "unparseable"),
    ],
)
def test_expressions(text, status):
    assert check(text, "28", PROBLEM.metadata, form="expression").status == status


def test_largest_allowed_expression_is_cheap():
    node = parse("9999*" * 39 + "9999")
    assert node is not None
    assert evaluate(node) == 9999**40
