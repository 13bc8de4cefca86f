"""One iteration of three searches on trees that were built by hand: MCTS-DPO's is in test_mcts.py, the others here."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfimprove import store
from selfimprove.generate.tree import Branch, Search, anywhere, average, descend, records, solution, step, uct
from selfimprove.types import Sample, Trajectory, to_table

EXACT: dict[str, float] = {"rel": 0, "abs": 1e-12}


def action(text: str) -> Sample:
    return Sample([1], [ord(char) for char in text], [-0.1] * len(text), text, "stop", seed=0)


def grown() -> tuple[Branch, ...]:
    """A root with children a, b and c; a has d and e, which is terminal. Q is the mean of what was backed up:

    root N 10     a  N 6, Q .5     b  N 3, Q .6     c  N 0        d  N 4, Q .5     e  N 1, Q .9
    """
    root = Branch([1], visits=10, q=0.5)
    a, b, c = (root.add(action(text), 1.0) for text in "abc")
    d, e = a.add(action("d"), 1.0), a.add(action("e"), 1.0)
    for node, visits, q in ((a, 6, 0.5), (b, 3, 0.6), (d, 4, 0.5), (e, 1, 0.9)):
        node.visits, node.q = visits, q
    e.terminal = True
    return root, a, b, c, d, e


def test_uct_by_hand() -> None:
    root, a, b, c, _, e = grown()
    assert uct(a, 0.25) == pytest.approx(0.5 + 0.25 * math.sqrt(math.log(10) / 6), **EXACT)
    assert uct(b, 1.41) == pytest.approx(0.6 + 1.41 * math.sqrt(math.log(10) / 3), **EXACT)
    assert uct(e, 1.0) == pytest.approx(0.9 + math.sqrt(math.log(6)), **EXACT)
    assert uct(c, 0.25) == math.inf
    assert uct(root, 0.25) == 0.5


def test_uct_goes_to_a_child_without_visits_first_and_then_where_the_score_is_largest() -> None:
    root, a, b, c, d, e = grown()
    score, rng = partial(uct, exploration=0.25), random.Random(0)
    assert descend(root, score, rng) is c
    c.visits, c.q = 1, -9.0
    assert descend(root, score, rng) is b  # .6 + .25 sqrt(ln 10 / 3) is above .5 + .25 sqrt(ln 10 / 6)
    b.q = 0.2
    assert descend(root, score, rng) is e
    assert descend(a, lambda node: -uct(node, 0.25), rng) is d


def test_ties_are_broken_at_random() -> None:
    root = Branch([1], visits=1)
    children = {root.add(action(text), 1.0) for text in "abc"}
    assert {descend(root, partial(uct, exploration=1.0), random.Random(seed)) for seed in range(30)} == children


def test_a_value_is_averaged_up_to_the_root() -> None:
    root, a, b, _, d, _ = grown()
    average(d, 1.0)
    assert (root.visits, a.visits, d.visits, b.visits) == (11, 7, 5, 3)
    assert root.q == pytest.approx((10 * 0.5 + 1) / 11, **EXACT)
    assert a.q == pytest.approx((6 * 0.5 + 1) / 7, **EXACT)
    assert d.q == pytest.approx((4 * 0.5 + 1) / 5, **EXACT)
    assert b.q == 0.6


def test_an_iteration_by_uct_rolls_out_to_the_end() -> None:
    """Agent-R's rules: two actions at each expansion, an action that ends the episode counts at once, the other one is
    played to the end. Here "x" ends with reward 0, and every third action "y" ends with reward 1."""

    async def expand(node: Branch) -> None:
        for text in "xy":
            child = node.add(action(text), 1.0)
            child.terminal = text == "x" or child.depth == 3
            child.value = float(text == "y" and child.terminal)
            if text == "x":
                average(child, 0.0)

    rules = Search(
        select=lambda top: descend(top, partial(uct, exploration=0.25), random.Random(0)),
        expand=expand,
        follow=lambda node: node.children[-1] if node.children else None,
        backup=lambda path: average(path[-1], path[-1].value),
        ahead=10,
    )
    root = Branch([1])
    path = asyncio.run(step(root, rules))
    assert [node.text for node in path] == ["", "y", "yy", "yyy"]
    assert [(node.text, node.visits, node.q) for node in root.walk()] == [
        ("", 4, 0.25),  # three ends "x" of value 0, one end "yyy" of value 1
        ("x", 1, 0.0),
        ("y", 3, pytest.approx(1 / 3, **EXACT)),
        ("yx", 1, 0.0),
        ("yy", 2, 0.5),
        ("yyx", 1, 0.0),
        ("yyy", 1, 1.0),
    ]
    again = asyncio.run(step(root, rules))  # x: .25 sqrt(ln 4), y: 1/3 + .25 sqrt(ln 4 / 3), and so on down
    assert [node.text for node in again] == ["", "y", "yy", "yyy"]
    assert (root.visits, root.q, again[-1].visits) == (5, pytest.approx(0.4, **EXACT), 2)


def far_score(node: Branch) -> float:
    """SWE-Search's score as the paper has it: UCT, a bonus for depth that fades, a penalty that grows."""
    return uct(node, 1.41) + 0.8 * math.exp(-0.5 * (node.depth - 1)) - 0.3 * math.sqrt(node.depth)


