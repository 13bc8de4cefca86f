"""Generated graphs: colourable, and different on each side."""

import random
from collections import Counter
from itertools import permutations, product
from typing import Any

import networkx
import pytest

from selfimprove.datasets import colouring
from selfimprove.datasets.colouring import _shape, load, planar
from selfimprove.errors import ConfigError
from selfimprove.types import Problem
from selfimprove.verify.colouring import check, reference


def graphs(**options: Any) -> list[Problem]:
    given = {"vertices": (5, 8), "colours": 3, "probability": 0.6, "prompt": "{question}", "seed": 0}
    return load(**(given | {"train_size": 60, "dev_size": 15, "heldout_size": 20} | options))


def edges(problem: Problem) -> tuple[tuple[int, int], ...]:
    return tuple((u, v) for u, v in problem.metadata["edges"])


def test_gold_is_a_colouring_and_one_colour_is_not() -> None:
    problems = graphs()
    assert Counter(p.split for p in problems) == {"train": 60, "dev": 15, "test": 20}
    for p in problems:
        assert p.gold is not None
        assert check(reference(p.gold, p.metadata), p.gold, p.metadata).status == "correct"
        assert check("\n".join(f"{v}: 1" for v in p.metadata["vertices"]), p.gold, p.metadata).status == "wrong"
        assert 5 <= len(p.metadata["vertices"]) <= 8


def test_no_held_out_graph_is_a_relabelled_train_one() -> None:
    problems = graphs(vertices=(5, 5), train_size=100, dev_size=0)
    train, test = ({edges(p) for p in problems if p.split == side} for side in ("train", "test"))
    assert len(train) == 100
    for graph in test:
        for names in permutations(range(1, 6)):
            renamed = sorted(tuple(sorted((names[u - 1], names[v - 1]))) for u, v in graph)
            assert tuple(renamed) not in train


def test_the_hash_knows_graphs_by_their_shape() -> None:
    path, star = [[1, 2], [2, 3], [3, 4]], [[1, 2], [1, 3], [1, 4]]
    names = random.Random(0).sample(range(1, 5), 4)
    assert _shape(4, path) == _shape(4, [[names[u - 1], names[v - 1]] for u, v in path])
    assert len({_shape(4, path), _shape(4, star), _shape(5, path)}) == 3


def test_the_seed_chooses_the_train_graphs_only() -> None:
    one, other = graphs(), graphs(seed=1)
    assert [p.id for p in one if p.split != "train"] == [p.id for p in other if p.split != "train"]
    assert {p.id for p in one if p.split == "train"} != {p.id for p in other if p.split == "train"}
    assert graphs() == one


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.vertices: \[2, 8\]"):
        graphs(vertices=(2, 8))
    with pytest.raises(ConfigError, match=r"dataset\.train_size=500: only \d+ such graphs"):
        graphs(vertices=(3, 3), train_size=500)
    with pytest.raises(ConfigError, match=r"dataset\.train_size=60: only 0"):
        graphs(probability=0.0)


def flat(**options: Any) -> list[Problem]:
    given = {"vertices": (6, 8), "probability": 0.4, "prompt": "{question}", "seed": 0}
    return planar(**(given | {"train_size": 40, "dev_size": 0, "heldout_size": 20} | options))


def test_planar_graphs_have_as_many_colours_as_they_need() -> None:
    seen = set()
    for p in flat():
        vertices, edges, colours = (p.metadata[key] for key in ("vertices", "edges", "colours"))
        assert networkx.check_planarity(networkx.Graph(edges))[0]
        assert p.gold is not None
        assert check(reference(p.gold, p.metadata), p.gold, p.metadata).status == "correct"
        ways = product(range(colours - 1), repeat=len(vertices))
        assert not any(all(way[u - 1] != way[v - 1] for u, v in edges) for way in ways), "one colour fewer is too few"
        assert f"There are {colours} colours." in p.metadata["question"]
        seen.add(colours)
    assert {3, 4} <= seen
    assert {p.id for p in flat(seed=1) if p.split == "test"} == {p.id for p in flat() if p.split == "test"}


def test_planar_graphs_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(colouring, "_REDRAWS", 50)
    with pytest.raises(ConfigError, match=r"dataset\.probability=1\.0: of 50 graphs of 6 vertices none was planar"):
        flat(vertices=(6, 6), probability=1.0)
    with pytest.raises(ConfigError, match=r"dataset\.vertices: \[1, 3\]"):
        flat(vertices=(1, 3))


def test_the_first_colouring_by_backtracking() -> None:
    for p in graphs(train_size=30):
        size, pairs = len(p.metadata["vertices"]), p.metadata["edges"]
        ways = product((1, 2, 3), repeat=size)
        first = next(way for way in ways if all(way[u - 1] != way[v - 1] for u, v in pairs))
        assert colouring.colouring(size, pairs, 3) == list(first)
    assert colouring.colouring(3, [[1, 2], [1, 3], [2, 3]], 2) is None
