"""Two teachers for questions of dataset=docqa: one asks a retriever, the other searches a knowledge graph.

They are scripts in place of a strong model. Each gets a question, and then its own turns with the observations.
"""

from __future__ import annotations

import random

from selfimprove.datasets.docqa import FACT, RELATIONS, read, sentence
from selfimprove.tools.graph import rule
from selfimprove.types import Message, Share

NEEDS = ("facts",)  # of a data set: they read only questions of docqa
NOTHING = "No information."


class Teacher:
    """Asks for one document after the other, for `selfimprove.methods.auto_rag` to imitate. Its errors depend on the
    chat and on the seed."""

    def __init__(self, wrong_queries: float, misreads: float) -> None:
        self.wrong_queries, self.misreads = wrong_queries, misreads

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        """The next turn. Raises ValueError for a question of another data set."""
        question, *told = (message["content"] for message in chat if message["role"] != "system")
        path, at = read(question)
        rng = random.Random(f"{seed}/{question}/{len(told)}")
        for fact in (fact for text in told[::2] for fact in FACT.findall(text)):  # the facts that it has stated so far
            path, at = path[1:], fact[2]
        documents = [FACT.findall(text) for text in told[1::2]]
        there = {fact[:2]: fact for facts in documents for fact in facts}
        if documents and documents[-1] and rng.random() < self.misreads:
            there[path[0], at] = (path[0], at, rng.choice(documents[-1])[2])
        lines = list[str]()
        while path and (path[0], at) in there:
            lines.append(sentence(fact := there[path.pop(0), at]))
            at = fact[2]
        if not path:
            return "\n".join([*lines, f"Final Answer: {at}"])
        query = self.asked(rng, (path[0], at))
        if lines or not documents:
            return "\n".join([*lines, f"Query: {query}"])
        return f"{NOTHING}\nRefined Query: {query}"

    def asked(self, rng: random.Random, wanted: tuple[str, str]) -> str:
        """A query for the wanted fact, or, by an error, for another relation."""
        relation, robot = wanted
        if rng.random() < self.wrong_queries:
            relation = rng.choice([other for other in RELATIONS if other != relation])
        return f"{relation} of {robot}"


def teacher(*, wrong_queries: Share, misreads: Share) -> Teacher:
    """wrong_queries: the share of queries for a wrong relation; misreads: the share of turns that take the robot in
    some document for the answer."""
    return Teacher(wrong_queries, misreads)


class Agent:
    """Searches a graph, and documents if the graph lacks a fact, for `selfimprove.methods.symagent` to imitate."""

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        """The next turn. Raises ValueError for a question of another data set."""
        question, *told = (message["content"] for message in chat if message["role"] != "system")
        path, at = read(question)
        if not told:
            return "getReasoningPath(q)"
        if len(told) == 2:
            return f"{rule(path)}\nsearchNeighbor({at}, {path[0]})"
        thought, lacking = "", False
        for said, seen in zip(told[2::2], told[3::2], strict=True):
            thought, lacking = "", seen == "none"
            if "wikiSearch" in said:
                named = {fact[:2]: fact[2] for fact in FACT.findall(seen)}
                if (path[0], at) not in named:
                    return "finish()"
                seen = named[path[0], at]
                thought = f"({at}, {path[0]}, {seen})\n"
            if not lacking:
                at, path = seen.partition(", ")[0], path[1:]
        if lacking:
            return f"wikiSearch({at}, {path[0]})"
        return f"{thought}searchNeighbor({at}, {path[0]})" if path else f"{thought}finish({at})"


def agent() -> Agent:
    """The teacher of `selfimprove.methods.symagent`. It makes no mistakes."""
    return Agent()
