import asyncio
import json

import pytest

from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify import Context, arithmetic, math
from selfimprove.verify.consensus import consensus, form, read
from selfimprove.verify.equality import canonical

NUMBERS = [
    ["1,000", "1000", "1000.0", "$1{,}000$", "$1000 dollars", "\\$1,000", "1 thousand", "10^3".replace("10^3", "1000")],
    ["1/2", "0.5", "\\frac{1}{2}", ".5", "\\boxed{0.50}"],
    ["3 1/2", "\\frac{7}{2}", "3.5"],
    ["-7", "\u22127", "- 7.0"],
    ["50%", "50", "50 percent"],
    ["1.5 million", "1,500,000", "1.5e6"],
    ["Paris", "the Paris.", "PARIS"],
    ["(1, 2)", "(1,2)"],
    ["((7 + 5) * 3) - 8", "28"],
]


def samples(*texts):
    return [Trajectory("p", [Sample([], [], [], text, "stop", 0)]) for text in texts]


def judge(*texts, gold=None, context=None, **options):
    options = {"threshold": 0.5, "reward": "majority", "ties": "first"} | options
    return asyncio.run(consensus(Problem("p", "?", gold), samples(*texts), context, **options))


@pytest.mark.parametrize("group", NUMBERS)
def test_equal_answers_have_one_form(group):
    assert len({form(answer) for answer in group}) == 1, {answer: form(answer) for answer in group}


def test_different_answers_have_different_forms():
    forms = [form(group[0]) for group in NUMBERS]
    assert len(set(forms)) == len(forms)
    assert canonical("1/3") == canonical("0.333333")  # six places
    assert canonical("1/3") != canonical("0.3333")
    assert canonical("1/0") == "1/0"
    assert canonical(" . ") is None


def test_what_is_read_from_a_completion():
    assert read("5 + 2 = 7\nThe answer is 7.", {}, "none") == "7"
    assert read("so 12\n#### 1,000", {}, "none") == "1000"
    assert read("(7 + 5) * 3", {}, "none") == "36"  # an expression and nothing else
    assert read("7 + 5 = 12\n12 * 3", {}, "none") is None  # cut off
    assert read("it is 12 or so", {}, "none") is None
    assert read("it is 12 or so", {}, "last_number") == "12"
    assert read("The Eiffel Tower", {}, "text") == "eiffel tower"
    options = {"options": ["7", "12", "York"]}
    assert read("The answer is (B).", options, "none") == read("The answer is 12", options, "none") == "B"
    assert read("(A) or (B)", options, "none") is None


def test_the_largest_cluster_is_correct_and_blank_answers_never_vote():
    outcomes = judge("The answer is 4.", "?", "The answer is 1,000.", "#### 1000", "no idea", "\\boxed{1000.0}")
    assert [o.status for o in outcomes] == ["wrong", "unparseable", "correct", "correct", "unparseable", "correct"]
    assert [o.reward for o in outcomes] == [0, 0, 1, 1, 0, 1]
    assert [o.extracted for o in outcomes] == ["4", None, "1000", "1000", None, "1000"]
    assert outcomes[2].reason == "3 of 6 samples agree"


def test_the_threshold_is_a_share_of_all_samples():
    texts = ["The answer is 1.", "The answer is 1.", "?", "??", "???"]
    assert [o.status for o in judge(*texts, threshold=0.4)][:2] == ["correct"] * 2
    assert [o.status for o in judge(*texts, threshold=0.41)][:2] == ["wrong"] * 2


def test_a_tie_goes_to_the_answer_that_was_sampled_first():
    texts = ["The answer is 3.", "The answer is 1.", "The answer is 1.", "The answer is 3."]
    assert [o.status for o in judge(*texts)] == ["correct", "wrong", "wrong", "correct"]
    assert [o.status for o in judge(*texts[::-1], threshold=0)] == ["correct", "wrong", "wrong", "correct"]
    assert [o.status for o in judge(*texts[1:3], *texts[:1], *texts[3:])] == ["correct", "correct", "wrong", "wrong"]


def test_shares_as_rewards():
    texts = ["The answer is 1.", "The answer is 1.", "The answer is 2.", "?"]
    assert [o.reward for o in judge(*texts, reward="share")] == [0.5, 0.5, 0.25, 0.0]


def test_every_answer_in_the_lead_can_be_correct():
    texts = ["The answer is 1.", "The answer is 2.", "The answer is 3.", "The answer is 2.", "The answer is 1."]
    assert [o.status for o in judge(*texts, ties="all", threshold=0.4)] == ["correct"] * 2 + ["wrong"] + ["correct"] * 2


def test_the_data_sets_own_check_reads_answers_and_its_verdict_changes_nothing():
    async def check(text, problem):
        if "hang" in text:
            return math.Outcome("timeout", 0.0)
        return math.check(text, problem.gold, problem.metadata)

    texts = ["so it is 1,000", "makes 1000.0 of them", "then 2", "The answer is 1000. hang"]
    outcomes = judge(*texts, gold="2", context=Context(None, check, None))
    assert [o.status for o in outcomes] == ["correct", "correct", "wrong", "correct"]
    assert outcomes == judge(*texts, gold="1000", context=Context(None, check, None))
    assert [o.status for o in judge(*texts)] == ["unparseable"] * 3 + ["wrong"]  # without it they state nothing
    assert [o.status for o in judge(*texts, fallback="last_number")] == ["correct", "correct", "wrong", "correct"]


def test_expressions_of_one_value_agree():
    async def check(text, problem):
        return arithmetic.check(text, problem.gold, problem.metadata, form="expression")

    chain = arithmetic.Chain(7, (("+", 5), ("*", 3)))
    problem = Problem("p", "?", "36", metadata={"start": 7, "steps": chain.steps})
    group = samples("(7 + 5) * 3", "7 + 5 * 3", "3 * (5 + 7)", "7 +")
    for context in (None, Context(None, check, None)):
        outcomes = asyncio.run(consensus(problem, group, context))
        assert [o.status for o in outcomes] == ["correct", "wrong", "correct", "unparseable"]
        assert [o.extracted for o in outcomes] == ["36", "22", "36", None]


def test_a_file_is_grouped_by_id_in_the_order_of_its_rows(cli, tmp_path):
    said = [("a", "The answer is 5."), ("b", "B"), (7, "x"), ("a", "5"), ("b", "(B)"), ("a", "#### 5.0"), ("b", "A")]
    rows = [{"id": id, "completion": text} | ({"options": ["u", "v"]} if id == "b" else {}) for id, text in said]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("verify", "rows.jsonl", "verifier=consensus", "--out", "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == [id for id, _ in said]
    assert [row["status"] for row in found] == [
        "correct",
        "correct",
        "unparseable",
        "correct",
        "correct",
        "correct",
        "wrong",
    ]
    assert "correct=5 wrong=1 unparseable=1" in done.stderr
    refused = cli("verify", "rows.jsonl", "verifier=judge", check=2)
    assert "asks a model" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
