"""Iterative prompting on graph colouring: who criticises an answer, and does it matter what is said?

GPT-4 Doesn't Know It's Wrong: An Analysis of Iterative Prompting for Reasoning Problems (Stechly, Marquez and
Kambhampati 2023, arXiv 2310.12397). Released code: github.com/kstechly/gpt-and-i, branch fmdm_data, llm-csp.

    y_0 ~ pi(. | x)
    for k = 0 .. rounds - 1:
        critic     none: stop.    self: pi reads x and y_k, alone, and accepts or says what is wrong.
                   verifier: a sound check accepts or not, and tells as much as `feedback` says
        accepted?  stop
        y_{k+1} ~ pi(. | x, y_0, review_0, .., y_k, review_k)       the whole history is sent again

The answer is the last one, y_K. With the verifier it is right whenever any answer was. The self-critic may refuse a
right answer, and then it is lost. The control samples rounds + 1 answers to x alone, of which the verifier picks a
right one: generate=best_of_n. `critic_alone` asks the critic about colourings of known kinds.

*Wrong when* the critic is not sound: it then refuses right answers, and later ones are no better. With a sound verifier
it gains nothing over the control where the policy does not use what it is told.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from selfimprove import seeds
from selfimprove.generate.critique import fill
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.types import Count, Message, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.colouring import graph, read

NEEDS = ("graph",)  # edges and colours in a problem's metadata

Check = Callable[[str, Problem], Awaitable[Outcome]]
Critic = Literal["none", "self", "verifier"]
Feedback = Literal["pass", "first", "all", "misleading"]
Kind = Literal["right", "spoilt", "non-optimal", "random"]
KINDS: tuple[Kind, ...] = ("right", "spoilt", "non-optimal", "random")


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    check: Check,
    critic: Critic,
    feedback: Feedback,
    rounds: Count,
    verify: list[Message],
    accept: str,
    refuse: str,
    retry: str,
    temperature: NonNegative = 1.0,
) -> list[Trajectory]:
    """The answers y_0, y_1, ... of one problem, in order. The last one is the one that counts.

    The self-critic is asked `verify`, with {question} and {solution} replaced. It accepts when its reply holds
    `accept`, in whatever case. `refuse` is all that `feedback: pass` tells. `retry` is the user's next turn, with
    {review} replaced. An answer's metadata has its `stage`; whether the critic `accepted` it (None: it was not asked,
    as after the last round); and the self-critic's `review`, whose sample stands in the next answer's trajectory. A
    history that leaves no room for an answer ends the rounds.
    """
    dialogue = Dialogue(policy, problem.prompt)
    samples = [await dialogue.reply(temperature=temperature)]
    answers: list[Trajectory] = []
    for stage in range(rounds + 1):
        answers.append(Trajectory(problem.id, list(samples), {"stage": stage, "accepted": None}))
        if critic == "none" or stage == rounds:
            break
        answer = samples[-1].text
        if critic == "self":
            reply = await criticise(problem, answer, policy, verify, temperature)
            samples.append(reply)
            accepted, review = accepts(reply.text, accept), reply.text
            answers[-1].metadata["review"] = review
        else:
            accepted = (await check(answer, problem)).status == "correct"
            rng = random.Random(seeds.derive(policy.seed, "feedback", *policy.scope, stage))
            review = "" if accepted else tell(answer, problem.metadata, feedback, refuse, rng)
        answers[-1].metadata["accepted"] = accepted
        if accepted:
            break
        dialogue.user(retry.replace("{review}", review))
        try:
            samples.append(await dialogue.reply(temperature=temperature))
        except ValueError:
            break  # no room left
    return answers


def self_critique(p: float, right: float, wrong: float, rounds: int) -> float:
    """The probability that the last answer is right, of independent answers that are right with probability p.

    The critic accepts a right one with probability `right` and a wrong one with `wrong`, and is asked `rounds` times.
    """
    stops = p * right + (1 - p) * wrong
    goes_on: float = (1 - stops) ** rounds
    return p * right * (1 - goes_on) / stops + goes_on * p


# What a sound verifier tells


def tell(text: str, metadata: dict[str, Any], feedback: Feedback, refuse: str, rng: random.Random) -> str:
    """What a verifier tells of a wrong answer (backprompt in their graph_coloring.py).

    pass: that it is wrong (`refuse`). first: its first error. all: all errors. misleading: of an edge that is coloured
    well, drawn at random, that its ends have one colour. Whatever the feedback but `pass`, an answer that leaves
    vertices out is told the first of them, and one without a bad edge that it has too many colours.
    """
    vertices, edges = graph(metadata)
    colours = read(text, vertices)
    if feedback == "pass":
        return refuse
    if missing := [v for v in vertices if v not in colours]:
        return f"Vertex {missing[0]} was given no colour."
    bad = [edge for edge in edges if colours[edge[0]] == colours[edge[1]]]
    if not bad:
        return f"This uses {len(set(colours.values()))} colours, and {metadata['colours']} are enough."
    good = [edge for edge in edges if edge not in bad]
    if feedback == "misleading":
        bad = [rng.choice(good)] if good else bad
    return "\n".join(clash(u, v, colours[u]) for u, v in (bad if feedback == "all" else bad[:1]))


def clash(u: str, v: str, colour: str) -> str:
    return f"Vertices {u} and {v} share an edge and both have colour {colour}."


# The critic


async def criticise(
    problem: Problem, colouring: str, policy: Policy, verify: list[Message], temperature: float
) -> Sample:
    """What the policy says of a colouring that it is shown with its graph, without any history."""
    (reply,) = await policy.sample(fill(verify, problem, colouring), temperature=temperature)
    return reply


def accepts(review: str, accept: str) -> bool:
    """Whether the phrase stands somewhere, in whatever case (check_backprompt in their response_generation.py)."""
    return accept.lower() in review.lower()


async def critic_alone(
    problem: Problem,
    policy: Policy,
    *,
    verify: list[Message],
    accept: str,
    temperature: NonNegative = 1.0,
) -> list[Trajectory]:
    """The critic on one colouring of each kind, and on one of its own that the policy has just given.

    A trajectory's last sample is the critic's reply; its metadata has the `kind` and the `colouring`, whether it was
    `accepted`, and how many edges the reply `named`, of them `hallucinated` ones, which the graph does not have.
    """
    rng = random.Random(seeds.derive(policy.seed, "kinds", *policy.scope))
    shown: dict[str, str] = {kind: example(problem, kind, rng) for kind in KINDS}
    drafts = await policy.sample(problem.prompt, temperature=temperature)
    shown["own"] = drafts[0].text
    vertices, pairs = graph(problem.metadata)
    edges = {frozenset(pair) for pair in pairs}
    requests = (criticise(problem, colouring, policy, verify, temperature) for colouring in shown.values())
    trajectories = []
    for (kind, colouring), reply in zip(shown.items(), await asyncio.gather(*requests), strict=True):
        named = edges_named(reply.text, vertices)
        metadata = {
            "kind": kind,
            "colouring": colouring,
            "accepted": accepts(reply.text, accept),
            "named": len(named),
            "hallucinated": sum(pair not in edges for pair in named),
        }
        trajectories.append(Trajectory(problem.id, [*(drafts if kind == "own" else []), reply], metadata))
    return trajectories


def example(problem: Problem, kind: Kind, rng: random.Random) -> str:
    """A colouring of one kind, made from the gold one, as the main part of their color_verification.py does.

    right: the gold one. spoilt: one vertex with an edge takes a neighbour's colour. non-optimal: half of one colour's
    vertices take a new colour. random: each vertex takes one of the colours, which may be right by chance.
    """
    vertices, edges = graph(problem.metadata)
    colouring = read(problem.gold or "", vertices)
    if kind == "spoilt":
        vertex, other = rng.sample(rng.choice(edges), 2)
        colouring[vertex] = colouring[other]
    elif kind == "non-optimal":
        classes = [[v for v in vertices if colouring[v] == colour] for colour in sorted(set(colouring.values()))]
        split = rng.choice([group for group in classes if len(group) > 1] or classes)
        new = str(problem.metadata["colours"] + 1)
        colouring |= dict.fromkeys(rng.sample(split, max(1, len(split) // 2)), new)
    elif kind == "random":
        colouring = {v: str(rng.randint(1, problem.metadata["colours"])) for v in vertices}
    return "\n".join(f"{v}: {colouring[v]}" for v in vertices)


_COLOUR = re.compile(r"\bcolou?r(?:ed)?\s+\w+", re.IGNORECASE)


def edges_named(review: str, vertices: Sequence[str]) -> list[frozenset[str]]:
    """Pairs of vertices that a review names: the only two vertices in a sentence or line, its colours apart."""
    pairs = []
    for sentence in re.split(r"[.\n;]", review):
        words = re.findall(r"\w+", _COLOUR.sub("", sentence))
        named = list(dict.fromkeys(word for word in words if word in vertices))
        if len(named) == 2:
            pairs.append(frozenset(named))
    return pairs
