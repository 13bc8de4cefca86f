"""The knowledge graph: neighbours, paths, rules, and a graph over another one."""

from __future__ import annotations

import asyncio

import networkx
import pytest

from selfimprove.datasets.docqa import known, triples
from selfimprove.errors import ConfigError
from selfimprove.tools.graph import Graph, Knowledge, require_knowledge, rule

TRIPLES = [("a", "r", "b"), ("a", "r", "c"), ("b", "s", "d"), ("c", "t", "d"), ("d", "r", "a"), ("a", "u", "e")]


def test_neighbors_stand_in_the_order_of_their_triples() -> None:
    graph = Graph(TRIPLES)
    assert graph.neighbors("a", "r") == ["b", "c"]
    assert graph.neighbors("a", "s") == graph.neighbors("z", "r") == []


def test_a_triple_is_added_once_and_to_the_upper_graph_alone() -> None:
    below = Graph(TRIPLES)
    upper = Graph([], over=below)
    assert not upper.add(("a", "r", "b"))
    assert upper.add(("a", "r", "z"))
    assert not upper.add(("a", "r", "z"))
    assert upper.neighbors("a", "r") == ["b", "c", "z"]
    assert below.neighbors("a", "r") == ["b", "c"]


def test_paths_are_the_shortest_ones() -> None:
    graph = Graph(TRIPLES)
    assert graph.paths("a", "d", 3) == [["r", "s"], ["r", "t"]]
    assert graph.paths("a", "d", 1) == []
    assert graph.paths("a", "a", 3) == [["r", "s", "r"], ["r", "t", "r"]]
    assert graph.paths("e", "a", 3) == []


def test_paths_are_those_that_networkx_finds() -> None:
    """The lengths, on a real graph of 1,564 triples, against a second implementation."""
    facts = triples(removed=0.15)
    graph, other = Graph(facts), networkx.MultiDiGraph((one, two) for one, _, two in facts)
    for _, start, end in known(count=60):
        found = graph.paths(start, end, 3)
        near = networkx.single_source_shortest_path_length(other, start, cutoff=3)
        if start != end:
            assert (len(found[0]) if found else None) == near.get(end)


def test_a_rule_has_variables_between() -> None:
    assert rule(["pal"]) == "pal(x, y)"
    assert rule(["pal", "boss", "heir"]) == "pal(x, z1) & boss(z1, z2) & heir(z2, y)"


def test_the_nearest_known_questions_show_their_rules() -> None:
    seeds = [("who made\nred a", "a", "d"), ("who made blue a", "a", "e"), ("who made red e", "e", "a")]
    tool = Knowledge(TRIPLES, seeds, k=2, beam=1, hops=3)
    assert asyncio.run(tool.rules("who made red b")).splitlines() == [
        "who made red a r(x, z1) & s(z1, y)",
        "who made blue a u(x, y)",
    ]
    assert asyncio.run(tool.rules("who made red a")) == "who made blue a u(x, y)"  # itself is not shown
    both = Knowledge(TRIPLES, seeds, k=1, beam=3, hops=3)
    assert asyncio.run(both.rules("red b")) == "who made red a r(x, z1) & s(z1, y) or r(x, z1) & t(z1, y)"


def test_asked_by_words_it_gives_neighbours() -> None:
    assert asyncio.run(Knowledge(TRIPLES, [("who is", "a", "b"), ("red", "a", "d")], 1, 1, 3)("a, r")) == "b\nc"


def nothing() -> list[str]:
    return []


def test_an_empty_graph_is_refused_before_a_run() -> None:
    facts, empty = ({"_target_": name} for name in ("selfimprove.datasets.docqa.triples", f"{__name__}.nothing"))
    with pytest.raises(ConfigError, match=r"knowledge\.facts: .* gives nothing"):
        require_knowledge(facts=empty, seeds=facts)
    with pytest.raises(ConfigError, match=r"knowledge\.seeds: .* gives nothing"):
        require_knowledge(facts=facts, seeds=empty)
