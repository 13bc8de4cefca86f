"""Checks a colouring of a graph's vertices, written as lines "vertex: colour" or as a JSON object.

`metadata["edges"]` is a list of pairs of vertices. `metadata["colours"]` is the number of colours that may be used, or
a list of their names. `metadata["vertices"]` may name vertices without an edge. Vertices and colours are words or
numbers. The gold answer is not read: every proper colouring is right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from selfimprove.verify import Outcome

NEEDS_GOLD = False

_ASSIGNED = re.compile(
    r"(?:^|[\n{,;])[ \t*•-]*(?:(?:vertex|node)[ \t]+)?[\"'*]*(\w+)[\"'*]*[ \t]*(?::|=|->|→)[ \t*]*"
    r"(?:colou?r[ \t]+)?[\"'*]*(\w+)",
    re.IGNORECASE,
)


def check(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Check that every vertex has a colour, no edge joins two of the same colour, and only allowed colours are used.

    If a vertex is given several colours, the last one counts. The reason of `wrong` names the first violation.
    """
    try:
        vertices, edges = graph(metadata)
        colours = metadata["colours"]
        allowed = None if isinstance(colours, int) else {str(colour).lower() for colour in colours}
    except (KeyError, TypeError, ValueError) as error:
        return Outcome("error", 0.0, reason=f"metadata needs `edges`, a list of pairs, and `colours`: {error!r}")
    found = read(text, vertices)
    if not found:
        return Outcome("unparseable", 0.0, reason='no line "vertex: colour"')
    extracted = ", ".join(f"{vertex}: {found[vertex]}" for vertex in vertices if vertex in found)
    used = set(found.values())
    reason = None
    if missing := [vertex for vertex in vertices if vertex not in found]:
        reason = f"vertex {missing[0]} has no colour"
    elif same := [(u, v) for u, v in edges if found[u] == found[v]]:
        reason = f"edge {same[0][0]}-{same[0][1]} joins two of {found[same[0][0]]}"
    elif allowed is None and len(used) > colours:
        reason = f"{len(used)} colours where {colours} may be used"
    elif allowed is not None and not used <= allowed:
        reason = f"{min(used - allowed)} is none of the colours"
    return Outcome("wrong", 0.0, extracted, reason=reason) if reason else Outcome("correct", 1.0, extracted)


def graph(metadata: dict[str, Any]) -> tuple[list[str], list[tuple[str, str]]]:
    """Vertices and edges as words. Raises KeyError, TypeError or ValueError when `metadata` has no graph."""
    edges = [(str(u), str(v)) for u, v in metadata["edges"]]
    vertices = [*map(str, metadata.get("vertices", [])), *(v for edge in edges for v in edge)]
    return list(dict.fromkeys(vertices)), edges


def read(text: str, vertices: Sequence[str]) -> dict[str, str]:
    """The colour that `text` gives to each vertex it names; the last one if it gives several."""
    return {vertex: colour.lower() for vertex, colour in _ASSIGNED.findall(text) if vertex in vertices}


def reference(gold: str, metadata: dict[str, Any]) -> str:
    """The gold colouring. It is a completion already."""
    return gold
