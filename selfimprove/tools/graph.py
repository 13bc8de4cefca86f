"""A knowledge graph as a tool: relations between entities, and rules that answer known questions.

The graph is a dict of dicts: entity -> relation -> entities. A rule is a path of relations between two entities, with
variables in place of the entities: "pal(x, z1) & boss(z1, y)".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

from selfimprove.binding import Target, bind
from selfimprove.errors import ConfigError
from selfimprove.tools.retrieval import Retriever
from selfimprove.types import Count

Triple = tuple[str, str, str]  # subject, relation, object
Seed = tuple[str, str, str]  # a known question, its entity, its answer


def _bound(node: Target) -> Callable[[], Any]:
    try:
        return bind(node, "facts")
    except ConfigError as problem:
        raise ValueError(str(problem)) from None


Bound = Annotated[Any, BeforeValidator(_bound)]


class Graph:
    """Entities and their relations. A graph `over` another one also has the other's triples, and adds only to
    itself."""

    def __init__(self, triples: Iterable[Triple], over: Graph | None = None) -> None:
        self.links: dict[str, dict[str, list[str]]] = {}
        self.over = over
        for triple in triples:
            self.add(triple)

    def add(self, triple: Triple) -> bool:
        """Add a triple; False if it is there already."""
        subject, relation, other = triple
        if other in self.neighbors(subject, relation):
            return False
        self.links.setdefault(subject, {}).setdefault(relation, []).append(other)
        return True

    def neighbors(self, entity: str, relation: str) -> list[str]:
        """The entities to which a relation of this one leads, in the order of their triples."""
        below = self.over.neighbors(entity, relation) if self.over else []
        return [*below, *self.links.get(entity, {}).get(relation, [])]

    def paths(self, start: str, end: str, most: int) -> list[list[str]]:
        """The shortest paths of relations from one entity to another, of at most `most` relations, by breadth-first
        search over this graph's own triples."""
        found, reached = list[list[str]](), {start: 0}
        queue = deque[tuple[str, list[str]]]([(start, [])])
        while queue:
            entity, path = queue.popleft()
            if path and entity == end:
                found.append(path)
                continue
            if len(path) == most or (found and len(path) >= len(found[0])):
                continue
            for relation, others in self.links.get(entity, {}).items():
                for other in others:
                    if other == end or reached.setdefault(other, len(path) + 1) >= len(path) + 1:
                        queue.append((other, [*path, relation]))
        return found


def rule(path: Sequence[str]) -> str:
    """A path of relations as a rule with the variables x, z1, z2, ..., y."""
    names = ["x", *(f"z{i}" for i in range(1, len(path))), "y"]
    return " & ".join(f"{relation}({names[i]}, {names[i + 1]})" for i, relation in enumerate(path))


class Knowledge:
    """The tool: a graph, and rules of known questions."""

    def __init__(self, triples: Iterable[Triple], seeds: Sequence[Seed], k: int, beam: int, hops: int) -> None:
        self.graph, self.k, self.beam, self.hops = Graph(triples), k, beam, hops
        self._seeds = {" ".join(question.split()): (entity, answer) for question, entity, answer in seeds}
        self._nearest = Retriever(list(self._seeds), len(self._seeds))

    async def rules(self, question: str) -> str:
        """The k known questions most like this one, one a line, each with up to `beam` rules from its entity to its
        answer. A question without a path to its answer is left out, and so is this question itself."""
        lines, question = list[str](), " ".join(question.split())
        for known in (await self._nearest(question)).splitlines():
            paths = self.graph.paths(*self._seeds[known], self.hops) if known != question else []
            if paths:
                lines.append(f"{known} {' or '.join(dict.fromkeys(map(rule, paths[: self.beam])))}")
            if len(lines) == self.k:
                break
        return "\n".join(lines)

    async def __call__(self, text: str) -> str:
        """The neighbours of "entity, relation", one a line."""
        entity, _, relation = (part.strip() for part in text.partition(","))
        return "\n".join(self.graph.neighbors(entity, relation))


def require_knowledge(*, facts: Target, seeds: Target, **options: Any) -> None:
    """Raises ConfigError if there is no triple or no known question."""
    for key, node in (("facts", facts), ("seeds", seeds)):
        where = f"method.tools.knowledge.{key}"
        if not bind(node, where)():
            raise ConfigError(f"{where}: {node['_target_']} gives nothing, and has to give at least one", where)


def knowledge(*, facts: Bound, seeds: Bound, k: Count = 3, beam: Count = 3, hops: Count = 3) -> Knowledge:
    """The tool, open.

    facts: the function that gives the triples; seeds: the function that gives the known questions; k: known questions
    that are shown; beam: rules of each; hops: relations of a rule at most.
    """
    return Knowledge(facts(), seeds(), k, beam, hops)
