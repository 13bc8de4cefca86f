"""SymAgent: an agent plans by rules of a graph, searches graph and documents, and learns from its own trajectories.

SymAgent: A Neural-Symbolic Self-Learning Agent Framework for Complex Reasoning over Knowledge Graphs (Liu et al. 2025,
arXiv 2502.03283).

    trajectory mu   a question q, then turns of the policy, each a thought and an action, with the observation:
        getReasoningPath(q)      rules of the k known questions nearest to q, found by breadth-first search in the graph
        searchNeighbor(e, r)     entities of the graph, with the triples that mu has added
        wikiSearch(e, r)         documents; the triples (e, r, e') that the next turn states join the graph
        finish(e1, .., en)       the answers A_mu
    reward r(mu) = |A_mu & A_gt| / |A_gt|
    explore         mu for each q, at temperature 1
    refine          mu^ by the same policy, which sees mu and r(mu)
    merge           mu or mu^, whichever has the higher reward; the shorter one if equal; neither if both are 0
    train           from the last policy, with loss on its turns only; repeated in each round

*Wrong when* a wrong path can lead to a right answer: the reward does not see it, and the path is learnt. Also wrong
when documents do not name what the graph lacks.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from selfimprove.filter.spans import row, spans, whole
from selfimprove.generate.act import act
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.policy.chat import messages_of
from selfimprove.policy.teacher import asked, told
from selfimprove.tools.graph import Graph, Triple
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Trajectory
from selfimprove.verify import Outcome

train = sft

TOOLS = ("knowledge", "retriever")  # what its solvers call
NOTHING = "none"  # the observation after a search that finds nothing
_ACTION = re.compile(r"(getReasoningPath|searchNeighbor|wikiSearch|finish)\(([^()]*)\)")
_TRIPLE = re.compile(r"^\(([^(),]+), ([^(),]+), ([^(),]+)\)", re.MULTILINE)


class Episode:
    """Takes the actions of one trajectory. Its graph has the tool's triples and those that the trajectory extracted."""

    def __init__(self, problem: Problem, tools: Mapping[str, Any], passages: int) -> None:
        self.question = str(problem.metadata.get("question", problem.prompt))
        self.tools, self.passages = tools, passages
        self.graph = Graph([], over=tools["knowledge"].graph)
        self.asked: tuple[str, str] | None = None  # entity and relation of the last search of documents
        self.extracted = list[Triple]()

    async def __call__(self, text: str) -> str | None:
        """The observation after the last action in a text; None: it finishes, or has no action."""
        self.extract(text)
        found = _ACTION.findall(text)
        if not found or found[-1][0] == "finish":
            return None
        name, arguments = found[-1]
        if name == "getReasoningPath":
            return await self.tools["knowledge"].rules(self.question) or NOTHING
        entity, _, relation = (part.strip() for part in arguments.partition(","))
        if name == "searchNeighbor":
            return ", ".join(self.graph.neighbors(entity, relation)) or NOTHING
        self.asked = entity, relation
        passages = (await self.tools["retriever"](f"{relation} of {entity}")).splitlines()
        return " ".join(passages[: self.passages]) or NOTHING

    def extract(self, text: str) -> None:
        """Add triples of a text to the graph, if they are about the entity and relation just searched for."""
        for triple in _TRIPLE.findall(text) if self.asked else ():
            if triple[:2] == self.asked and self.graph.add(triple):
                self.extracted.append(triple)
        self.asked = None


async def explore(
    problem: Problem,
    policy: Policy,
    *,
    steps: Count,
    passages: Count,
    tools: Mapping[str, Any],
    check: Callable[[str, Problem], Awaitable[Outcome]],
    refine: str | None,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """A trajectory mu, and mu^, before which the policy sees mu; only mu if `refine` is None.

    `refine` is the message after mu that asks for mu^, with {reward} in it. metadata["refined"] is true for mu^.
    """
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    dialogue = Dialogue(policy, problem.prompt)
    first = await _episode(problem, dialogue, tools, steps, passages, options)
    if refine is None:
        return [first]
    outcome = await check(first.text, problem)
    dialogue.user(refine.replace("{reward}", f"{outcome.reward:.2g}"))
    if dialogue.full:
        return [first]
    again = Dialogue(policy, dialogue.ids)
    return [first, await _episode(problem, again, tools, steps, passages, options, refined=True)]


async def answer(
    problem: Problem,
    policy: Policy,
    *,
    steps: Count,
    passages: Count,
    tools: Mapping[str, Any],
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One trajectory, for held-out problems. metadata["extracted"] has the triples that it found in documents."""
    options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    return [await _episode(problem, Dialogue(policy, problem.prompt), tools, steps, passages, options)]


async def _episode(
    problem: Problem,
    dialogue: Dialogue,
    tools: Mapping[str, Any],
    steps: int,
    passages: int,
    options: Mapping[str, Any],
    refined: bool = False,
) -> Trajectory:
    """One trajectory that continues a dialogue without samples."""
    episode = Episode(problem, tools, passages)
    await act(dialogue, episode, actions=steps, **options)
    metadata = {"refined": refined, "extracted": [list(triple) for triple in episode.extracted]}
    return Trajectory(problem.id, dialogue.samples, metadata)


async def seeds(
    problem: Problem, policy: Policy, *, steps: Count, passages: Count, tools: Mapping[str, Any], seed: int
) -> list[Trajectory]:
    """A trajectory by the tool `teacher`, whose words are tokenized once. It teaches a small policy the form."""
    chat = messages_of(problem.prompt)
    dialogue, episode = Dialogue(policy, problem.prompt), Episode(problem, tools, passages)
    for _ in range(steps + 1):
        options: dict[str, Any] = {"temperature": 1.0, "max_tokens": None, "seed": seed}
        words = await asked(tools["teacher"], policy, chat, dialogue.ids, **options)
        sample = await told(policy, dialogue.ids, words, seed)
        if sample is None:
            break
        dialogue.take(sample)
        if (observed := await episode(words)) is None:
            break
        dialogue.user(observed)
        chat = [*chat, {"role": "assistant", "content": words}, {"role": "user", "content": observed}]
    return [Trajectory(problem.id, dialogue.samples)] if dialogue.samples else []


def right(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """A row for each trajectory that ended and has a reward."""
    for group in groups:
        for attempt in group:
            if attempt.verdict.reward > 0 and attempt.trajectory.samples[-1].finish == "stop":
                yield whole(attempt.trajectory)


def merged(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """A row for each problem: the shortest trajectory of the highest reward; none if all rewards are 0.

    The row of a refined trajectory has its turns after the problem's own prompt, without the first trajectory.
    """
    for group in groups:
        whole_ones = [a for a in group if a.trajectory.samples[-1].finish == "stop" and a.verdict.reward > 0]
        if whole_ones:
            best = min(whole_ones, key=lambda a: (-a.verdict.reward, a.trajectory.sampled_tokens)).trajectory
            prompt = group[0].trajectory.samples[0].prompt_ids
            yield row(best.problem_id, [best.id], prompt, spans(best.samples))
