"""Agent-R: a policy searches an environment, finds its own first error on bad paths, and learns to turn to good ones.

Agent-R: Training Language Model Agents to Reflect via Iterative Self-Training (Yuan et al. 2025, arXiv 2501.11425).

    generate   pi_v builds a tree for each task. From the root down, a node without actions gets n sampled ones, without
               duplicates. Then the search follows the child with the largest
                   W / N + c sqrt(ln N_parent / N),   unvisited first, ties at random.
               An episode that ends is backed up at once with its reward r. So the leaves are whole paths.
               pi_v judges the actions of each path with less than the best r, in order: good, uncertain or bad. The
               path is cut at its first bad action t'
    verify     each path is played again in the environment: r
    filter     for a bad path tau_b and a good path tau_g of a task, with r_g > alpha and r_g - r_b > beta:
                   tau_b[1..t']  [a thought of revision, and the action `wait`]  ok.  [tau_g after the shared steps]
               with loss only on the parts in brackets; and tau_g itself, with loss on all of its texts
    train      pi_{v+1} by supervised fine-tuning on both

docs/methods/agent_r.md says which parts are the paper's and which our own choice.

*Wrong when* the good path does not fit after the cut. It started from the shared steps, and the bad actions may have
changed the environment. Also wrong when the policy cannot tell its bad actions from good ones: then the cut is late, or
at a good action.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Len

from selfimprove.env import WAIT, action_of
from selfimprove.env.worlds import Episode
from selfimprove.filter.spans import Span, row, whole
from selfimprove.generate import act
from selfimprove.generate.tree import Branch, Search, average, best, records, step, uct
from selfimprove.plan import Pass
from selfimprove.policy import Policy
from selfimprove.policy.chat import Text
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Trajectory

T = TypeVar("T")

train, evaluate = sft, act.episodes

NEEDS = ("episodes",)  # of the data set
TOOLS = ("env",)  # what its solvers call
THOUGHTS = (
    "I went wrong.",
    "That was a mistake.",
    "This does not lead to the goal.",
    "I have to correct myself.",
    "My last step was wrong.",
    "I should try another way.",
    "That did not help.",
    "I was on the wrong path.",
    "I need another plan.",
    "Let me start again from here.",
)


# The search


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    iterations: Count,
    n: Count,
    actions: Count,
    exploration: NonNegative,
    ask: str,
    tools: Mapping[str, Any],
    seed: int,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The finished paths of a task's tree, largest reward first; the first path has the tree.

    A path ends with its episode, after `actions` actions, at a text without an action, or when the window is full.
    metadata["seen"] has [observation, reward] of each action. `ask` is the question about an action. If another path
    has a larger reward, metadata["cut"] is the place, from 0, of the first action that the policy calls bad, or None.
    """
    rng = random.Random(seed)
    root = Branch(policy.render(problem.prompt))
    tree = Tree(policy, n, actions, {"temperature": temperature, "max_tokens": max_tokens})
    tree.worlds[root] = tools["env"].start(problem)

    def follow(node: Branch) -> Branch | None:
        left = [child for child in node.children or [] if child not in tree.closed]
        return best(left, partial(uct, exploration=exploration), rng) if left else None

    rules = Search(
        select=lambda top: None if top in tree.closed else top,
        expand=tree.expand,
        follow=follow,
        backup=lambda path: None,  # `expand` backs up an episode that ends
        ahead=actions,
    )
    for _ in range(iterations):
        await step(root, rules)
    return await paths(problem, policy, root, ask)


@dataclass
class Tree:
    """The state of a growing tree of actions besides its nodes."""

    policy: Policy
    n: int  # actions sampled at a node
    actions: int  # of a path, at most
    sampling: dict[str, Any]
    worlds: dict[Branch, Episode] = field(default_factory=dict)  # the episode up to each node
    closed: set[Branch] = field(default_factory=set)  # nodes from which every path has ended

    async def expand(self, node: Branch) -> None:
        """Sample the actions of a new node, without duplicates, and back up those that end the episode."""
        if node.children is not None:
            return
        node.children = []
        samples = await self.policy.sample(node.prompt_ids, self.n, **self.sampling)
        different = {action_of(sample.text) or sample.text: sample for sample in reversed(samples)}
        children = [node.add(sample, math.exp(sum(sample.logprobs))) for sample in reversed(different.values())]
        await asyncio.gather(*map(self._act, children))
        for child in children:
            if child.terminal:
                average(child, child.value)
                self.closed.add(child)
        above: Branch | None = node
        while above is not None and all(child in self.closed for child in above.children or []):
            self.closed.add(above)
            above = above.parent

    async def _act(self, child: Branch) -> None:
        """Take the action of a new node in the environment."""
        assert child.parent is not None
        assert child.sample is not None
        action, world = action_of(child.sample.text), self.worlds[child.parent].copy()
        if action is None:
            child.terminal, child.status, child.value = True, "unparseable", world.reward
            return
        seen = await world.step(action)
        child.observe(seen.text, self.policy.turn(seen.text, child.sample.finish == "stop"))
        child.reward, child.value = seen.reward, world.reward
        full = len(child.prompt_ids) >= self.policy.engine.max_length
        child.terminal = seen.done or full or child.depth == self.actions
        if seen.status != "ok":
            child.status = seen.status
        elif child.terminal:
            child.status = "correct" if child.value >= 1 else "wrong"
        self.worlds[child] = world


