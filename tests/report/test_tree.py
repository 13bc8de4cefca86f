"""Drawing a search tree: what is shown of it, and what is said when there is none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.report.tree import draw, show
from selfimprove.types import Node, Problem, Sample, Trajectory, Verdict


def node(number: int, parent: int, text: str, **values: Any) -> Node:
    fields: dict[str, Any] = {"prior": 0.25, "visits": 0, "q": 0.0, "value": 0.5, "reward": 0.0}
    fields |= {"terminal": False, "chosen": False} | values
    return Node(number, parent, 1, [1], [0.0], text, "stop", 0, 0, **fields)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two rounds, the second in two parts; trees of p and q, none of r."""
    problems = [Problem(name, f"question {name}", gold="4") for name in "pqr"]
    store.write_records(tmp_path / "problems.parquet", problems, Problem)
    (tmp_path / "config.yaml").write_text("{method: {}, model: {}, dataset: {}, eval: {}, seed: 0, rounds: 2}")
    sample = Sample([1], [2], [0.0], "x", "stop", 0)
    for folder, names in (("000", "pqr"), ("001.0", "p"), ("001.1", "qr")):
        (tmp_path / "rounds" / folder).mkdir(parents=True)
        trajectories, verdicts = [], []
        for name in names:
            tree = [
                node(0, -1, "", visits=5),
                node(1, 0, f"[b]one[/b] {folder}\n", visits=4, q=0.5, chosen=True),
                node(2, 0, "other\n", visits=1, q=-0.25),
                node(3, 1, "The end", visits=4, q=1.5, value=1.75, chosen=True, terminal=True, status="correct"),
                node(4, 1, "A bad end", prior=0.125, q=-1.0, terminal=True, status="wrong"),
            ]
            own = Trajectory(name, [sample], id=f"{folder}/{name}/0", tree=[] if name == "r" else tree)
            trajectories.append(own)
            verdicts.append(Verdict(own.id, "correct", 1.0))
        store.write_records(tmp_path / "rounds" / folder / "trajectories.parquet", trajectories, Trajectory)
        store.write_records(tmp_path / "rounds" / folder / "verdicts.parquet", verdicts, Verdict)
    return tmp_path


def drawn(run: Path, problem: str, number: int | None = None) -> list[str]:
    out = io.StringIO()
    show(run, problem, number, Console(file=out, width=120))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_what_was_observed_stands_below_its_step() -> None:
    tree = [node(0, -1, "", visits=1), node(1, 0, "Action: go", visits=1, metadata={"observed": "\x1b[1mA door.\n"})]
    out = io.StringIO()
    drawing = draw(Problem("p", "Go", gold="4"), Trajectory("p", [], id="t", tree=tree), None)
    Console(file=out, width=120).print(drawing)
    *_, step, seen = [line.strip("│├└─ ").rstrip() for line in out.getvalue().splitlines() if line.strip()]
    assert step.startswith("Action: go  N 1")
    assert seen.startswith("→ ")
    assert seen.endswith("A door.")
    assert "\x1b" not in seen


def test_a_tree_with_visits_q_prior_worth_and_chosen_path(run: Path) -> None:
    lines = drawn(run, "p", 0)
    assert lines[0] == "question p"
    assert lines[1] == "gold 4, 4 steps in 000/p/0, chosen solution correct"
    assert [line.lstrip("│├└─ ") for line in lines[3:]] == [
        "start  N 5",
        "* [b]one[/b] 000  N 4  Q +0.50  p 0.250  v +0.50",
        "* The end  N 4  Q +1.50  p 0.250  v +1.75  correct",
        "A bad end  N 0  Q -1.00  p 0.125  v +0.50  wrong",
        "other  N 1  Q -0.25  p 0.250  v +0.50",
    ]
    assert len({line.index(text) for line, text in zip(lines[5:7], ("The", "A bad"), strict=True)}) == 2
    assert lines[7].startswith("└── other")


def test_the_last_round_and_its_parts(run: Path) -> None:
    assert "001.0/p/0" in drawn(run, "p")[1]
    assert "001.1/q/0" in drawn(run, "q", 1)[1]


def test_what_is_missing_is_said_in_one_line(run: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((run, "x", None), "no such problem; it has, for instance, p"),
        ((run, "p", 7), "--round 7"),
        ((run, "r", None), "no tree of r;"),
        ((run, "r", 0), "no tree of r in round 0;"),
        ((tmp_path / "elsewhere", "p", None), "no run folder"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            show(*arguments)
        assert "\n" not in str(caught.value)
