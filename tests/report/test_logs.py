"""Logs of answers that other programs graded. samples/ has lines of lm-evaluation-harness 0.4.13 (docs/handoff.md)."""

import json
from pathlib import Path

import pytest

from selfimprove.cli import _main
from selfimprove.errors import ConfigError
from selfimprove.report import logs
from selfimprove.report.statistics import mean_over_problems, paired_difference
from tests.report.folders import write_run

SAMPLES = Path(__file__).parent / "samples"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plain(path, verdicts):
    return write(path, [{"problem": f"p{i}", "answer": "x", "verdict": v} for i, v in enumerate(verdicts)])


def test_sample_logs_of_the_harness_have_the_intervals_of_runs():
    found = logs.compare([SAMPLES / "base", SAMPLES / "after"])
    (table,) = found.tables
    right = [
        [json.loads(line)["exact_match"] for line in next((SAMPLES / name).glob("*.jsonl")).read_text().splitlines()]
        for name in ("base", "after")
    ]
    assert table.title == "tiny_arithmetic exact_match (last-number)"
    assert [row[1] for row in table.rows] == [12, 12]
    assert [row[2] for row in table.rows] == [mean_over_problems(values) for values in right]
    difference, expected = table.rows[1][3], paired_difference(right[0], right[1])
    assert (difference.value, difference.n) == (expected.value, 12)
    assert difference.low == pytest.approx(expected.low)
    assert table.rows[0][3] == "baseline"


def test_rows_of_one_problem_are_its_mean_and_problems_are_paired_by_name(tmp_path):
    rows = [{"problem": name, "answer": "1", "verdict": v} for name, v in [("a", True), ("a", False), ("b", True)]]
    one = write(tmp_path / "one.jsonl", rows)
    other = write(
        tmp_path / "other.jsonl",
        [{"id": "b", "status": "wrong"}, {"id": "a", "status": "correct"}, {"id": 7, "status": "timeout"}],
    )
    found = logs.compare([one, other], baseline="/one.jsonl")
    (table,) = found.tables
    assert [row[1] for row in table.rows] == [2, 2]
    assert table.rows[0][2].value == 0.75
    assert table.rows[1][3].value == pytest.approx(((1 - 0.5) + (0 - 1)) / 2)
    assert "1 of the longest are left out" in found.warnings[0]


def test_values_that_are_no_shares_have_no_percent(tmp_path):
    found = logs.compare([plain(tmp_path / "a.jsonl", [3, 5]), plain(tmp_path / "b.jsonl", [4, 5])])
    assert [kind for _, kind in found.tables[0].columns] == ["text", "number", "score", "gain"]
    assert found.tables[0].rows[1][3].value == 0.5


def test_a_run_stands_beside_a_log_of_the_same_problems(tmp_path):
    run = write_run(tmp_path / "run", [[False] * 4, [True, True, False, False]])
    rows = [{"problem": f"test-{i}", "answer": "x", "verdict": i == 0} for i in range(4)]
    found = logs.compare([run, write(tmp_path / "log.jsonl", rows)])
    assert [row[2].value for row in found.tables[0].rows] == [0.5, 0.25]


def test_of_several_logs_of_a_task_the_newest_counts(tmp_path):
    for day, right in ((1, 0.0), (2, 1.0)):
        row = {"doc_id": 0, "doc": {}, "metrics": ["acc"], "acc": right, "filter": "none", "doc_hash": "h"}
        write(tmp_path / f"samples_t_2026-01-0{day}T00-00-00.1.jsonl", [row])
    said: list[str] = []
    log = logs._read(tmp_path, said)
    assert log.figures == {"t acc": {"0": 1.0}}
    assert "of which the newest counts" in said[0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"answer": "x", "verdict": True}], "line 1: `problem` is None"),
        ([{"problem": 1, "verdict": True}, {"problem": 1, "verdict": "yes"}], "line 2: `verdict` is 'yes'"),
        ([[1]], "line 1: not an object"),
        ([{"doc_id": 0, "doc": {}}], "line 1: no `metrics`"),
        ([{"problem": 1, "verdict": float("nan")}], "line 1: verdict is nan"),
        ([], "holds no graded answer"),
        ([{"problem": "other", "verdict": 1}], "no problem in common"),
    ],
)
def test_a_log_that_cannot_be_compared_is_named(tmp_path, rows, words):
    good = plain(tmp_path / "good.jsonl", [True, False])
    with pytest.raises(ConfigError, match=words):
        logs.compare([good, write(tmp_path / "bad.jsonl", rows)])


def test_another_document_under_the_same_number_is_refused(tmp_path):
    row = {"doc_id": 0, "doc": {}, "metrics": ["acc"], "acc": 1.0, "doc_hash": "one"}
    files = [write(tmp_path / "a.jsonl", [row]), write(tmp_path / "b.jsonl", [row | {"doc_hash": "two"}])]
    with pytest.raises(ConfigError, match="problem 0 is another one"):
        logs.compare(files)


def test_the_command_prints_and_exports(tmp_path, capsys):
    assert _main(["compare", str(SAMPLES / "base"), str(SAMPLES / "after"), "--export", str(tmp_path)]) == 0
    assert "paired by problem" in capsys.readouterr().out
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".csv", ".tex"}
    assert _main(["compare", str(SAMPLES / "base"), str(SAMPLES / "after"), "--by", "method"]) == 2
    assert "--by: is for run folders" in capsys.readouterr().err
