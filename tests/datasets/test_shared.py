"""What every source shares: the two sides, sizes, ids, overlap, prompts, and reading rows."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfimprove.datasets import Row, Shot, finish, messages, normalise, read_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem


def rows(n: int) -> list[Row]:
    return [Row(f"p-{i}", f"What is {i} plus {i}?", str(2 * i), f"file:{i}") for i in range(n)]


def run(given: list[Row], **options: Any) -> list[Problem]:
    usual: dict[str, Any] = {"train_size": None, "heldout_size": None, "heldout_share": 0.3, "seed": 0}
    return finish(given, **{"name": "demo", "prompt": "{question}", "system": None, "shots": [], **usual, **options})


def ids(problems: list[Problem], split: str) -> list[str]:
    return [p.id for p in problems if p.split == split]


def test_a_question_is_on_the_same_side_whatever_seed_size_and_order() -> None:
    first = run(rows(200))
    assert 30 <= len(ids(first, "test")) <= 90  # 60 expected
    sides = {p.id: p.split for p in first}
    assert len(sides) == 200
    for other in (run(rows(200)[::-1], seed=7), run(rows(200), train_size=20, heldout_size=10), run(rows(120))):
        assert all(sides[p.id] == p.split for p in other)


def test_sides_do_not_depend_on_case_or_punctuation() -> None:
    shouted = [Row(r.id, f"  {r.question.upper()} !", r.gold, r.where) for r in rows(50)]
    assert {p.id: p.split for p in run(shouted)} == {p.id: p.split for p in run(rows(50))}


def test_the_seed_chooses_train_problems_and_never_heldout_ones() -> None:
    a, b = (run(rows(200), train_size=30, heldout_size=20, seed=seed) for seed in (0, 1))
    assert set(ids(a, "train")) != set(ids(b, "train"))
    assert ids(a, "test") == ids(b, "test")
    larger = run(rows(200), train_size=60, heldout_size=40)
    assert ids(larger, "train")[:30] == ids(a, "train")
    assert ids(larger, "test")[:20] == ids(a, "test")


def test_a_source_keeps_its_own_split() -> None:
    given = [Row(f"p-{i}", f"Question {i}", "1", f"file:{i}", "test" if i < 3 else "train") for i in range(10)]
    assert set(ids(run(given), "test")) == {"p-0", "p-1", "p-2"}


def test_dev_problems_are_the_source_s_own_or_come_out_of_train_the_same_for_every_seed() -> None:
    a, b = (run(rows(200), dev_size=20, train_size=50, seed=seed) for seed in (0, 1))
    assert len(ids(a, "dev")) == 20
    assert ids(a, "dev") == ids(b, "dev")
    assert not set(ids(a, "dev")) & set(ids(run(rows(200), dev_size=20), "train"))
    assert ids(a, "test") == ids(run(rows(200)), "test")
    own = [of_side(i, f"Question {i}", ("train", "dev", "test")[i % 3]) for i in range(30)]
    assert ids(run(own), "dev") == []
    assert len(ids(run(own, dev_size=None), "dev")) == 10


def test_every_problem_carries_its_bare_question() -> None:
    assert run(rows(20), prompt="Q: {question} A:")[0].metadata["question"].startswith("What is")


def of_side(i: int, question: str, side: str) -> Row:
    return Row(f"p-{i}", question, "1", f"data.jsonl:{i}", side)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (rows(9) + rows(1), {}, ["'p-0'", "file:0", "must be unique"]),
        ([of_side(1, "Two?", "train")], {}, ["held-out side has no problem"]),
        (rows(40), {"dev_size": 1000}, ["dataset.dev_size=1000"]),
        ([], {}, ["no problem"]),
        (rows(40), {"heldout_share": 0.0}, ["held-out side has no problem"]),
        (rows(40), {"train_size": 1000}, ["dataset.train_size=1000", "problems"]),
        (rows(40), {"heldout_size": 0}, ["dataset.heldout_size=0"]),
        (rows(40), {"prompt": "Solve it."}, ["dataset.prompt", "{question}"]),
    ],
)
def test_what_is_refused(given: list[Row], options: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        run(given, **options)
    assert all(words in str(refused.value) for words in said)
    assert "\n" not in str(refused.value)


def test_a_size_too_large_says_how_many_there_are() -> None:
    there = len(ids(run(rows(40)), "train"))
    assert len(ids(run(rows(40), train_size=there), "train")) == there
    with pytest.raises(ConfigError, match=f"has {there} problems"):
        run(rows(40), train_size=there + 1)


def test_prompt_has_system_shots_as_turns_and_the_question_last() -> None:
    shots = [Shot("1 + 1?", "The answer is 2.")]
    assert messages("Use {x}?", "Solve {braces}: {question}", "Be brief.", shots) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Solve {braces}: 1 + 1?"},
        {"role": "assistant", "content": "The answer is 2."},
        {"role": "user", "content": "Solve {braces}: Use {x}?"},
    ]
    assert messages("Hi", "{question}\n", None, []) == [{"role": "user", "content": "Hi"}]


def test_options_stand_where_the_prompt_wants_them() -> None:
    given = [Row(f"p-{i}", f"Which is {i}?", "A", "x", metadata={"options": [f"{i}", "{question}"]}) for i in range(9)]
    shot = Shot("Which is big?", "B", options=["mouse", "whale"])
    one = next(p for p in run(given, prompt="{question}\n{options}", shots=[shot]) if p.id == "p-3")
    assert [m["content"] for m in one.prompt] == [
        "Which is big?\nA) mouse\nB) whale",
        "B",
        "Which is 3?\nA) 3\nB) {question}",
    ]
    assert one.metadata == {"options": ["3", "{question}"], "question": "Which is 3?"}
    with pytest.raises(ConfigError, match=r"dataset\.prompt: has \{options\}, but the question .* has 0 of them"):
        run(rows(9), prompt="{question}\n{options}")


def test_normalise_keeps_what_makes_two_problems_different() -> None:
    assert normalise(" What's  2+3 ?") == normalise("WHAT'S 2+3?")
    assert len({normalise(q) for q in ("2 + 3", "2 - 3", "2 * 3", "3 + 2", "größer", "grosser", "數 2", "2")}) == 8


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def write_gz(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in records).encode()))


def write_parquet(path: Path, records: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", write_jsonl), ("a.jsonl.gz", write_gz), ("a.parquet", write_parquet)]
)
def test_rows_come_with_file_and_line(
    tmp_path: Path, name: str, write: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    records = [{"q": "größer?", "n": i} for i in range(5)]
    write(tmp_path / name, records)
    assert list(read_rows(tmp_path / name)) == [(f"{tmp_path / name}:{i + 1}", r) for i, r in enumerate(records)]


def test_blank_lines_count_but_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"q": 1}\n\n{"q": 2}\n')
    assert [where.rpartition(":")[2] for where, _ in read_rows(tmp_path / "a.jsonl")] == ["1", "3"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.jsonl", None, "No such file"),
        ("bad.jsonl", b'{"q": 1}\n{"q": \n', "bad.jsonl:2: not JSON"),
        ("list.jsonl", b"[1, 2]\n", "list.jsonl:1: a JSON object is needed on each line, and this is a list"),
        ("latin.jsonl", '{"q": "größer"}'.encode("latin-1"), "latin.jsonl cannot be read"),
        ("plain.jsonl.gz", b'{"q": 1}\n', "plain.jsonl.gz cannot be read"),
        ("cut.jsonl.gz", gzip.compress(b'{"q": 1}\n' * 1000, mtime=0)[:40], "cut.jsonl.gz cannot be read"),
        ("bad.parquet", b"PAR1 not really", "bad.parquet cannot be read"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        list(read_rows(tmp_path / name))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
