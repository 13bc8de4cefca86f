import unicodedata

import pytest

from selfimprove.verify import Outcome, last_box, stated
from selfimprove.verify.text import exact, f1, normalise, reference


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I add them.\nThe answer is 5 apples. That is all.", "5 apples"),
        ("The final answer is: $\\boxed{5}$. I hope it is correct.", "5"),
        ("3 * 6 = 18\n#### 18\n", "18"),
        ("**Answer:** 5", "5"),
        ("**The answer is 3.5.**", "3.5"),
        ("Answer:\n\\[\nx + 1\n\\]\nDone.", "\\[\nx + 1\n\\]"),
        ("The answer to the first question is St. Louis. It lies on a river.", "St. Louis"),
        ("The answer is U.S. dollars.", "U.S. dollars"),
        ("The answer is \\boxed{1}, no, the answer is 2", "2"),
        ("#### 7\nBut the answer is 8, so \\boxed{9}", "9"),
        ("#### 7, then \\boxed{9}, then\n#### 10", "10"),
        ("First \\boxed{4}, then \\boxed{5", "4"),
        ("Let me think. The answer is", None),
        ("\\boxed{\\frac{1}{\\sqrt{2}}} and \\{2\\}", "\\frac{1}{\\sqrt{2}}"),
        ("nothing here: 5", None),
    ],
)
def test_the_last_convention_wins(text, expected):
    assert stated(text) == expected


def test_boxes_nest_and_a_great_many_open_ones_are_read_in_one_pass():
    assert last_box("a {\\boxed{x \\fbox{\\{} y}} }") == (3, "x \\fbox{\\{} y")
    assert last_box("\\boxed{" * 20_000) == (-1, None)
    assert last_box("\\boxed{" * 20_000 + "1" + "}" * 20_000)[0] == 0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("A.N. Other", "other"),
        ("«a»", '"a"'),
        ("\u201cHamlet\u201d \u2014 \u00bfy t\u00fa?", "hamlet y t\u00fa"),
        ("Ünlü, an", "ünlü"),
        ("?", "?"),
    ],
)
def test_normalisation_is_squads(text, normal):
    assert normalise(text) == normal


def test_numbers_keep_sign_and_point():
    assert exact("-3", "3", {}).status == exact("1.3", "13", {}).status == exact(".5", "5", {}).status == "wrong"
    assert exact("It costs $1,000.", "it costs 1000", {}).status == exact("-$.5", "-.5", {}).status == "correct"


def test_exact_takes_any_of_the_gold_answers():
    assert exact("The answer is The Eiffel tower.", "Eiffel Tower", {}) == Outcome("correct", 1.0, "eiffel tower")
    assert exact("Paris", "London", {"answers": ["london", "the Paris"]}).status == "correct"
    assert exact("Tower Eiffel", "Eiffel Tower", {}) == Outcome("wrong", 0.0, "tower eiffel")
    assert exact(" \n", "London", {}).status == "unparseable"


@pytest.mark.parametrize("check", [exact, f1])
@pytest.mark.parametrize(
    ("gold", "metadata"), [(None, {}), (" ", {}), ("x", {"answers": ["y", ""]}), ("x", {"answers": [3]})]
)
def test_a_gold_answer_without_words_is_an_error_whatever_the_text(check, gold, metadata):
    for text in ("x", "", "None"):
        assert (check(text, gold, metadata).status, check(text, gold, metadata).reward) == ("error", 0.0)


def test_f1_counts_words_and_the_threshold_divides_correct_from_wrong():
    # 2 words in common, 3 in the answer and 4 in the gold: P = 2/3, R = 2/4, F1 = 4/7
    outcome = f1("The answer is big red dog", "red dog dog barks", {})
    assert (outcome.status, outcome.reward) == ("correct", pytest.approx(4 / 7))
    assert f1("The answer is big red dog", "red dog dog barks", {}, threshold=0.6).status == "wrong"
    assert f1("cat", "dog", {}) == Outcome("wrong", 0.0, "cat")
    assert f1("dog", "cat", {"answers": ["a cat", "dog days"]}).reward == pytest.approx(2 / 3)


@pytest.mark.parametrize("gold", ["Paris", "the U.S. Dr. Who. And more", "a", "?", "#5"])
def test_the_reference_states_the_gold_answer(gold):
    assert exact(reference(gold, {}), gold, {}).status == "correct"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("Z\u00fcrich", unicodedata.normalize("NFD", "Z\u00fcrich")),
        (unicodedata.normalize("NFD", "\uc11c\uc6b8"), "\uc11c\uc6b8"),
        ("\u6771\u4eac", "\u300c\u6771\u4eac\u300d\u3002"),
        ("\u6771\u4eac", "\u7b54\u3048\u306f\u6771\u4eac"),
        ("don't", "don\u2019t"),
        ('"Hamlet"', "\u201eHamlet\u201c"),
        ("well-known", "well\u2011known"),
        ("-3", "The answer is \u22123."),
        ("12", "\uff11\uff12"),
        ("5", "\u0665"),
        ("New York", "New\u00a0York\u200b"),
        ("office", "o\ufb03ce"),
        ("A", "The answer is A."),
        ("Paris", "Paris. This answer is correct."),
        ("Paris", "The answer is Paris.\nThis answer is supported by the passage."),
        ("Paris", "<think>London?</think>Paris"),
        ("Paris", "Paris\n\nQuestion: Capital of Italy?\nAnswer: Rome"),
    ],
)
def test_one_text_typed_in_several_ways_and_what_does_not_count(gold, text):
    assert exact(text, gold, {}).status == "correct"


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("3", "\u22123"),
        ("10\u00b2", "102"),
        ("\u00bd", "12"),
        ("Caf\u00e9", "Cafe"),
        ("Paris", "The answer is not Paris."),
        ("Paris", "Paris? The answer is not Paris."),
        ("Paris", "<think>Paris"),
        ("Rome", "Paris\n\nQuestion: Capital of Italy?\nAnswer: Rome"),
    ],
)
def test_other_texts_and_denied_or_unfinished_ones(gold, text):
    assert exact(text, gold, {}).status in ("wrong", "unparseable")
    assert f1(text, gold, {}).status in ("wrong", "unparseable")


def test_the_answers_of_a_row_are_a_list_a_text_or_squads_dict():
    squad = {"answers": {"text": ["Paris", "the city of Paris"], "answer_start": [3, 9]}}
    assert exact("City of Paris", "Paris", squad).status == "correct"
    assert exact("text", "Paris", squad).status == "wrong"
    assert exact("paris", "London", {"answers": "Paris"}).status == "correct"
    assert exact("p", "London", {"answers": "Paris"}).status == "wrong"
    assert exact("Paris", "Paris", {"answers": {"text": [], "answer_start": []}}).status == "correct"


@pytest.mark.parametrize("gold", ["nan", "NaN"])
def test_a_missing_gold_answer_is_an_error_and_no_word(gold):
    assert exact("NaN", gold, {}).status == f1("nan", gold, {}).status == "error"
    assert exact("nan", "x", {"answers": ["y", gold]}).status == "error"
