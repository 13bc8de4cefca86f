"""Anybody's JSONL: fields by name, gold answers out of longer texts, own or drawn held-out side, and clear errors."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfimprove.datasets.jsonl import load
from selfimprove.errors import ConfigError
from selfimprove.types import Problem


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def sums(first: int, last: int, **more: Any) -> list[dict[str, Any]]:
    return [{"question": f"What is {i} + 1?", "answer": i + 1, **more} for i in range(first, last)]


def run(path: str, **options: Any) -> list[Problem]:
    return load(**{"path": path, "prompt": "{question}", "seed": 0, **options})


def test_one_file_is_divided(tmp_path: Path) -> None:
    problems = run(write(tmp_path / "a.jsonl", sums(0, 60)), heldout_share=0.5)
    assert {p.split for p in problems} == {"train", "test"}
    assert {p.id for p in problems} == {f"row-{i}" for i in range(1, 61)}
    assert all(p.gold == str(int(p.id[4:])) for p in problems)


def test_parquet_gives_the_same_problems(tmp_path: Path) -> None:
    records = sums(0, 20, tests=["assert f(1)"])
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    assert run(str(tmp_path / "a.parquet")) == run(write(tmp_path / "a.jsonl", records))


def test_a_heldout_file_of_its_own(tmp_path: Path) -> None:
    path, heldout = write(tmp_path / "a.jsonl", sums(0, 5)), write(tmp_path / "b.jsonl", sums(5, 8))
    problems = run(path, heldout_path=heldout)
    assert {p.id for p in problems if p.split == "train"} == {f"row-{i}" for i in range(1, 6)}
    assert {p.id for p in problems if p.split == "test"} == {"heldout-1", "heldout-2", "heldout-3"}


def test_fields_by_name_and_the_rest_as_metadata(tmp_path: Path) -> None:
    records = [{"uid": f"x{i}", "task": f"Task {i}", "out": "yes", "tests": ["assert f(1)"], "n": i} for i in range(20)]
    path = write(tmp_path / "a.jsonl", records)
    names = {"prompt_field": "task", "answer_field": "out", "id_field": "uid"}
    problems = sorted(run(path, **names, prompt="Do: {question}"), key=lambda p: p.metadata["n"])
    assert [p.id for p in problems] == [f"x{i}" for i in range(20)]
    assert problems[3].prompt == [{"role": "user", "content": "Do: Task 3"}]
    assert problems[3].gold == "yes"
    assert problems[3].metadata == {"tests": ["assert f(1)"], "n": 3, "question": "Task 3"}


def test_no_gold_answer_where_there_are_tests(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": f"Write f{i}.", "tests": [f"f{i}()"]} for i in range(20)])
    assert {p.gold for p in run(path, answer_field=None)} == {None}


@pytest.mark.parametrize(
    ("answer", "pattern", "gold"),
    [
        ("42", None, "42"),
        ("7 apples", None, "7 apples"),
        ("6 * 7 = 42\n#### 42", None, "42"),
        ("#### wrong mark\nso\n#### 1,000 ", None, "1,000"),
        ("first (A), then (B).", r"\(([A-D])\)", "B"),
    ],
)
def test_the_gold_answer_in_a_longer_text(tmp_path: Path, answer: str, pattern: str | None, gold: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": f"Question {i}", "answer": answer} for i in range(20)])
    problem = run(path, answer_pattern=pattern)[0]
    assert problem.gold == gold
    assert problem.metadata.get("solution") == (answer.strip() if answer != gold else None)


@pytest.mark.parametrize(
    ("record", "options", "said"),
    [
        ({"problem": "2?", "answer": 2}, {}, ["a.jsonl:21: no field 'question'", "'problem', 'answer'"]),
        ({"question": "2?", "solution": 2}, {}, ["a.jsonl:21: no field 'answer'", "dataset.answer_field"]),
        ({"question": "", "answer": 2}, {}, ["a.jsonl:21", "'question'", "empty"]),
        ({"question": ["2?"], "answer": 2}, {}, ["a.jsonl:21", "list"]),
        ({"question": "2?", "answer": True}, {}, ["a.jsonl:21", "bool"]),
        ({"question": "2?", "answer": "so ####"}, {}, ["a.jsonl:21", "####"]),
        ({"question": "2?", "answer": 2}, {"answer_pattern": "= (.+)"}, ["a.jsonl:1", "answer_pattern"]),
        ({"question": "2?", "answer": 2}, {"answer_pattern": "= ("}, ["dataset.answer_pattern", "regular expression"]),
        ({"question": "2?", "answer": 2}, {"answer_pattern": ".+"}, ["dataset.answer_pattern", "group"]),
        ({"question": "2?", "answer": 2, "id": 3}, {"id_field": "id"}, ["'3'", "a.jsonl:4", "a.jsonl:21"]),
        ({"question": "2?", "answer": 2}, {"heldout_path": "none.jsonl"}, ["none.jsonl", "No such file"]),
    ],
)
def test_errors_say_where(tmp_path: Path, record: dict[str, Any], options: dict[str, Any], said: list[str]) -> None:
    records = [{**r, "id": i} for i, r in enumerate(sums(0, 20))]
    with pytest.raises(ConfigError) as refused:
        run(write(tmp_path / "a.jsonl", [*records, record]), **options)
    assert all(words in str(refused.value) for words in said), str(refused.value)
    assert "\n" not in str(refused.value)


def test_squads_answers_are_gold_answers_all_of_them(tmp_path: Path) -> None:
    answers = [{"text": ["Paris", "the city"], "answer_start": [0, 4]}, {"text": ["Rome"], "answer_start": [1]}]
    rows = [{"question": f"Capital {i}?", "answers": found} for i, found in enumerate(answers)]
    files = [write(tmp_path / f"{i}.jsonl", [row]) for i, row in enumerate(rows)]
    problems = run(files[0], heldout_path=files[1], answer_field="answers")
    assert [(p.gold, p.metadata.get("answers")) for p in problems] == [("Paris", ["Paris", "the city"]), ("Rome", None)]


def test_nan_is_no_gold_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "Why?", "answer": float("nan")}])
    with pytest.raises(
        ConfigError, match=r"a\.jsonl:1: field 'answer' .* is no number 'nan'; it must be text or a number"
    ):
        run(path)