def test_a_global_choice_is_the_best_node_of_the_whole_tree() -> None:
    root, a, b, c, d, e = grown()
    c.visits, c.q, e.q = 1, -2.0, 3.0
    assert far_score(d) == pytest.approx(
        0.5 + 1.41 * math.sqrt(math.log(6) / 4) + 0.8 * math.exp(-0.5) - 0.3 * math.sqrt(2), **EXACT
    )
    scores = {name: far_score(node) for name, node in zip("rabcde", (root, a, b, c, d, e), strict=True)}
    assert max(scores, key=scores.__getitem__) == "e"  # which is terminal

    def open_node(node: Branch, most: int) -> bool:
        return not node.terminal and len(node.children or []) < most

    assert sorted(scores, key=scores.__getitem__)[-2] == "b"
    assert anywhere(root, far_score, partial(open_node, most=3)) is b
    b.terminal = True
    assert anywhere(root, far_score, partial(open_node, most=3)) is a
    assert anywhere(root, far_score, partial(open_node, most=2)) is d
    assert anywhere(root, far_score, lambda node: False) is None


def test_an_iteration_from_a_global_choice_gives_a_node_one_more_child() -> None:
    """SWE-Search's rules, two children a node at most, two levels: a value is told for each new state."""
    values = iter([0.2, 0.9, 0.4, 0.1, 0.0, 0.0])

    async def expand(node: Branch) -> None:
        child = node.add(action(str(len(node.children or []))), 1.0)
        child.value = next(values)

    rules = Search(
        select=lambda top: anywhere(
            top, partial(uct, exploration=0.0), lambda n: n.depth < 2 and len(n.children or []) < 2
        ),
        expand=expand,
        follow=lambda node: node.children[-1] if node.children else None,
        backup=lambda path: average(path[-1], path[-1].value),
        ahead=1,
    )
    root = Branch([1])
    ends = []
    while path := asyncio.run(step(root, rules)):
        ends.append(path[-1].text)
    assert ends == ["0", "1", "10", "11", "00", "01"]  # Q of "1": .9, .65; the tree is full after six
    assert root.visits == 6
    assert root.q == pytest.approx(1.6 / 6, **EXACT)
    one = root.children[1] if root.children else root
    assert (one.visits, one.q) == (3, pytest.approx(1.4 / 3, **EXACT))
    before = [(node.visits, node.q) for node in root.walk()]
    assert asyncio.run(step(root, rules)) == []
    assert [(node.visits, node.q) for node in root.walk()] == before


def test_an_iteration_begins_below_the_top_and_is_backed_up_from_the_top() -> None:
    root, a, _, _, d, _ = grown()
    seen: list[Sequence[Branch]] = []

    async def nothing(node: Branch) -> None: ...

    rules = Search(lambda top: d, nothing, lambda node: None, seen.append, ahead=5)
    assert asyncio.run(step(a, rules)) == [a, d]
    assert seen == [[a, d]]
    with pytest.raises(ValueError, match="not below"):
        root.path(a)


def test_what_was_observed_stands_in_the_prompts_below_and_in_the_file(tmp_path: Path) -> None:
    root = Branch([1, 2])
    look = root.add(action("A"), 1.0)
    look.observe("a door", [7, 8])
    look.metadata["score"] = [0.5, "é"]
    go = look.add(action("B"), 1.0)
    assert go.prompt_ids == [1, 2, 65, 7, 8, 66]
    assert go.text == "AB"
    written = Trajectory("p", [solution([look, go])], tree=records(root))
    store.write_records(tmp_path / "t.parquet", [written], Trajectory)
    (read,) = store.read_records(tmp_path / "t.parquet", Trajectory)
    assert [node.metadata for node in read.tree] == [
        {},
        {"observed": "a door", "observed_ids": [7, 8], "score": [0.5, "é"]},
        {},
    ]


def test_a_file_from_before_nodes_had_metadata_is_still_read(tmp_path: Path) -> None:
    root = Branch([1])
    root.add(action("A"), 1.0)
    rows: list[dict[str, Any]] = to_table([Trajectory("p", [action("A")], tree=records(root))], Trajectory).to_pylist()
    for node in rows[0]["tree"]:
        assert node.pop("metadata") is None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "old.parquet")
    (read,) = store.read_records(tmp_path / "old.parquet", Trajectory)
    assert [(node.text, node.metadata) for node in read.tree] == [("", {}), ("A", {})]