async def paths(problem: Problem, policy: Policy, root: Branch, ask: str) -> list[Trajectory]:
    """The finished paths as trajectories. The policy judges the actions of paths with less than the largest reward."""
    ends = sorted((node for node in root.walk() if node.terminal), key=lambda node: -node.value)
    most = ends[0].value if ends else 0.0
    all_paths = {end: end.path(root)[1:] for end in ends}
    asked = dict.fromkeys(node for end, path in all_paths.items() if end.value < most for node in path)
    bad = dict(zip(asked, await asyncio.gather(*(is_bad(policy, node, ask) for node in asked)), strict=True))
    found = list[Trajectory]()
    for end, path in all_paths.items():
        seen = [(node.metadata["observed"], node.reward) for node in path if "observed" in node.metadata]
        metadata: dict[str, Any] = {"seen": seen}
        if end.value < most:
            metadata["cut"] = next((place for place, node in enumerate(path) if bad[node]), None)
        found.append(Trajectory(problem.id, [node.sample for node in path if node.sample], metadata))
    if found:
        for node in all_paths[ends[0]]:
            node.chosen = True
        found[0].tree = records(root)
    return found


async def is_bad(policy: Policy, node: Branch, ask: str) -> bool:
    """Whether the policy, when it is asked, calls the action of a node neither good nor uncertain."""
    assert node.parent is not None
    assert node.sample is not None
    observed = node.metadata.get("observed", "")
    turn = policy.turn(f"{observed}\n{ask}", node.sample.finish == "stop")
    ids = [*node.parent.prompt_ids, *node.sample.completion_ids, *turn]
    if len(ids) >= policy.engine.max_length:
        return False  # no room to ask
    (reply,) = await policy.sample(ids, temperature=0)
    return not any(word in reply.text.lower() for word in ("good", "uncertain"))


# What is learnt


def revised(
    groups: Iterable[list[Attempt]],
    *,
    alpha: Annotated[Sequence[float], Len(1)],
    beta: NonNegative,
    cut: Literal["first bad", "end", "none"] = "first bad",
    per_problem: Count | None = None,
    text: Text,
    step: Pass,
    seed: int,
) -> Iterator[Example]:
    """For each task, a row for each pair of a bad and a good path, and a row for each good path.

    A good path has a reward above `alpha`, a list by round, and more than `beta` above that of the bad path. `cut` says
    where the bad path ends: after its first bad action, or at its `end`; with `none` there are no pairs. `per_problem`
    is the largest number of rows of each kind, drawn at random. With `first bad`, a path in which the policy finds no
    bad action is in no pair.
    """
    least = alpha[min(step.round, len(alpha) - 1)]
    for group in groups:
        rng = random.Random(f"{seed}/{group[0].problem.id}")
        good = [a for a in group if a.verdict.reward > least]
        pairs = [(g, b, place_of(b.trajectory, cut)) for g in good for b in group if gap(g, b) > beta]
        found = [(g, b, place) for g, b, place in pairs if place is not None]
        for g, b, place in drawn(rng, found, per_problem):
            yield spliced(g.trajectory, b.trajectory, place, rng.choice(THOUGHTS), text)
        for g in drawn(rng, good, per_problem):
            yield whole(g.trajectory)


def gap(good: Attempt, bad: Attempt) -> float:
    return good.verdict.reward - bad.verdict.reward


def place_of(bad: Trajectory, cut: str) -> int | None:
    """The place, from 0, of the last action that a row keeps of a bad path; None if there is no such action."""
    done = len(bad.metadata["seen"])
    place = {"first bad": bad.metadata.get("cut"), "end": done - 1}.get(cut)
    return place if place is not None and 0 <= place < done else None


def drawn(rng: random.Random, found: Sequence[T], most: int | None) -> list[T]:
    return list(found) if most is None or len(found) <= most else rng.sample(found, most)


def spliced(good: Trajectory, bad: Trajectory, last: int, thought: str, text: Text) -> Example:
    """The bad path up to its action `last`, the revision, and the good path after the steps that both share."""
    left = bad.samples[: last + 1]
    pairs = itertools.zip_longest(left, good.samples)
    shared = next(i for i, (b, g) in enumerate(pairs) if b is None or b.completion_ids != g.completion_ids)
    revision = [*text.encode(f"{thought}\nAction: {WAIT}"), text.end]
    spans = [*told(bad, 0, last + 1, False, text), Span(revision, True), Span(text.turn("ok.", True), False)]
    spans += told(good, shared, len(good.samples), True, text)[:-1]
    metadata = {"cut": last, "shared": shared}
    return row(good.problem_id, [good.id, bad.id], bad.samples[0].prompt_ids, spans, metadata=metadata)


def told(trajectory: Trajectory, start: int, end: int, loss: bool, text: Text) -> list[Span]:
    """The steps of a path from `start` to before `end`: the policy's texts and the observations."""
    found = list[Span]()
    for sample, (seen, _) in list(zip(trajectory.samples, trajectory.metadata["seen"], strict=False))[start:end]:
        found += [Span(sample.completion_ids, loss), Span(text.turn(seen, sample.finish == "stop"), False)]
    return found
