"""A problem answered in several turns. After each answer the user says the same words, and the policy answers again."""

from __future__ import annotations

import asyncio

from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.types import Count, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify import Check


async def turns(
    problem: Problem,
    policy: Policy,
    *,
    turns: Count,
    ask: str,
    check: Check,
    n: Count = 1,
    shown: Count | None = None,
    until_right: bool = False,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """`n` dialogues of up to `turns` answers. Each is one trajectory, with one sample a turn.

    `ask` is what the user says after an answer. `shown` is how many earlier answers the policy sees. None means all,
    and then each turn's prompt ids start with the turn before. A dialogue ends early if the model's window is full.
    With `until_right` it also ends at the first answer that `check` finds correct. `max_tokens` limits one answer.
    """

    async def talk(number: int) -> Trajectory:
        own = policy.for_problem(problem, number)
        return Trajectory(
            problem.id, await _talk(problem, own, turns, ask, check, shown, until_right, temperature, max_tokens)
        )

    return await asyncio.gather(*map(talk, range(n)))


async def by_turn(
    problem: Problem,
    policy: Policy,
    *,
    turns: Count,
    ask: str,
    check: Check,
    shown: Count | None = None,
    until_right: bool = False,
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One dialogue as in `turns`, with a trajectory for each turn. A trajectory has all samples up to its turn.

    It is for held-out problems. metadata["stage"] is the turn, from 1. So figures come out by turn, and `method.answer`
    chooses among the turns. If the dialogue ends early, its last answer also counts for all later turns.
    """
    samples = await _talk(problem, policy, turns, ask, check, shown, until_right, temperature, max_tokens)
    return [Trajectory(problem.id, samples[:turn], {"stage": turn}) for turn in range(1, turns + 1)]


async def _talk(
    problem: Problem,
    policy: Policy,
    turns: int,
    ask: str,
    check: Check,
    shown: int | None,
    until_right: bool,
    temperature: float,
    max_tokens: int | None,
) -> list[Sample]:
    """The answers of one dialogue, in order."""
    dialogue = Dialogue(policy, problem.prompt)
    for turn in range(turns):
        if turn:
            if shown is not None:
                dialogue.show(shown)
            dialogue.user(ask)
            if dialogue.full:
                break
        sample = await dialogue.reply(temperature=temperature, max_tokens=max_tokens)
        if until_right and (await check(sample.text, problem)).status == "correct":
            break
    return dialogue.samples
