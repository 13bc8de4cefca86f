"""A debate of a policy with itself: several agents choose among solutions, hear each other, and one more concludes.

As in SWE-Search (Antoniades et al. 2024, arXiv 2410.20285; MultiAgentDebate in the code's debate.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.types import CLOSED, Count, Message, NonNegative, Problem


@dataclass(frozen=True)
class Debate:
    """Agents that choose, `rounds` times, each time but the first after the others' last words."""

    __pydantic_config__ = CLOSED

    agents: Count
    rounds: Count
    temperature: NonNegative
    ask: str  # {question} and {solutions} are replaced
    others: str  # {answers} are the other agents' last words
    conclude: str  # {question}, {solutions} and {answers}


async def chosen(problem: Problem, policy: Policy, solutions: Sequence[str], debate: Debate) -> int | None:
    """The place, from 0, of the solution that the debate concludes to be best.

    None if its last text names none of them, or if the window has no room for them all.
    """
    last = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]
    numbered = "\n\n".join(f"Solution {i}, {solution}" for i, solution in enumerate(solutions, 1))
    shown = {"question": str(problem.metadata.get("question", last)), "solutions": numbered}
    agents = [Dialogue(policy, user(filled(debate.ask, **shown))) for _ in range(debate.agents)]
    words = list[str]()
    for _ in range(debate.rounds):
        if words:
            for i, agent in enumerate(agents):
                agent.user(filled(debate.others, answers=answers([*words[:i], *words[i + 1 :]])))
        if any(agent.full for agent in agents):
            break
        replies = await asyncio.gather(*(agent.reply(temperature=debate.temperature) for agent in agents))
        words = [reply.text for reply in replies]
    ids = policy.render(user(filled(debate.conclude, **shown, answers=answers(words))))
    if len(ids) >= policy.engine.max_length:
        return None
    (final,) = await policy.sample(ids, temperature=debate.temperature)
    numbers = [int(number) for number in re.findall(r"\d+", final.text)]
    return numbers[-1] - 1 if numbers and 1 <= numbers[-1] <= len(solutions) else None


def answers(words: Sequence[str]) -> str:
    return "\n\n".join(f"Agent {i}: {text.strip()}" for i, text in enumerate(words, 1))


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def filled(template: str, **values: str) -> str:
    """The template with its blanks filled. Blanks in what is filled in are left as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], m[0]), template)
