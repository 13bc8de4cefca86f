"""A submission's place on a leaderboard, and ratings over several."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selfimprove.report import elo_mmr
from selfimprove.verify.leaderboard import check, quantile, reference, standings

PLAYERS = {"p0": 0.2, "p1": 0.5, "p2": 0.5, "p3": 1.0}
GOLD = json.dumps({"ids": ["7", "8", "9", "10"], "answers": ["a", "b", "a", "b"]})
METADATA: dict[str, Any] = {"players": PLAYERS, "metric": "accuracy", "identifier": "id", "target": "y"}


def handed_in(*lines: str) -> str:
    return json.dumps({"submission": "\n".join(lines)})


def test_the_quantile_is_the_share_that_is_beaten_and_half_of_the_equal_ones() -> None:
    assert [quantile(value, PLAYERS) for value in (0.1, 0.2, 0.5, 0.7, 1.0)] == [0.0, 0.125, 0.5, 0.75, 0.875]
    assert standings(0.5, PLAYERS) == "p3 entrant=p1=p2 p0"


def test_a_submission_is_scored_on_the_hidden_answers() -> None:
    found = check(handed_in("id,y", "7,a", "8,b", "9,b", "10,b"), GOLD, METADATA)
    assert (found.status, found.reward, found.reason) == ("correct", 0.75, "accuracy 0.7500")
    best = check(reference(GOLD, METADATA), GOLD, METADATA)
    assert (best.status, best.reward) == ("correct", 0.875)


def test_numbers_are_scored_by_r2() -> None:
    gold = json.dumps({"ids": ["1", "2", "3"], "answers": ["1", "2", "3"]})
    metadata = METADATA | {"metric": "r2"}
    assert check(handed_in("id,y", "1,1", "2,2.0", "3,4"), gold, metadata).reason == "r2 0.5000"
    assert check(handed_in("id,y", "1,1", "2,x", "3,4"), gold, metadata).status == "unparseable"
    assert check(handed_in("id,y", "1,1", "2,nan", "3,4"), gold, metadata).status == "unparseable"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "[]",
        "a,b",
        handed_in(),
        handed_in("y,id", "7,a", "8,b", "9,b", "10,b"),
        handed_in("id,y", "7,a", "8,b", "9,b"),
        handed_in("id,y", "8,a", "7,b", "9,b", "10,b"),
        handed_in("id,y", "7,a,a", "8,b", "9,b", "10,b"),
        json.dumps({"failed": "failed", "said": "model: no"}),
        json.dumps({"submission": 3}),
        handed_in("id,y", f"7,{'a' * 200_000}", "8,b", "9,b", "10,b"),
    ],
)
def test_what_cannot_be_scored_is_unparseable(text: str) -> None:
    found = check(text, GOLD, METADATA)
    assert (found.status, found.reward) == ("unparseable", 0.0)


def test_a_hang_is_a_timeout_and_a_problem_without_a_leaderboard_an_error() -> None:
    assert check(json.dumps({"failed": "timeout", "said": "model"}), GOLD, METADATA).status == "timeout"
    assert check(handed_in("id,y"), None, METADATA).status == "error"
    assert check(handed_in("id,y"), "x", METADATA).status == "error"
    assert check(handed_in("id,y"), GOLD, {}).status == "error"


# Elo-MMR


def test_newcomers_mirror_each_other_about_1500_and_doubt_shrinks_alike() -> None:
    pytest.importorskip("elo_mmr_py")
    found = elo_mmr.ratings(["a b c d"])
    assert {name: tuple(map(round, own)) for name, own in found.items()} == {
        "a": (1758, 171),
        "b": (1576, 171),
        "c": (1424, 171),
        "d": (1242, 171),
    }
    tied = elo_mmr.ratings(["a=b c"])
    assert tied["a"] == tied["b"]
    assert tied["a"][0] > 1500 > tied["c"][0]


def test_ratings_are_those_of_another_implementation() -> None:
    pytest.importorskip("elo_mmr_py")
    oracle = pytest.importorskip("elommr")
    players = {name: oracle.Player() for name in "abcd"}
    contests = [
        [("a", 0, 0), ("b", 1, 1), ("c", 2, 2), ("d", 3, 3)],
        [("d", 0, 0), ("b", 1, 2), ("a", 1, 2), ("c", 3, 3)],
    ]
    rater = oracle.EloMMR()
    for number, contest in enumerate(contests):
        rater.round_update([(players[name], low, high) for name, low, high in contest], number * elo_mmr.DAY)
    found = elo_mmr.ratings(["a b c d", "d b=a c"])
    for name, player in players.items():
        assert found[name][0] == pytest.approx(player.event_history[-1].mu, abs=1.5)
