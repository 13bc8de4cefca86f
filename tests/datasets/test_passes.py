"""Rules for the problems of a pass."""

from __future__ import annotations

from pathlib import Path

from selfimprove import store
from selfimprove.datasets.passes import fresh, made_later
from selfimprove.made import Made
from selfimprove.plan import Pass
from selfimprove.types import Problem

PROBLEMS = [Problem(f"p{i}", "") for i in range(10)]


def names(problems: list[Problem]) -> list[str]:
    return [p.id for p in problems]


def test_every_pass_has_new_problems_of_its_share() -> None:
    steps = [Pass(number=i, round=i, turn=i, turns=3) for i in range(3)]
    found = [names(fresh(PROBLEMS, step=step, between=(0.4, 1.0))) for step in steps]
    assert found == [["p4", "p5"], ["p6", "p7"], ["p8", "p9"]]
    assert names(fresh(PROBLEMS, step=Pass(0, 0), between=(0.0, 0.4))) == ["p0", "p1", "p2", "p3"]
    assert fresh(PROBLEMS, step=Pass(0, 0)) == PROBLEMS


def test_made_problems_come_after_the_first_round(tmp_path: Path) -> None:
    made = Made()
    store.write_records(tmp_path / "made.parquet", [Problem("new", "")], Problem)
    made.add("ask", tmp_path, {"made.parquet": "hash"})
    first, second = Pass(0, 0), Pass(1, 1)
    assert names(made_later(PROBLEMS, step=first, made=made, stage="ask", between=(0.8, 1.0))) == ["p8", "p9"]
    assert names(made_later(PROBLEMS, step=second, made=made, stage="ask")) == ["new"]
