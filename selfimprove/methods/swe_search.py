"""SWE-Search: a tree of an agent's actions in a repository, judged by the agent itself, and a debate over its patches.

SWE-Search: Enhancing Software Agents with Monte Carlo Tree Search and Iterative Refinement (Antoniades et al. 2024,
arXiv 2410.20285). Released code: github.com/aorwall/moatless-tree-search at bc66ea6.

    repeat
        select     the node of the whole tree with the largest UCT score, of those that may have another child
        expand     one action a ~ pi(. | history, e), with e the value and the explanation of the last sibling, if any:
                   hindsight feedback
        simulate   do it in a copy of the repository. A rule or the value agent gives v in [-100, 100] and says why
        backup     N += 1 and the mean V of v, up to the root
    until there are `iterations` children, `finished` patches, or, where there are `least_finished` patches, one that is
               worth at least `threshold`
    answer     of the patches the one with the best v, with the best mean of V on its path, or what a debate chooses

Nothing is trained. The score is that of the code, or of the paper: `Selection`. With `select: null` the tree is linear
rollouts, one after the other from the root, the control.

What of this is the paper's and what is our own choice is said in docs/methods/swe_search.md.

*Wrong when* values do not tell good states from bad ones: then the search follows the noise. A bug that the agent mends
at once needs no search. No rule of the search sees whether the held-back tests pass.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from selfimprove.env import action_of
from selfimprove.env.repository import MAJOR, MINOR, spans
from selfimprove.env.worlds import Episode
from selfimprove.generate.debate import Debate, chosen, filled
from selfimprove.generate.tree import Branch, Search, anywhere, average, records, step
from selfimprove.policy import Policy
from selfimprove.types import CLOSED, Count, Message, NonNegative, Problem, Trajectory

NEEDS = ("episodes",)  # of the data set
TOOLS = ("env",)  # what its solver calls
EDITS = ("replace", "insert", "create")
HIGH, VERY_HIGH, LOW = 50.0, 75.0, 0.0  # thresholds of a value
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
Value = Annotated[float, Ge(-100), Le(100)]


@dataclass(frozen=True)
class Selection:
    """The weights of a node's UCT score. The defaults are those of the code's `Selector`."""

    __pydantic_config__ = CLOSED

    average: bool = False  # exploit the mean V of what was backed up, instead of the node's own value
    exploration: NonNegative = 1.0  # C
    depth_bonus: float = 0.0  # alpha
    depth_decay: NonNegative = 0.8  # beta
    depth_penalty: NonNegative = 0.8  # gamma
    leaf: NonNegative = 50.0
    bad_child: NonNegative = 5.0
    good_child: NonNegative = 5.0
    parent: bool = True
    finished: NonNegative = 50.0
    correction: NonNegative = 50.0
    diversity: NonNegative = 100.0
    duplicate_child: NonNegative = 25.0
    duplicate_action: NonNegative = 50.0


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    tools: Mapping[str, Any],
    select: Selection | None,
    iterations: Count,
    expansions: Count,
    depth: Count,
    finished: Count | None,
    least_finished: Count,
    threshold: Value | None,
    hindsight: bool,
    rules: bool,
    pick: Literal["mean", "best", "debate"],
    ask: str,
    feedback: str,
    debate: Debate,
    temperature: NonNegative = 0.2,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The patches of a problem's tree, the one that is chosen first; it has the tree. Without a patch: one unfinished
    path.

    `expansions` are the most children of a node, and `depth` the most actions of a path. `ask` asks the value agent for
    an explanation and a number, which is the last one of its text. In `feedback`, {action}, {value} and {explanation}
    are those of the last sibling. With `rules` some values are set by rules instead (`ruled`). metadata["seen"] has
    [what was seen, the reward] of each action, which nothing here reads, and metadata["value"] what the end was judged
    to be worth.
    """
    tree = Tree(
        policy, tools["env"].start(problem), depth, ask, feedback if hindsight else "", rules, select is not None
    )
    tree.sampling = {"temperature": temperature, "max_tokens": max_tokens}
    root = Branch(policy.render(problem.prompt), value=100.0)
    tree.worlds[root], tree.last = tree.world, root

    def choose(top: Branch) -> Branch | None:
        if select is None:
            return tree.last if tree.may_grow(tree.last) else top
        return anywhere(top, lambda node: score(node, select), lambda n: tree.may_grow(n) and children(n) < expansions)

    rules_of_search = Search(choose, tree.expand, lambda node: tree.last, tree.backup, 1)
    for _ in range(iterations):
        if stops(root, finished, least_finished, threshold) or not await step(root, rules_of_search):
            break
    ends = patches(root) or [node for node in root.walk() if not node.children and "why" in node.metadata]
    picked = await CHOICES[pick](problem, policy, ends, debate)
    for node in picked.path(root)[1:]:
        node.chosen = True
    found = [path_of(problem, root, end) for end in [picked, *(end for end in ends if end is not picked)]]
    if not patches(root):
        del found[1:]
    found[0].tree = records(root)
    return found


