"""Generates graphs to colour. Graphs of different sides differ in more than their labels.

`load` uses the planted model: every vertex gets a colour, then each pair of vertices with different colours gets an
edge with the same probability. So a colouring exists. `planar` makes random planar graphs, with as few colours as they
need. The gold answer is one proper colouring; every other is right too.
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
_MISSES = 2000  # after this many draws in a row without a new graph, the search ends
_REDRAWS = 2_000_000  # most draws of a graph until it is planar: half a minute


def load(
    *,
    vertices: tuple[Count, Count],
    colours: Annotated[int, Ge(2)],
    probability: Share,
    seed: int,
    **options: Unpack[Generated],
) -> list[Problem]:
    """Different graphs of `vertices[0]` to `vertices[1]` vertices that can be coloured with `colours` colours.

    probability: of an edge between two vertices of different planted colours. A fifth of all graphs is held out and a
    fifth is for dev, by a hash that does not depend on the vertices' labels. The seed chooses the train graphs only.
    Raises ConfigError if there are not enough graphs.
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
    """Different planar graphs of `vertices[0]` to `vertices[1]` vertices, with as many colours as each needs.

    Each pair of vertices has an edge with the same probability, and the whole graph is drawn again until it is planar.
    These are the graphs of Stechly et al. 2023 (arXiv 2310.12397), generate_random_graph in their graph_coloring.py.
    Four colours are always enough, and the gold answer has as few as possible. Sides and errors are as in `load`. At
    probability 0.4 a graph of 14 vertices takes a tenth of a second; each further vertex takes about four times longer.
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
        distinct: dict[str, Row] = {}
        misses = 0
        while len(distinct) < size and misses < _MISSES:
            row = draw(rng)
            if row.side == side and row.id not in distinct and row.metadata["edges"]:
                distinct[row.id], misses = row, 0
            else:
                misses += 1
        if len(distinct) < size:
            key = f"dataset.{'heldout' if side == 'test' else side}_size"
            raise ConfigError(
                f"{key}={size}: only {len(distinct)} such graphs were found; ask for fewer, or for more vertices", key
            )
        rows += distinct.values()
    return finish(rows, name="colouring", seed=seed, **options)


def planted(rng: random.Random, vertices: int, colours: int, probability: float) -> Row:
    """One graph of `load`, with its side."""
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
            return next(_row(edges, coloured, colours) for colours, coloured in enough if coloured)
    raise ConfigError(
        f"dataset.probability={probability}: of {_REDRAWS} graphs of {vertices} vertices none was planar; lower it, or "
        "dataset.vertices",
        "dataset.probability",
    )


def colouring(vertices: int, edges: Edges, colours: int) -> list[int] | None:
    """The first proper colouring in lexicographic order, with colours from 1, by backtracking; None if there is none.

    Vertices are 1 to `vertices`; the list has the colour of vertex v at index v - 1.
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
    """A hash of a graph that does not depend on its vertices' labels.

    Each vertex's colour is refined by its neighbours' colours, as many times as there are vertices (Weisfeiler and
    Leman 1968). Isomorphic graphs hash alike, and so do others that this refinement cannot tell apart.
    """
    neighbours: list[list[int]] = [[] for _ in range(vertices)]
    for u, v in edges:
        neighbours[u - 1].append(v - 1)
        neighbours[v - 1].append(u - 1)
    labels = [0] * vertices
    for _ in range(vertices):
        labels = [seeds.derive(labels[v], *sorted(labels[u] for u in neighbours[v])) for v in range(vertices)]
    return seeds.derive(vertices, *sorted(labels))
