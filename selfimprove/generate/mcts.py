"""MCTS-DPO's tree search over the steps of a solution (Xie et al. 2024, arXiv 2405.00451), on `generate/tree.py`.

`search` grows a tree and walks down it, one step of the solution at a time. `Rules` holds its parts as functions: what
a step is, what it is worth, which branch to follow, how values are backed up, and which step to take next. The paper's
functions and those of its code are below. The candidates of a node are one request.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from selfimprove.generate.tree import Branch, Search, step
from selfimprove.policy import Policy
from selfimprove.types import CLOSED, Count, NonNegative, Sample, Share


@dataclass(frozen=True)
class Rules:
    """The parts of a search, each a plain function."""

    propose: Callable[[Branch], Awaitable[Sequence[Sample]]]  # candidate steps of a node; empty: the node is a dead end
    evaluate: Callable[[Sequence[Branch]], Awaitable[None]]  # sets value, reward, terminal and status of new children
    prior: Callable[[Sequence[float]], float]  # of a step, from its tokens' log-probabilities
    select: Callable[[Branch], float]  # the child with the largest value is followed
    backup: Callable[[Sequence[Branch]], None]  # updates a path, from where the search began to its last node
    choose: Callable[[Branch], tuple[float, ...]]  # the child with the largest value is the next step
    iterations: int  # before each step is chosen
    first_iterations: int  # before the first one
    depth: int  # steps that an iteration looks ahead
    recount: bool = False  # count two visits for the node that an iteration starts from, as MCTS-DPO's code does


async def search(root: Branch, rules: Rules) -> list[Branch]:
    """Grow the tree and walk down it until a solution is finished. Returns the chosen nodes, without the root."""
    node, path = root, list[Branch]()
    while not node.terminal:
        for _ in range(rules.first_iterations if node is root else rules.iterations):
            await iterate(node, rules)
        if not node.children:
            break
        node = max(node.children, key=rules.choose)
        node.chosen = True
        path.append(node)
    return path


async def iterate(top: Branch, rules: Rules) -> list[Branch]:
    """Run one iteration from `top` and return its path.

    It follows the best child, and expands nodes that were not expanded yet. It ends at a finished solution or at the
    depth limit, and backs up.
    """

    async def expand(node: Branch) -> None:
        if node.children is not None:
            return
        node.children = []
        for sample in await rules.propose(node):
            node.add(sample, rules.prior(sample.logprobs))
        await rules.evaluate(node.children)
        for child in node.children:
            child.q = child.reward + node.v

    def follow(node: Branch) -> Branch | None:
        return max(node.children or [], key=rules.select, default=None)

    top.visits += rules.recount
    return await step(top, Search(lambda start: start, expand, follow, rules.backup, rules.depth))


# Priors: of a step's log-probabilities, in nats


def prior_inside(logprobs: Sequence[float], penalty: float) -> float:
    """exp(sum log p / len^penalty), as MCTS-DPO's code has it."""
    return math.exp(sum(logprobs) / len(logprobs) ** penalty) if logprobs else 1.0


def prior_outside(logprobs: Sequence[float], penalty: float) -> float:
    """exp(sum log p) / len^penalty, as MCTS-DPO's paper has it."""
    return math.exp(sum(logprobs)) / len(logprobs) ** penalty if logprobs else 1.0


# Selection, backup and choice


def puct(node: Branch, exploration: float) -> float:
    """Q + exploration * p * sqrt(N of the parent) / (1 + N)."""
    assert node.parent is not None
    return node.q + exploration * node.prior * math.sqrt(node.parent.visits) / (1 + node.visits)


def backup(path: Sequence[Branch], discount: float, least: int) -> None:
    """Update the nodes from the path's end to its start.

    V = sum_c w_c Q_c / sum_c w_c over the children, w_c = max(least, N_c). Q = r + discount * V. N += 1. The last node
    of the path keeps its V, and the root has no Q.
    """
    for node in reversed(path):
        if node.children and node is not path[-1]:
            weights = [max(least, child.visits) for child in node.children]
            values = (weight * child.q for weight, child in zip(weights, node.children, strict=True))
            node.v = sum(values) / sum(weights)
        node.visits += 1
        if node.parent is not None:
            node.q = node.reward + discount * node.v


def most_visited(node: Branch) -> tuple[float, ...]:
    """N x (1 + the range of the children's N), then Q, then V. The range rewards a node with diverse continuations."""
    visits = [child.visits for child in node.children or [node]]
    return node.visits * (max(visits) - min(visits) + 1), node.q, node.v


# Steps from a policy


@dataclass(frozen=True)
class Steps:
    """How a policy is asked for candidate steps."""

    __pydantic_config__ = CLOSED

    stop: tuple[str, ...] = ("\n",)  # what ends a step
    temperature: NonNegative = 1.0
    step_tokens: Count | None = None  # most tokens of a step; None: only the solution has a limit
    max_tokens: Count | None = None  # most tokens of a solution; None: the policy's own limit
    similarity: Share = 0.99  # candidates that are more similar than this count as one; see `alike`
    finish_at: Count | None = None  # from this depth on, there is one candidate: the whole rest of the solution


async def propose(node: Branch, policy: Policy, n: int, steps: Steps) -> list[Sample]:
    """Up to n different next steps of a node, sampled in one request. A blank step counts only if all are blank."""
    last = steps.finish_at is not None and node.depth >= steps.finish_at
    left = room(node, policy, steps)
    samples = await policy.sample(
        node.prompt_ids,
        1 if last else n,
        temperature=steps.temperature,
        max_tokens=left if last or steps.step_tokens is None else min(steps.step_tokens, left),
        stop=() if last else steps.stop,
    )
    return distinct(samples, steps.similarity)


def ended(node: Branch, policy: Policy, steps: Steps) -> bool:
    """Whether a solution is finished: its last step ended by itself, or there is no room for another step."""
    sample = node.sample
    assert sample is not None
    if sample.finish == "stop" and not any(stop in sample.text for stop in steps.stop):
        return True
    if steps.finish_at is not None and node.depth > steps.finish_at:
        return True
    return room(node, policy, steps) <= 0 or len(node.prompt_ids) >= policy.engine.max_length


def room(node: Branch, policy: Policy, steps: Steps) -> int:
    """How many more tokens a solution may have behind this node."""
    return (steps.max_tokens or policy.max_tokens) - (len(node.prompt_ids) - prompt_length(node))


def prompt_length(node: Branch) -> int:
    """Tokens of the problem's prompt, before any step."""
    while node.parent is not None:
        node = node.parent
    return len(node.prompt_ids)


def distinct(samples: Sequence[Sample], threshold: float) -> list[Sample]:
    """The samples without blank lines and repetitions. A sample that ends the solution is not a blank line."""
    kept: list[Sample] = []
    for sample in samples:
        blank = not sample.text.strip() and (sample.text or sample.finish != "stop")
        if not blank and not any(alike(sample.text, other.text, threshold) for other in kept):
            kept.append(sample)
    return kept or list(samples[:1])


def alike(one: str, other: str, threshold: float) -> bool:
    """Whether two steps say the same.

    They do if they are equal without outer white space, or if their share of matching characters (difflib's ratio) is
    above `threshold`. MCTS-DPO's code asks BERTScore, which needs a second model.
    """
    one, other = one.strip(), other.strip()
    if one == other:
        return True
    match = SequenceMatcher(None, one, other, autojunk=False)
    return threshold < 1 and match.quick_ratio() > threshold and match.ratio() > threshold