def path_of(problem: Problem, root: Branch, end: Branch) -> Trajectory:
    path = end.path(root)[1:]
    seen = [(node.metadata["observed"], node.reward) for node in path if node.metadata["action"]]
    return Trajectory(problem.id, [n.sample for n in path if n.sample], {"seen": seen, "value": end.value})


# Growing the tree


@dataclass
class Tree:
    """What a growing tree of actions needs besides its nodes."""

    policy: Policy
    world: Episode
    depth: int
    ask: str
    feedback: str
    rules: bool
    once: bool  # equal siblings count once
    sampling: dict[str, Any] = field(default_factory=dict)
    worlds: dict[Branch, Episode] = field(default_factory=dict)  # the episode up to each node
    last: Branch = field(default_factory=lambda: Branch([]))  # the newest node

    def may_grow(self, node: Branch) -> bool:
        full = len(node.prompt_ids) >= self.policy.engine.max_length
        return not (node.terminal or node.metadata.get("duplicate") or full)

    async def expand(self, node: Branch) -> None:
        """Give a node another child, do its action, and judge it.

        A child that is equal to a sibling is neither done nor judged, and has no children.
        """
        ids = self._prompt(node)
        (sample,) = await self.policy.sample(ids, **self.sampling)
        action = action_of(sample.text)
        said = action or sample.text
        equal = self.once and any((s.metadata["action"] or said_by(s)) == said for s in node.children or [])
        self.last = child = node.add(sample, math.exp(sum(sample.logprobs)))
        child.prompt_ids = [*ids, *sample.completion_ids]
        child.metadata = {"action": action, "duplicate": equal, "observed": ""}
        if ids != node.prompt_ids:
            child.metadata["asked_ids"] = ids
        if equal:
            return
        await self._act(child, action)
        child.value, child.metadata["why"] = await self._judge(child)

    def _prompt(self, node: Branch) -> list[int]:
        """What the policy reads at a node: its history, and the feedback of the last child that it has."""
        judged = [child for child in node.children or [] if "why" in child.metadata]
        if not self.feedback or not judged:
            return node.prompt_ids
        last = judged[-1]
        action, why = last.metadata["action"] or "no action", last.metadata["why"]
        text = filled(self.feedback, action=action, value=f"{last.value:g}", explanation=why)
        if node.sample is None:
            asked = self.worlds[node].problem.prompt
            chat: list[Message] = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
            return self.policy.render([*chat[:-1], {**chat[-1], "content": f"{chat[-1]['content']}\n\n{text}"}])
        return self._behind(node, f"{node.metadata['observed']}\n\n{text}")

    def _behind(self, node: Branch, text: str) -> list[int]:
        """The ids behind a node's own action, with a user's turn."""
        assert node.sample is not None
        turn = self.policy.turn(text, node.sample.finish == "stop")
        return [*node.sample.prompt_ids, *node.sample.completion_ids, *turn]

    async def _act(self, child: Branch, action: str | None) -> None:
        assert child.parent is not None
        assert child.sample is not None
        world = self.worlds[child] = self.worlds[child.parent].copy()
        text = f"{MAJOR}there is no line `Action: ...`"
        if action is not None:
            seen = await world.step(action)
            text, child.reward, child.terminal = seen.text, seen.reward, seen.done
            if seen.status != "ok":
                child.status = seen.status
            elif seen.done:
                child.status = "correct" if world.reward >= 1 else "wrong"
        child.observe(text, self.policy.turn(text, child.sample.finish == "stop"))
        child.terminal = child.terminal or child.depth >= self.depth

    async def _judge(self, child: Branch) -> tuple[float, str]:
        """v and its explanation, by a rule or by the value agent. Where it names no number, v is 0."""
        if self.rules and (known := ruled(child)):
            return known
        ids = self._behind(child, f"{child.metadata['observed']}\n\n{self.ask}")
        if len(ids) >= self.policy.engine.max_length:
            return 0.0, "no room to ask"
        (reply,) = await self.policy.sample(ids, **self.sampling)
        numbers = NUMBER.findall(reply.text)
        value = min(100.0, max(-100.0, float(numbers[-1]))) if numbers else 0.0
        return value, reply.text.strip()

    def backup(self, path: Sequence[Branch]) -> None:
        if not path[-1].metadata["duplicate"]:
            average(path[-1], path[-1].value)


def ruled(child: Branch) -> tuple[float, str] | None:
    """The values that the code's rules set: of searches, of actions that failed, and of giving up."""
    seen, verb = child.metadata["observed"], verb_of(child)
    if seen.startswith(MAJOR):
        return -50.0, seen
    if seen.startswith(MINOR):
        return -25.0, seen
    if verb == "reject":
        return -100.0, "It gave up."
    if verb == "find":
        new = spans(seen) - context(child.parent)
        return (100.0, "The search found new lines.") if new else (0.0, "The search found nothing new.")
    return None


def stops(root: Branch, finished: int | None, least: int, threshold: float | None) -> bool:
    """Whether the search has enough patches."""
    ends = patches(root)
    if finished is not None and len(ends) >= finished:
        return True
    return threshold is not None and len(ends) >= least and any(end.value >= threshold for end in ends)


