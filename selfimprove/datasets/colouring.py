"""Graphs to colour, generated, each with a colouring: train, dev and held-out graphs differ in more than their labels.

`load`: every vertex is given a colour, and then each pair of different colours an edge with the same probability (the
planted model), so that the colouring exists. `planar`: random graphs that are planar, with as few colours as they need.
The gold answer is one proper colouring; any other is as right.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from typing import Annotated, Any, Unpack

from annotated_types import Ge

from selfimprove import seeds
from selfimprove.datasets import Generated, Row, Side, finish, sizes_of
from selfimprove.errors import ConfigError
from selfimprove.types import Count, Problem, Share

Edges = list[list[int]]

_SIDES: dict[int, Side] = {0: "test", 1: "dev"}
_MISSES = 2000  # draws in a row that bring nothing new, after which there is taken to be nothing
_REDRAWS = 2_000_000  # of a graph that is not planar: half a minute


def load(
    *,
    vertices: tuple[Count, Count],
    colours: Annotated[int, Ge(2)],
    probability: Share,
    seed: int,
    **options: Unpack[Generated],
) -> list[Problem]:
    """Graphs of `vertices[0]` to `vertices[1]` vertices that `colours` colours suffice for, no graph twice.

    probability: of an edge between two vertices of different planted colours. A fifth of all graphs is held out and a
    fifth is for dev, by a hash that relabelling the vertices does not change. The seed chooses the train graphs only.
    Raises ConfigError when there are not as many graphs as are asked for.
    """
    least, most = vertices
    if not colours <= least <= most:
        raise ConfigError(
            f"dataset.vertices: [{least}, {most}] should be a smallest number of vertices, at least the {colours} "
            "colours, and a largest",
            "dataset.vertices",
        )
    return _generate(lambda rng: planted(rng, rng.randint(least, most), colours, probability), seed, options)


def planar(
    *, vertices: tuple[Count, Count], probability: Share, seed: int, **options: Unpack[Generated]
) -> list[Problem]:
    """Planar graphs of `vertices[0]` to `vertices[1]` vertices, with as many colours as each needs, no graph twice.

    Each pair of vertices has an edge with the same probability, and the whole graph is drawn again until it is planar:
    the graphs of Stechly et al. 2023 (arXiv 2310.12397), generate_random_graph in their graph_coloring.py. Four colours
    are always enough, and the gold answer has as few as there can be. Sides and errors are those of `load`. At
    probability 0.4 a graph of 14 vertices takes a tenth of a second, and each vertex more about four times as long.
    """
    least, most = vertices
    if not 1 < least <= most:
        raise ConfigError(
            f"dataset.vertices: [{least}, {most}] should be a smallest number of vertices, from 2, and a largest",
            "dataset.vertices",
        )
    return _generate(lambda rng: _planar(rng, rng.randint(least, most), probability), seed, options)


def _generate(draw: Callable[[random.Random], Row], seed: int, options: Generated) -> list[Problem]:
    rows: list[Row] = []
    for side, size in sizes_of(options).items():
        rng = random.Random(seeds.derive(seed if side == "train" else 0, "colouring", side))
        found: dict[str, Row] = {}
        misses = 0
        while len(found) < size and misses < _MISSES:
            row = draw(rng)
            if row.side == side and row.id not in found and row.metadata["edges"]:
                found[row.id], misses = row, 0
            else:
                misses += 1
        if len(found) < size:
            key = f"dataset.{'heldout' if side == 'test' else side}_size"
            raise ConfigError(
                f"{key}={size}: only {len(found)} such graphs were found; ask for fewer, or for more vertices", key
            )
        rows += found.values()
    return finish(rows, name="colouring", seed=seed, **options)


def planted(rng: random.Random, vertices: int, colours: int, probability: float) -> Row:
    """One graph of `load`, on the side that it belongs to."""
    colour = [i % colours for i in range(vertices)]
    rng.shuffle(colour)
    edges = [
        [u + 1, v + 1]
        for u in range(vertices)
        for v in range(u + 1, vertices)
        if colour[u] != colour[v] and rng.random() < probability
    ]
    return _row(edges, [c + 1 for c in colour], colours)


def _planar(rng: random.Random, vertices: int, probability: float) -> Row:
    import networkx

    for _ in range(_REDRAWS):
        edges = [[u, v] for u, v in itertools.combinations(range(1, vertices + 1), 2) if rng.random() < probability]
        if len(edges) <= max(1, 3 * vertices - 6) and networkx.check_planarity(networkx.Graph(edges))[0]:
            enough = ((colours, colouring(vertices, edges, colours)) for colours in (1, 2, 3, 4))
            return next(_row(edges, found, colours) for colours, found in enough if found)
    raise ConfigError(
        f"dataset.probability={probability}: of {_REDRAWS} graphs of {vertices} vertices none was planar; lower it, or "
        "dataset.vertices",
        "dataset.probability",
    )


def colouring(vertices: int, edges: Edges, colours: int) -> list[int] | None:
    """The first proper colouring in the order of the dictionary, colours from 1, by backtracking; None: there is none.

    Vertices are 1 to `vertices`; the list holds the colour of vertex v at v - 1.
    """
    lower = [[min(edge) - 1 for edge in edges if max(edge) == v] for v in range(1, vertices + 1)]
    chosen: list[int] = []

    def extend() -> bool:
        if len(chosen) == vertices:
            return True
        taken = {chosen[u] for u in lower[len(chosen)]}
        for colour in range(1, colours + 1):
            if colour not in taken:
                chosen.append(colour)
                if extend():
                    return True
                chosen.pop()
        return False

    return chosen if extend() else None


def _row(edges: Edges, coloured: list[int], colours: int) -> Row:
    vertices = len(coloured)
    pairs = ", ".join(f"{u}-{v}" for u, v in edges)
    question = f"A graph has the vertices 1 to {vertices} and the edges {pairs}. There are {colours} colours."
    gold = "\n".join(f"{vertex}: {colour}" for vertex, colour in enumerate(coloured, start=1))
    name = f"colouring-{hashlib.blake2b(question.encode(), digest_size=6).hexdigest()}"
    metadata: dict[str, Any] = {"vertices": list(range(1, vertices + 1)), "edges": edges, "colours": colours}
    side = _SIDES.get(_shape(vertices, edges) % 5, "train")
    return Row(name, question, gold, name, side, metadata)


def _shape(vertices: int, edges: Edges) -> int:
    """A hash of the graph that does not change when its vertices are renamed.

    Each vertex's colour is refined by those of its neighbours as often as there are vertices (Weisfeiler and Leman
    1968), so that only graphs which this cannot tell apart, isomorphic ones among them, hash alike.
    """
    neighbours: list[list[int]] = [[] for _ in range(vertices)]
    for u, v in edges:
        neighbours[u - 1].append(v - 1)
        neighbours[v - 1].append(u - 1)
    labels = [0] * vertices
    for _ in range(vertices):
        labels = [seeds.derive(labels[v], *sorted(labels[u] for u in neighbours[v])) for v in range(vertices)]
    return seeds.derive(vertices, *sorted(labels))
