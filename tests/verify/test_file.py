import json
import subprocess

import pytest

from selfimprove.errors import ConfigError
from selfimprove.types import STATUSES, Problem
from selfimprove.verify.file import check_gold, verify_file
from selfimprove.verify.pool import Pool
from tests.conftest import SCRIPT
from tests.waiting import PATIENCE

MATH = "selfimprove.verify.math.check"
CHOICE = "selfimprove.verify.choice.check"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_verdict_for_each_row_in_order_and_counts_by_status(tmp_path):
    rows = [{"id": f"p{i}", "gold": str(i % 3), "completion": f"The answer is {i % 2}."} for i in range(50)]
    rows += [{"id": 50, "gold": 7, "completion": "So 7"}, {"id": "none", "completion": "#### 1"}]
    rows += [
        {"id": "long", "gold": "2", "completion": "\\boxed{9^{9^{9^{9}}}}"},
        {"id": "mute", "gold": "1", "completion": ""},
    ]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    counts = verify_file(file, MATH, {}, out, workers=2, seconds=4)
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert found[0] == {
        "id": "p0",
        "status": "correct",
        "reward": 1.0,
        "extracted": "0",
        "step_rewards": None,
        "reason": None,
    }
    equal = sum(i % 2 == i % 3 for i in range(50))
    assert counts == {"correct": equal + 1, "wrong": 50 - equal, "unparseable": 1, "timeout": 1, "error": 1}
    assert list(counts) == list(STATUSES)
    assert [row["status"] for row in found[50:]] == ["correct", "error", "timeout", "unparseable"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_metadata_is_the_other_keys_and_rows_go_to_standard_output(tmp_path, capsys):
    rows = [
        {"id": 1, "gold": "B", "completion": "(B)", "options": ["x", "y"]},
        {"id": 2, "gold": "B", "completion": "x", "metadata": {"options": ["x", "y"]}},
    ]
    verify_file(write(tmp_path / "rows.jsonl", rows), CHOICE, {})
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], row["status"]) for row in lines] == [(1, "correct"), (2, "wrong")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"gold": "1", "completion": "x"}', "`id` is None, not text or a whole number"),
        ('{"id": 1, "gold": "1"}', "`completion` is None, not text"),
        ('{"id": 1, "gold": "1", "completion": ["x"]}', "`completion` is .*, not text"),
        ('{"id": 1, "gold": ["1"], "completion": "x"}', "`gold` is .*, not text or a number"),
        ('{"id": 1, "gold": true, "completion": "x"}', "`gold` is True"),
        ('{"id": 1, "completion": "x", "metadata": 3}', "`metadata` is 3, not an object"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_leaves_no_output(tmp_path, line, words):
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"id": 1, "gold": "1", "completion": "1"}\n\n' + line + "\n")
    out.write_text("what was there\n")
    with pytest.raises(ConfigError, match=f"rows.jsonl, line 3: {words}"):
        verify_file(file, MATH, {}, out)
    assert out.read_text() == "what was there\n"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_file_or_folder_is_the_users_error(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"id": 1, "gold": "1", "completion": "1"}])
    with pytest.raises(ConfigError, match=r"nothing\.jsonl: No such file"):
        verify_file(tmp_path / "nothing.jsonl", MATH, {})
    with pytest.raises(ConfigError, match=r"nowhere.*: No such file"):
        verify_file(file, MATH, {}, tmp_path / "nowhere" / "out.jsonl")


def test_gold_answers_that_fail_their_own_verifier_are_found():
    nested = "(" * 60 + "x" + ")" * 60  # the parser takes minutes
    golds = ["5", "\\frac{1}{2}", "1/0", nested, None, "$3$"]
    problems = [Problem(str(i), "?", gold) for i, gold in enumerate(golds)]
    with Pool(MATH, {"fallback": "none"}, workers=1, seconds=4) as pool:
        failing = check_gold(problems, pool)
    assert [(problem.id, outcome.status) for problem, outcome in failing] == [
        ("2", "error"),
        ("3", "timeout"),
        ("4", "error"),
    ]


def test_a_check_that_reads_no_gold_answer_has_none_to_test():
    with Pool("selfimprove.verify.colouring.check", {}, workers=1) as pool:
        assert check_gold([Problem("a", "?", None)], pool) == []


def test_a_reader_that_goes_away_is_no_mistake_of_the_user(cli, tmp_path):
    rows = [{"id": i, "gold": "7", "completion": "The answer is 7."} for i in range(5000)]
    (tmp_path / "big.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = f"{SCRIPT} verify big.jsonl verifier=consensus | head -1"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(done.stdout)["status"] == "correct"
    assert "selfimprove:" not in done.stderr
    assert "Traceback" not in done.stderr