def patches(root: Branch) -> list[Branch]:
    """The ends by `finish`, of each parent the first."""
    ends = [node for node in root.walk() if verb_of(node) == "finish" and "why" in node.metadata]
    return list({end.parent: end for end in reversed(ends)}.values())[::-1]


# The score of a node


def score(node: Branch, weights: Selection) -> float:
    """The UCT score; infinite without visits."""
    return sum(terms(node, weights).values()) if node.visits else math.inf


def terms(node: Branch, weights: Selection) -> dict[str, float]:
    """Each term of a visited node's score, with its sign (`Selector.uct_score` in the code's selector.py)."""
    v, d, below = node.q if weights.average else node.value, node.depth, node.children or []
    values = [child.value for child in below if "why" in child.metadata]
    above = node.parent.visits if node.parent else 1
    names = Counter(verb_of(child) for child in below)
    bad = len(values) == 1 and values[0] <= LOW and any(verb_of(child) in EDITS for child in below)
    doubtful = not below and v <= LOW and node.parent is not None and node.parent.value > HIGH
    corrects = failed(node) and not (node.parent and failed(node.parent))
    return {
        "exploit": v,
        "explore": weights.exploration * math.sqrt(math.log(above) / node.visits),
        "depth bonus": weights.depth_bonus * math.exp(-weights.depth_decay * (d - 1)),
        "depth": -weights.depth_penalty * math.sqrt(d),
        "leaf": weights.leaf * (not below and node.value >= HIGH),
        "bad child": weights.bad_child * (v - values[0]) if bad and v >= HIGH else 0.0,
        "good child": -weights.good_child * any(value >= VERY_HIGH for value in values),
        "parent": HIGH - v if weights.parent and doubtful else 0.0,
        "finished": -weights.finished * (edited(node) and any(map(finished_high, below))),
        "correction": weights.correction / (1 + len(below) ** 2) if corrects else 0.0,
        "diversity": weights.diversity * diversity(node) if weights.diversity else 0.0,
        "duplicate child": -weights.duplicate_child * sum(c.metadata["duplicate"] for c in below) ** 2,
        "duplicate action": -weights.duplicate_action * sum((count - 1) ** 2 for count in names.values()),
    }


def said_by(node: Branch) -> str:
    return node.sample.text if node.sample else ""


def verb_of(node: Branch) -> str:
    return str(node.metadata.get("action") or "").partition(" ")[0]


def children(node: Branch) -> int:
    return len(node.children or [])


def failed(node: Branch) -> bool:
    """Whether the action of a node could not be done, so that a correction is expected."""
    return str(node.metadata.get("observed", "")).startswith((MAJOR, MINOR))


def finished_high(node: Branch) -> bool:
    """Whether a patch of value 100 stands here or below."""
    return any(verb_of(end) == "finish" and end.value >= 100 for end in node.walk())


def above(node: Branch | None) -> list[Branch]:
    """A node and its ancestors, without the root."""
    found = list[Branch]()
    while node is not None and node.parent is not None:
        found.append(node)
        node = node.parent
    return found


def edited(node: Branch) -> bool:
    return any(verb_of(one) in EDITS and not failed(one) for one in above(node))


def context(node: Branch | None) -> set[tuple[str, int]]:
    """The lines that were seen up to a node."""
    return {line for one in above(node) for line in spans(one.metadata["observed"])}


def diversity(node: Branch) -> float:
    """1 minus the mean overlap of the lines that this node and each other expanded node have seen.

    The overlap is the lines in common by all lines. It is 0 before the node has seen any, and 1 where there is no
    other.
    """
    own, top = context(node), node
    while top.parent is not None:
        top = top.parent
    others = [context(other) for other in top.walk() if other.children and other is not node]
    if not own or not others:
        return float(bool(own))
    return 1 - sum(len(own & other) / len(own | other) for other in others) / len(others)


# The choice among patches


async def best(problem: Problem, policy: Policy, ends: Sequence[Branch], debate: Debate) -> Branch:
    """The largest v; of equal ones the first."""
    return max(ends, key=lambda end: end.value)


async def mean(problem: Problem, policy: Policy, ends: Sequence[Branch], debate: Debate) -> Branch:
    """The largest mean of V over the path, the root with it."""

    def worth(end: Branch) -> float:
        path = above(end)
        qs = [node.q for node in path] + [path[-1].parent.q if path[-1].parent else 0.0]
        return sum(qs) / len(qs)

    return max(ends, key=worth)


async def debated(problem: Problem, policy: Policy, ends: Sequence[Branch], debate: Debate) -> Branch:
    """What the agents' debate concludes, or the largest v where that names no patch."""
    if len(ends) < 2:
        return ends[0]
    solutions = [f"value {end.value:g}: {end.metadata['why']}\n{end.metadata['observed']}" for end in ends]
    number = await chosen(problem, policy, solutions, debate)
    return await best(problem, policy, ends, debate) if number is None else ends[number]


CHOICES = {"best": best, "mean": mean, "debate": debated}
