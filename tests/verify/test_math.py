import itertools
import random
from decimal import Decimal

import pytest
from math_verify import LatexExtractionConfig, parse, verify

from selfimprove.verify import choice, math
from selfimprove.verify.cleaning import clean
from selfimprove.verify.math import check, compare_short, reference
from selfimprove.verify.pool import Pool
from selfimprove.verify.text import exact

CORRECT = [  # completion, gold
    ("The answer is 18 dollars per day.", "18"),
    ("3 * 6 = 18\n#### $1,000", "1000"),
    ("\\boxed{\\$1{,}234{,}567.50}", "1234567.5"),
    ("\\boxed{12\\,345}", "12345"),
    ("The answer is $-5$ degrees.", "-5"),
    ("The answer is \u22125.", "-5"),
    ("the answer is - 5", "-5"),
    ("\\boxed{007}", "7"),
    ("\\boxed{-0.0}", "0"),
    ("\\boxed{.5}", "\\frac{1}{2}"),
    ("\\boxed{\\frac12}", "0.5"),
    ("\\boxed{\\dfrac{2}{4}}", "1/2"),
    ("The answer is 3 1/2.", "\\frac{7}{2}"),
    ("The answer is 2e5", "200000"),
    ("\\boxed{2\\times 10^{5}}", "200,000"),
    ("The answer is 1.5 million", "1500000"),
    ("\\boxed{50\\%}", "50"),
    ("\\boxed{50\\%}", "0.5"),
    ("The answer is 12.5 percent", "12.5\\%"),
    ("\\boxed{0.333333}", "1/3"),
    ("\\boxed{\\{1,2\\}}", "\\{2,1\\}"),
    ("\\boxed{5 \\text{ or } 6}", "6, 5"),
    ("The answer is $x=1$ and $y=2$.", "x=1,y=2"),
    ("\\boxed{x = 5}", "5"),
    ("\\boxed{5}", "x=5"),
    ("\\boxed{[1,2)}", "[1, 2)"),
    ("\\boxed{(-\\infty,2)\\cup(3,\\infty)}", "(-\\infty, 2) \\cup (3, \\infty)"),
    ("\\boxed{\\sqrt{8}}", "2\\sqrt{2}"),
    ("\\boxed{(x+1)^2}", "x^2+2x+1"),
    ("\\boxed{5\\text{ cm}^2}", "5"),
    ("\\boxed{\\text{5 apples}}", "5"),
    ("\\boxed{90^\\circ}", "90"),
    ("\\boxed{5!}", "120"),
    ("\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("The answer is Monday.", "\\text{monday}"),
    ("\\boxed{\\text{(B)}}", "B"),
    ("The answer is $5$ because $2+3 \\ne 6$.", "5"),
    ("The answer is that 3 \u00d7 6 = 18 apples", "18"),
    ("I add 12 and 3.\nThat leaves 1,234.", "1234"),
    ("So 10-3", "3"),
    ("so it is -3 degrees", "-3"),
    ("that is 75%", "75%"),
]
WRONG = [
    ("The answer is 18 dollars.", "19"),
    ("#### 18\nThe answer is 19", "18"),
    ("\\boxed{[1,2]}", "[1,2)"),
    ("\\boxed{(2,1)}", "(1,2)"),
    ("\\boxed{y=5}", "x=5"),
    ("\\boxed{5}", "5, 6"),
    ("\\boxed{-\\infty}", "\\infty"),
    ("\\boxed{3.14}", "\\pi"),
    ("\\boxed{0.333}", "1/3"),
    ("\\boxed{5}", "5!"),
    ("\\boxed{2xyz}", "2"),
    ("\\boxed{1/0}", "5"),
    ("The answer is 5 million", "5"),
    ("The answer is Tuesday.", "Monday"),
]
UNPARSEABLE = [
    "",
    "I do not know.",
    "The answer is",
    "\\boxed{}",
    "\\boxed{?}",
    "The answer is either 5 or 6.",
    "The answer is 5 or maybe 6.",
    "The answer is 5 apples or 6 apples.",
    "The answer is between 4 and 5",
    "The answer is that John has 5 apples and 3 pears",
    "The answer is what we were asked to find out in the first place",
    "\\boxed{" + "5" * 501 + "}",
]


@pytest.mark.parametrize(("text", "gold"), CORRECT)
def test_equal_answers_in_another_form_are_correct(text, gold):
    outcome = check(text, gold, {})
    assert (outcome.status, outcome.reward) == ("correct", 1.0), outcome


@pytest.mark.parametrize(("text", "gold"), WRONG)
def test_other_answers_are_wrong(text, gold):
    outcome = check(text, gold, {})
    assert (outcome.status, outcome.reward) == ("wrong", 0.0), outcome


@pytest.mark.parametrize("text", UNPARSEABLE)
def test_no_answer_or_several_are_unparseable(text):
    outcome = check(text, "5", {})
    assert (outcome.status, outcome.reward) == ("unparseable", 0.0), outcome
    assert outcome.reason


def test_without_a_fallback_a_bare_number_is_no_answer():
    assert check("So it is 5", "5", {}).status == "correct"
    assert check("So it is 5", "5", {}, fallback="none").status == "unparseable"
    assert check("#### 5", "5", {}, fallback="none").status == "correct"


@pytest.mark.parametrize(
    "gold", [None, "", " ", "?", "\\frac{1}{", "}", "1/0", "5 or maybe 6", "we shall see about it all in time"]
)
def test_a_gold_answer_that_cannot_be_read_is_an_error_even_for_the_same_text(gold):
    for text in ("\\boxed{5}", "no answer", f"#### {gold}", f"\\boxed{{{gold}}}"):
        outcome = check(text, gold, {})
        assert (outcome.status, outcome.reward) == ("error", 0.0), outcome
        assert outcome.reason


@pytest.mark.parametrize("gold", [gold for _, gold in CORRECT])
def test_the_reference_states_the_gold_answer(gold):
    assert check(reference(gold, {}), gold, {}).status == "correct"


def test_the_answer_is_shown_as_it_was_read():
    assert check("The answer is $1,234.50 a day.", "1234.5", {}).extracted == "1234.50"


def long_way(gold, answer):
    return verify(math._parse(gold), math._parse(answer), timeout_seconds=None, raise_on_error=True)


def numbers(rng):
    """A number as people and models write them."""
    n = rng.choice([rng.randrange(20), rng.randrange(1000), rng.randrange(10**6), rng.randrange(10**12)])
    places = rng.randrange(1, 9)
    decimal = f"{n}.{rng.randrange(10**places):0{places}d}"
    sign = rng.choice(["", "", "", "-", "+", "- ", "\u2212"])
    unit = rng.choice(["kg", "dollars", "apples", "cm", "degrees", "m", "hours", "years old", "%", "\\%", " percent"])
    plain = [str(n), decimal, f"{n:,}", f"{float(decimal):,.2f}", f"00{n}", f"{n}.000", decimal[decimal.index(".") :]]
    other = [
        f"{n}/{rng.randrange(1, 50)}",
        f"{n % 100}e{rng.randrange(-6, 7)}",
        f"\\frac{{{n}}}{{{rng.randrange(1, 20)}}}",
    ]
    return sign + rng.choice([*plain, *plain, f"${n:,}", f"{n} {unit}", f"{decimal} {unit}", *other])


def neighbour(rng, text):
    """The same number written otherwise, or one that is a little off, by less or more than math-verify's rounding."""
    cleaned = clean(text)
    if not math._is_number(cleaned) or "%" in cleaned:
        return rng.choice([text, text + "%", f"\\text{{{text}}}"])
    off = rng.choice(["0", "0.000", "1", "-1", "1e-3", "1e-5", "-1.1e-5", "2e-5", "1e-6", "5e-7", "1e-7", "1e-9"])
    return f"{Decimal(cleaned) + Decimal(off):f}"


def test_the_short_way_says_what_math_verify_says():
    rng = random.Random(11)
    pairs = [(gold, rng.choice([neighbour(rng, gold), numbers(rng)])) for gold in (numbers(rng) for _ in range(800))]
    edges = (
        "0 -0 -0.0 1 1.00 1.0000001 0.999999 0.9999999 100% 1% 0.01 0.5 1/2 50% 50 50.0 50.000011 0.333333 0.0000005"
    )
    pairs += itertools.product([*edges.split(), "999999999999999", "999999999999998"], repeat=2)
    decided = 0
    for gold, answer in ((clean(gold), clean(answer)) for gold, answer in pairs):
        short = compare_short(gold, answer)
        if short is not None:
            decided += 1
            assert short == long_way(gold, answer), (gold, answer)
    assert decided > len(pairs) / 2  # the rest went to math-verify


def test_cleaning_keeps_what_math_verify_reads_by_itself():
    texts = [
        "5",
        "-5",
        "1,234",
        "12.50",
        "5 apples",
        "\\$18",
        "5\\text{ cm}",
        "\\frac{1}{2}",
        "1/2",
        "x=5",
        "\\{1,2\\}",
    ]
    texts += [
        "0.5",
        "(1,2)",
        "[1,2)",
        "x^2+1",
        "\\sqrt{2}",
        "2\\pi",
        "1,2,3",
        "90^\\circ",
        "10^{5}",
        "2:3",
        "3\\frac12",
    ]
    for gold, answer in itertools.product(texts, texts):
        read = [parse(f"\\boxed{{{t}}}", [LatexExtractionConfig()], parsing_timeout=None) for t in (gold, answer)]
        expected = verify(*read, timeout_seconds=None)
        assert (check(f"\\boxed{{{answer}}}", gold, {}).status == "correct") == expected, (gold, answer)


def test_an_answer_that_hangs_the_parser_is_a_timeout_and_no_other_is_touched():
    items = [("\\boxed{5}", str(i), {}) for i in range(20)]
    items[7:7] = [("\\boxed{9^{9^{9^{9}}}}", "2", {}), ("\\boxed{100000000!}", "3", {})]
    with Pool("selfimprove.verify.math.check", {}, workers=2, seconds=4) as pool:
        outcomes = list(pool.run(items))
    assert [outcome.status for outcome in outcomes[7:9]] == ["timeout"] * 2
    assert [outcome.status for outcome in outcomes[:7] + outcomes[9:]] == ["wrong"] * 5 + ["correct"] + ["wrong"] * 14


def test_what_was_compared_is_not_compared_again_and_the_verdict_is_the_same(monkeypatch):
    calls = []

    def counted(*arguments, **options):
        calls.append(arguments)
        return verify(*arguments, **options)

    monkeypatch.setattr(math, "verify", counted)
    math.compare.cache_clear()
    math._fault.cache_clear()
    pairs = [*CORRECT, *WRONG]
    first = [check(text, gold, {}) for text, gold in pairs]
    assert len(calls) > 20
    calls.clear()
    again = [check(text, gold, {}) for text, gold in pairs]
    assert calls == []
    uncached = [math.compare.__wrapped__(*key) for key in (("2\\sqrt{2}", "\\sqrt{8}"), ("2\\sqrt{2}", "\\sqrt{9}"))]
    assert uncached == [math.compare("2\\sqrt{2}", "\\sqrt{8}"), math.compare("2\\sqrt{2}", "\\sqrt{9}")]
    math.compare.cache_clear()
    assert first == again == [check(text, gold, {}) for text, gold in pairs]


def test_what_raised_is_tried_again(monkeypatch):
    def failing(*arguments, **options):
        raise ValueError("no comparison")

    math.compare.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(math, "verify", failing)
        with pytest.raises(ValueError, match="no comparison"):
            math.compare("2\\sqrt{2}", "\\sqrt{8}")
    assert math.compare("2\\sqrt{2}", "\\sqrt{8}") is True


SCRIPTS = [  # completion, gold, whether it is that
    ("\u6240\u4ee5\u7b54\u6848\u662f5\u3002", "5", True),
    ("\u7b54\u6848\uff1a\uff15", "5", True),
    ("\u7b54\u6848\u4e3a5\u4e2a\u82f9\u679c", "5", True),
    ("\u5171\u670912.5\u5343\u514b\u3002", "12.5", True),
    ("\u7b54\u6848\u4e3a5\u4e07\u5143", "50000", True),
    ("\u7b54\u3048\u306f5\u500b\u3067\u3059", "5", True),
    ("\uc815\ub2f5\uc740 5\uc785\ub2c8\ub2e4.", "5", True),
    ("\u0627\u0644\u0625\u062c\u0627\u0628\u0629 \u0647\u064a \u0665", "5", True),
    ("\u0909\u0924\u094d\u0924\u0930: \u096b", "5", True),
    ("La r\u00e9ponse est 5, car 2 + 3 = 5 et 7 > 5.", "5", True),
    ("\u5c0f\u660e\u67093\u4e2a\uff0c\u73b0\u5728\u4e00\u5171\u67095\u4e2a\u3002", "3", False),
    ("\u5148\u7b97\u5f976\uff0c\u7b54\u6848\u662f5\u3002", "6", False),
    ("\u7b54\u6848\u662f15\u3002", "5", False),
    ("\u7b54\u6848\u4e0d\u662f5\u3002", "5", False),
    ("\u7b54\u6848\u4e3a5\u4e07\u5143", "5", False),
    ("5\u3067\u306f\u306a\u304f6\u3067\u3059", "5", False),
]
REMARKS = [
    ("\\boxed{12}. This answer makes sense.", "12", True),
    ("#### 12\nThis answer is a positive integer.", "12", True),
    ("\\boxed{12}\nThe answer is less than 20, as expected.", "12", True),
    ("The answer is 12.\nThis answer is correct, since 12 = 3*4 and 4 = 2*2.", "12", True),
    ("#### 12\n#### Verification\n3 * 4 = 12, and 12 < 20", "12", True),
    ("\\boxed{15}, but the answer is wrong. Redoing it: \\boxed{12}", "12", True),
    ("### Final Answer\n12", "12", True),
    ("I put the answer in \\boxed{}: \\boxed{12}", "12", True),
    ("So the answer is 12. If the answer is 15 we fail.", "12", True),
    ("The answer is not 15 but 12.", "12", True),
    ("<answer> 12 </answer>", "12", True),
    ("The answer is odd.", "odd", True),
    ("\\boxed{15}, but the answer is wrong. Redoing it: \\boxed{12}", "15", False),
    ("\\boxed{12}\nActually the answer is not 12.", "12", False),
    ("The answer is not 12.", "12", False),
    ("The answer cannot be 12.", "12", False),
    ("It isn't 12.", "12", False),
    ("So 12 is wrong.", "12", False),
    ("The answer is 15, not 12.", "12", False),
    ("#### 12\nBut wait, the answer is 15", "12", False),
    ("<think>I guess the answer is \\boxed{12}", "12", False),
    ("<think>The answer is 12.</think>", "12", False),
    ("<think>12?</think> The answer is 15", "12", False),
]
NEXT = "\n\nQuestion: A robe takes 2 bolts of blue and half that of white. How many?\nAnswer: 2 + 1 = 3\n#### 3"
RUN_ON = [
    ("9 eggs at $2 is $18.\n#### 18" + NEXT, "18", True),
    ("so 9 * 2 = 18" + NEXT, "18", True),
    ("#### 18\n\nHuman: And 1 + 2?\n\nAssistant: The answer is 3.", "18", True),
    ("The answer is 18.<|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>The answer is 3.", "18", True),
    ("#### 18\nProblem 2: How many bolts? 3", "18", True),
    ("Question: 6 ducks with 3 eggs?\nAnswer: 18", "18", True),
    ("Question 1: yes\n\nQuestion 2: no\n\nTheir sum is \\boxed{18}", "18", True),
    ("Question 5.1: How many? The answer is 6.\nQuestion 5.2: In all? The answer is 18.", "18", True),
    ("9 eggs at $2 is $18.\n#### 18" + NEXT, "3", False),
    ("so 9 * 2 = 18" + NEXT, "3", False),
]
BOXES = [
    ("The primes are \\boxed{3}, \\boxed{5}, \\boxed{7}.", "3, 5, 7", True),
    ("So $x = \\boxed{3}$, $x = \\boxed{5}$ or $x = \\boxed{7}$.", "3, 5, 7", True),
    ("- \\boxed{3}\n- \\boxed{2}", "2,3", True),
    ("We find \\boxed{3}. So the answer is \\boxed{3}.", "3", True),
    ("\\boxed{\\frac{1}{2}} = \\boxed{0.5}", "1/2", True),
    ("\\boxed{5}. That is wrong; correcting, \\boxed{7}.", "7", True),
    ("\\boxed{5}. That is wrong; correcting, \\boxed{7}.", "5", False),
    ("The roots are \\boxed{2} and \\boxed{3}.", "3", False),
    ("\\boxed{2}, \\boxed{3}", "23", False),
    ("\\boxed{1728}", "1331 and 1728", False),
]
LAST = [
    ("So the probability is $\\frac{3}{4}$.", "3/4", True),
    ("That makes \\(x = 2\\sqrt{10}\\).", "2\\sqrt{10}", True),
    ("So the probability is $\\frac{3}{4}$.", "4", False),
    ("It is $\\frac{1+\\sqrt{5}}{2}$", "2", False),
    ("The answer is 5, since 2 + 3 = 5.", "5", True),
    ("The domain is \\boxed{(2,12) \\cup (12,102)}", "(2, 12) \\cup (12, 102)", True),
]
UNITS = [
    *(
        (f"\\boxed{{{answer}}}", "5", True)
        for answer in ["5~\\text{cm}", "5\\ \\mathrm{m/s}", "5^\\circ\\text{C}", "5 \u2103"]
    ),
    *(
        (f"The answer is {answer}.", "5", True)
        for answer in ["5 \u00b0C", "5\u00b0", "5 m\u00b2", "5 m^2", "5km", "5 m/s\u00b2"]
    ),
    *(
        (f"The answer is {answer}.", "5", True)
        for answer in ["\u20b95", "5\u00a2", "US$5", "Rs. 5", "5 USD", "5 sq ft"]
    ),
    ("The answer is 10:30 AM.", "10:30", True),
    ("The answer is 10:30 p.m.", "22:30", True),
    ("\\boxed{12:00}", "12:00", True),
    ("The answer is 25%.", "25", True),
    ("The answer is 5\u00b2.", "25", True),
    ("The answer is 6 m\u00b2.", "5", False),
    ("The answer is 5\u00b2.", "5", False),
    ("\\boxed{5n}", "5", False),
    ("\\boxed{0.25}", "25", False),
    ("The answer is 10:30 AM.", "10:30 PM", False),
    ("\\boxed{1:00}", "12:00", False),
]
EXACT = [  # gold, answer, whether they are equal
    ("1.6\\times 10^{-19}", "0.16\\times 10^{-18}", True),
    ("1.6\\times 10^{-19}", "9.1\\times 10^{-31}", False),
    ("0.0000001", "1e-7", True),
    ("1e-7", "2e-7", False),
    ("6.02\\times 10^{23}", "602000000000000000000000", True),
    ("6.02e23", "6.03e23", False),
    ("\\frac{100!+1}{101!}", "\\frac{1+100!}{101!}", True),
    ("\\frac{100!+1}{101!}", "\\frac{1}{101!}", False),
    ("\\frac{1}{2004!}", "\\frac{1}{2006!}", False),
    ("2^{100}", "2^{100}+1", False),
    ("\\sqrt{3+2\\sqrt{2}}", "1+\\sqrt{2}", True),
    ("\\sqrt{10^{40}+1}", "10^{20}", False),
    ("1 - \\frac{1}{\\mathrm{e}}", "\\frac{e-1}{e}", True),
    ("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}", False),
    ("1/3", "0.333333", True),
    ("2/3", "0.666666", True),
    ("1/3", "0.3333", False),
    ("\\pi", "3.14159265", True),
    ("100\\pi", "314.159", True),
    ("100\\pi", "314.16", False),
    ("3", "2.9999999999999996", True),
    ("1000000.1", "1000000.2", False),
    ("\\{10^{-7}, 2\\}", "\\{2, 0.0000001\\}", True),
    ("\\{10^{-7}, 2\\}", "\\{2, 0.0000002\\}", False),
    ("(10^{-8}, 1)", "(10^{-9}, 1)", False),
    ("12.5\\%", "12.5", True),
    ("0.125", "12.5\\%", True),
]


@pytest.mark.parametrize(("text", "gold", "same"), [*SCRIPTS, *REMARKS, *RUN_ON, *BOXES, *LAST, *UNITS])
def test_a_statement_counts_where_it_can_be_an_answer(text, gold, same):
    assert (check(text, gold, {}).status == "correct") == same, check(text, gold, {})


@pytest.mark.parametrize(("gold", "answer", "same"), EXACT)
def test_numbers_are_equal_exactly_or_to_six_significant_digits(gold, answer, same):
    assert check(f"\\boxed{{{answer}}}", gold, {}).status == ("correct" if same else "wrong")
    assert check(f"\\boxed{{{gold}}}", answer, {}).status == ("correct" if same else "wrong")


@pytest.mark.parametrize("gold", ["nan", "NaN"])
def test_nan_is_never_a_correct_answer(gold):
    assert check("\\boxed{NaN}", gold, {}).status == "error"
    assert check("The answer is nan.", "5", {}).status == "unparseable"


@pytest.mark.parametrize(
    "unit", ["-", "the answer is ", "\n---- ", "* ", "answer: 5\n", "Question: 1\n", "\\boxed{1}, ", "<answer>", "B, "]
)
def test_a_looping_sample_hangs_no_check(unit):
    text = unit * (20_000 // len(unit))
    assert check(text, "17", {}).status != "correct"
    assert exact(text, "17", {}).status != "correct"
    assert choice.check(text, "B", {"options": ["x1", "x2"]}).status != "correct" or unit == "B, "


@pytest.mark.parametrize("digits", ["0", "7", "007", "1,234", "0.50", "123456789012345678901234567890"])
def test_a_number_is_read_as_sympy_reads_it(digits):
    from latex2sympy2_extended import latex2sympy2
    from sympy import Number

    plain = digits.replace(",", "")
    expected = Number(plain.lstrip("0") or "0") if plain.isdigit() else Number(plain)
    found = latex2sympy2._Latex2Sympy.parse_number(None, digits)
    assert (type(found), found) == (type(expected), expected)
