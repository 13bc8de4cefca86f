import pytest

from selfimprove.verify.choice import check, reference
from selfimprove.verify.consensus import read

CITIES = ["York", "New York", "Paris", "a harbour"]


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "(b)",
        "B.",
        "b) ",
        "**B**",
        "New York",
        "the new york!",
        "B) New York",
        "Option B",
        "The answer is (B)",
        "The answer is B.",
        "The answer is (B) because (A) is in England.",
        "The answer is B, for C is in France.",
        "The answer is B because it rhymes.",
        "Answer: New York",
        "I should say A. No: C. \\boxed{\\text{B}}",
        "The answer is $B$.",
        "The answer is A? Wait. The answer is (B) New York.",
        "It must be New York, of all of these.",
        "So option B is the one I take",
    ],
)
def test_the_option_is_named_by_letter_or_text(text):
    outcome = check(text, "B", {"options": CITIES})
    assert (outcome.status, outcome.reward, outcome.extracted) == ("correct", 1.0, "B")
    assert check(text, "new york", {"options": CITIES}) == outcome
    assert check(text, "C", {"options": CITIES}).status == "wrong"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no option"),
        ("I cannot say.", "no option"),
        ("E", "no option"),
        ("The answer is Z.", "no option"),
        ("It is (A) or (B).", "A and B"),
        ("The answer is York or Paris", "A and C"),
        ("The answer is (B) Paris", "B and C"),
        ("(A) or (B)", "A and B"),
        ("Yorkshire", "no option"),
    ],
)
def test_none_or_several_options_are_unparseable(text, reason):
    outcome = check(text, "B", {"options": CITIES})
    assert (outcome.status, outcome.reward, outcome.reason) == ("unparseable", 0.0, f"chooses {reason}")


def test_an_article_is_not_option_a():
    assert check("A harbour", "D", {"options": CITIES}).status == "correct"
    assert check("The answer is a large town", "A", {"options": CITIES}).status == "unparseable"
    assert check("A", "A", {"options": CITIES}).status == "correct"


@pytest.mark.parametrize(
    ("gold", "metadata"),
    [
        (None, {"options": CITIES}),
        ("E", {"options": CITIES}),
        ("London", {"options": CITIES}),
        ("A", {}),
        ("A", {"options": []}),
        ("same", {"options": ["same", "Same"]}),
        ("A", {"options": [1, 2]}),
    ],
)
def test_a_gold_answer_that_names_no_single_option_is_an_error(gold, metadata):
    for text in ("A", "same", ""):
        assert (check(text, gold, metadata).status, check(text, gold, metadata).reward) == ("error", 0.0)


def test_numbers_as_options():
    options = ["3", "13", "1.3", "-3"]
    for letter, option in zip("ABC", options, strict=False):
        assert check(f"The answer is {option}.", letter, {"options": options}).status == "correct"
        assert check(f"{letter}) {option}", letter, {"options": options}).status == "correct"


@pytest.mark.parametrize("gold", ["A", "D", "New York", "a harbour"])
def test_the_reference_states_the_gold_answer(gold):
    assert check(reference(gold, {"options": CITIES}), gold, {"options": CITIES}).status == "correct"


def test_a_letter_counts_although_another_option_has_the_same_text():
    options = ["healthy", "ill", "healthy", "old"]
    assert check("The answer is A) healthy.", "A", {"options": options}).status == "correct"
    assert check("The answer is A) ill.", "A", {"options": options}).status == "unparseable"


METALS = ["iron", "copper", "zinc", "lead"]
DENIED = [  # texts that do not choose B
    "The answer is not B.",
    "The answer isn't B",
    "The answer isn\u2019t B",
    "Answer: It is not B.",
    "The answer cannot be B.",
    "It can't be B.",
    "The correct answer is certainly not (B)",
    "Not B",
    "not copper",
    "B is wrong.",
    "(B) is not correct.",
    "Copper is incorrect",
    "I do not think it is B.",
    "I would rule out B.",
    "Neither A nor B",
    "Anything but B",
    "B? No.",
    "A wrong answer is B.",
    "If the answer is B, we fail.",
    "The answer is B. No wait, B is wrong.",
    "\u7b54\u6848\u4e0d\u662fB",
    "<think>The answer is B",
    "<think>B</think> I do not know.",
    "The answer is A or B",
    "A, B",
    "Options A and B are both fine",
    "A) iron B) copper C) zinc D) lead",
]


@pytest.mark.parametrize("text", DENIED)
def test_an_option_that_is_denied_or_only_considered_is_not_chosen(text):
    assert check(text, "B", {"options": METALS}).status == "unparseable"


@pytest.mark.parametrize(
    "text",
    [
        "Not B, but D.",
        "D, not B",
        "D rather than B",
        "It is not B. The answer is D.",
        "Answer: rules out C, leaving D",
        "It cannot be A, B or C, so D.",
        "A is wrong. B is wrong. C is wrong. So D.",
        "I first thought B, but B is wrong. D is correct.",
        "It isn't iron, copper or zinc; it's lead.",
        "Eliminate A, B, and C. D remains.",
    ],
)
def test_what_remains_is_chosen(text):
    outcome = check(text, "D", {"options": METALS})
    assert (outcome.status, outcome.extracted) == ("correct", "D")


@pytest.mark.parametrize(
    "text",
    [
        "(B) copper. Explanation: (A) is magnetic, (C) is cheap.",
        "**(B) copper**\n\n**Explanation:** (A) is magnetic; (D) is heavy.",
        "B\n\nExplanation: iron rusts, so it is not iron.",
        "B \u2014 A is magnetic and C is cheap",
        "B is correct, since A and C do not conduct.",
        "Copper is correct, since iron rusts.",
        "I would pick B over A.",
        "A rusts, C is weak, D is soft.\n\n**B**",
        "The answer is B. Note that A is a common distractor.",
        "The answer is B. This answer is consistent with the facts on A and C.",
        "ANSWER IS B. A is incorrect.",
        "Answer: B\n\nwhere \\boxed{\\Delta A \\ll D}.",
        "Answer: B\n\nso \\boxed{C = D^2}",
        "<think>A? C?</think>\nB",
        "B\n\nQuestion: Which is heavy?\nAnswer: D",
        "\u7b54\u6848\u662fB\u3002",
        "\uff22",
        "\u9009B",
        "2",
        "(2)",
        "Option 2",
        "The answer is 2.",
    ],
)
def test_the_choice_is_told_from_what_is_said_about_the_others(text):
    outcome = check(text, "B", {"options": METALS})
    assert (outcome.status, outcome.extracted) == ("correct", "B")
    assert check(text, "D", {"options": METALS}).status == "wrong"
    assert read(text, {"options": METALS}, "none") == "B", "a vote reads it alike"


def test_a_number_is_a_label_only_where_no_option_is_a_number():
    assert check("The answer is 3", "2", {"options": METALS}).status == "wrong"
    assert check("C", "3", {"options": METALS}).status == "correct"
    numbers = {"options": ["1", "3", "2", "4"]}
    assert check("2", "C", numbers).status == "correct"
    assert check("2", "B", numbers).status == "wrong"
    assert check("The answer is 5", "D", numbers).status == "unparseable"


def test_true_and_false_are_denied_as_others_are():
    both = {"options": ["True", "False"]}
    assert check("The statement is not true.", "A", both).status == "unparseable"
    assert check("It is true.", "A", both).status == "correct"
    unknown = {"options": ["yes", "no", "not enough information", "cannot be determined"]}
    assert check("The answer is not enough information.", "C", unknown).status == "correct"
    assert check("The answer cannot be determined.", "D", unknown).status == "correct"
