"""A search tree for one problem, and one iteration of growing it: select a node, expand it, follow a child, back up.

`step` runs an iteration. `Search` holds its parts as plain functions, so that different searches share one tree:

    MCTS-DPO      starts at the node where the next step is to be chosen. It expands a node once, with all its
                  candidates, and looks several steps ahead (generate/mcts.py)
    UCT           goes down by `uct` to a node without children; `average` backs up. Agent-R goes on to a leaf
    SWE-Search    picks the best node of the whole tree by `anywhere`, gives it one more child, looks one step ahead

A node is a `Branch` while the tree grows and a `types.Node` in the file. `records` makes the second from the first.
Start one search for each problem and gather them: then the engine answers the requests of all trees together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfimprove.types import Node, Sample, Status


@dataclass(eq=False, slots=True)
class Branch:
    """A node of a growing tree: the state after a step, and the statistics of taking that step."""

    prompt_ids: list[int]  # the problem's prompt and all that follows it, with this step and observations
    text: str = ""  # all steps so far, without observations
    parent: Branch | None = None
    sample: Sample | None = None  # the step; None at the root
    prior: float = 1.0  # p, how likely the policy is to take this step
    depth: int = 0
    value: float = 0.0  # what the state was judged to be worth
    reward: float = 0.0  # r, what the step gained
    q: float = 0.0
    v: float = 0.0
    visits: int = 0
    terminal: bool = False
    chosen: bool = False
    status: Status | None = None  # of a finished solution, if it was checked
    children: list[Branch] | None = None  # None: not expanded yet
    metadata: dict[str, Any] = field(default_factory=dict)  # JSON of the method's own

    def add(self, sample: Sample, prior: float) -> Branch:
        """Add a child by this step and return it. Nothing has judged it yet."""
        child = Branch(
            [*self.prompt_ids, *sample.completion_ids], self.text + sample.text, self, sample, prior, self.depth + 1
        )
        self.children = [*(self.children or []), child]
        return child

    def observe(self, text: str, ids: Sequence[int]) -> None:
        """Record what an environment answered to this step. Its token ids `ids` are in the prompts of all steps below.

        Call it before the node has children. The metadata keeps both, as `observed` and `observed_ids`.
        """
        self.prompt_ids = [*self.prompt_ids, *ids]
        self.metadata |= {"observed": text, "observed_ids": list(ids)}

    def walk(self) -> Iterator[Branch]:
        """This node and all below it, parents first, siblings side by side."""
        queue = [self]
        for node in queue:
            yield node
            queue += node.children or []

    def path(self, top: Branch) -> list[Branch]:
        """The nodes from `top` down to this one, both included. Raises ValueError if `top` is not above it."""
        nodes, node = [self], self
        while node is not top:
            if node.parent is None:
                raise ValueError("the node is not below the top of the path")
            nodes.append(node := node.parent)
        return nodes[::-1]


@dataclass(frozen=True)
class Search:
    """The parts of an iteration, each a plain function."""

    select: Callable[[Branch], Branch | None]  # the node to start from: the top or one below it; None: nothing to do
    expand: Callable[[Branch], Awaitable[None]]  # may give the node children; is called for each node on the way
    follow: Callable[[Branch], Branch | None]  # the child to go on to; None: the iteration ends at this node
    backup: Callable[[Sequence[Branch]], None]  # updates the nodes from the top to the end of the iteration
    ahead: int  # most steps that an iteration goes below the node it started from


async def step(top: Branch, rules: Search) -> list[Branch]:
    """Run one iteration in the tree below `top`. Returns the nodes from `top` to the iteration's end.

    The iteration ends at a terminal node, after `rules.ahead` steps, or where `rules.follow` names no child. The list
    is empty, and nothing has changed, where `rules.select` finds no node to start from.
    """
    start = rules.select(top)
    if start is None:
        return []
    path = start.path(top)
    for _ in range(rules.ahead):
        node = path[-1]
        if node.terminal:
            break
        await rules.expand(node)
        child = rules.follow(node)
        if child is None:
            break
        path.append(child)
    rules.backup(path)
    return path


# Selection and backup that do not depend on a method


def descend(top: Branch, score: Callable[[Branch], float], rng: random.Random) -> Branch:
    """Go from `top` down to a node without children. At each node go to the child with the largest `score`.

    Ties are broken at random.
    """
    node = top
    while node.children:
        node = best(node.children, score, rng)
    return node


def best(nodes: Sequence[Branch], score: Callable[[Branch], float], rng: random.Random) -> Branch:
    """The node with the largest `score`; equal ones by chance. Raises ValueError if there is no node."""
    scores = [score(node) for node in nodes]
    most = max(scores)
    return rng.choice([node for node, s in zip(nodes, scores, strict=True) if s == most])


def anywhere(top: Branch, score: Callable[[Branch], float], grows: Callable[[Branch], bool]) -> Branch | None:
    """The node of the whole tree with the largest `score`, among those that `grows` allows. Of equal ones: the first.

    None if `grows` allows no node.
    """
    return max(filter(grows, top.walk()), key=score, default=None)


def uct(node: Branch, exploration: float) -> float:
    """Q + exploration * sqrt(ln N_parent / N), with Q the mean of what was backed up (Kocsis and Szepesvari 2006).

    Infinite for a node without visits, so that it comes first. The root has no parent, and Q alone.
    """
    if node.parent is None:
        return node.q
    if not node.visits:
        return math.inf
    return node.q + exploration * math.sqrt(math.log(node.parent.visits) / node.visits)


def average(node: Branch, value: float) -> None:
    """Count a value for a node and all its ancestors: N += 1, and Q becomes the mean of the N values."""
    above: Branch | None = node
    while above is not None:
        above.visits += 1
        above.q += (value - above.q) / above.visits
        above = above.parent


# From a grown tree to records


def records(root: Branch) -> list[Node]:
    """The tree as it is stored, numbered parents first, the root as 0."""
    number: dict[Branch, int] = {}
    rows = []
    for branch in root.walk():
        number[branch] = len(number)
        sample = branch.sample
        rows.append(
            Node(
                id=number[branch],
                parent=-1 if branch.parent is None else number[branch.parent],
                depth=branch.depth,
                completion_ids=sample.completion_ids if sample else [],
                logprobs=sample.logprobs if sample else [],
                text=sample.text if sample else "",
                finish=sample.finish if sample else "length",
                seed=sample.seed if sample else 0,
                version=sample.version if sample else 0,
                prior=branch.prior,
                visits=branch.visits,
                q=branch.q,
                value=branch.value,
                reward=branch.reward,
                terminal=branch.terminal,
                chosen=branch.chosen,
                status=branch.status,
                metadata=branch.metadata,
            )
        )
    return rows


def solution(path: Sequence[Branch]) -> Sample:
    """The steps of a path, from the first, as one sample: the whole solution behind the problem's prompt.

    This holds where nothing was observed between the steps.
    """
    steps = [node.sample for node in path if node.sample is not None]
    first, last = steps[0], steps[-1]
    return Sample(
        prompt_ids=first.prompt_ids,
        completion_ids=[token for step in steps for token in step.completion_ids],
        logprobs=[logprob for step in steps for logprob in step.logprobs],
        text="".join(step.text for step in steps),
        finish=last.finish,
        seed=first.seed,
        temperature=first.temperature,
        role=first.role,
        version=first.version,
    )
