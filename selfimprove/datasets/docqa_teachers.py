"""Two teachers for questions of dataset=docqa: one asks a retriever, the other searches a knowledge graph.

They are scripts that stand in the place of a strong model. Each is shown a question, and then its own turns with what came
of them.
"""

from __future__ import annotations

import random

from selfimprove.datasets.docqa import FACT, RELATIONS, read, sentence
from selfimprove.tools.graph import rule
from selfimprove.types import Message, Share

NEEDS = ("facts",)  # of a data set: they read questions of docqa alone
NOTHING = "No information."


class Teacher:
    """Asks for one document after the other, as `selfimprove.methods.auto_rag` learns to. What it draws depends on what it
    is shown and on the seed."""

    def __init__(self, wrong_queries: float, misreads: float) -> None:
        self.wrong_queries, self.misreads = wrong_queries, misreads

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        """The next turn. Raises ValueError for a question of another data set."""
        question, *told = (message["content"] for message in chat if message["role"] != "system")
        path, at = read(question)
        rng = random.Random(f"{seed}/{question}/{len(told)}")
        for fact in (fact for text in told[::2] for fact in FACT.findall(text)):  # what it has read out so far
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
        """A query for what is wanted, or for another relation."""
        relation, robot = wanted
        if rng.random() < self.wrong_queries:
            relation = rng.choice([other for other in RELATIONS if other != relation])
        return f"{relation} of {robot}"


def teacher(*, wrong_queries: Share, misreads: Share) -> Teacher:
    """wrong_queries: the share of queries for another relation; misreads: the share of turns that take for an answer
    whatever is named in some document."""
    return Teacher(wrong_queries, misreads)


class Agent:
    """Searches a graph, and documents where the graph lacks a fact, as `selfimprove.methods.symagent` learns to."""

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
