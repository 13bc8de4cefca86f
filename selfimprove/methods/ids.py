"""Iterative deepening sampling: a model is made to doubt its answer at budgets that grow geometrically.

Iterative Deepening Sampling as Efficient Test-Time Scaling (Chen, Koenig and Dilkina 2025, arXiv 2502.05449).

    y = ""                                       one assistant turn, behind the problem's prompt
    for k = 0, 1, 2, ...:
        y += pi(. | x, y)                        until y has B_k = T_0 * gamma^k tokens, or pi ends it
        y += trigger                             "Wait! Maybe I made some mistakes! ..."
    y += pi(. | x, y)                            after the last trigger: until the end token, or L tokens

N such chains feed a majority vote or best-of-N (method.answer). A chain of L tokens holds at most
1 + log_gamma(L / T_0) triggers. An engine without a prefix cache reads at most L * gamma / (gamma - 1) tokens of it
again, and the prompt once a trigger (`bounds`). With gamma = 1 the triggers stand every T_0 tokens: the control.

docs/methods/ids.md says which of this is the paper's and which is our own choice.

*Wrong when* a trigger makes more right answers wrong than wrong ones right. It also loses where the policy is mostly
right at once: the tokens of the triggers buy more as votes of plain samples.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from annotated_types import Ge

from selfimprove.filter.distinct import distinct
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Samples, Trajectory

AtEnd = Literal["trigger", "stop"]


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    chains: Samples,
    first: Count,
    growth: Annotated[float, Ge(1)],
    triggers: Annotated[int, Ge(0)],
    trigger: str,
    at_end: AtEnd = "trigger",
    temperature: NonNegative = 0.7,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """The text of each of `chains` chains before each trigger and at its end: a trajectory for each chain and stage.

    `first` is T_0, `growth` gamma, `triggers` the most in a chain. `max_tokens` is L, the tokens behind the prompt with
    the triggers; None: as many as the model's window has room for. An end token that comes before a trigger is taken
    back, and the trigger stands in its place. With `at_end: stop` it ends the chain instead, and the chain's answer
    then stands in all later stages.
    """

    async def chain(number: int) -> list[Trajectory]:
        dialogue = Dialogue(policy.for_problem(problem, number), problem.prompt)
        start, size = len(dialogue.ids), len(policy.encode(trigger))
        most = min(max_tokens or policy.engine.max_length, policy.engine.max_length - start)
        before = [b for b in itertools.islice(budgets(first, growth), triggers) if b + size < most]
        stages: list[Trajectory] = []
        ended = False
        for stage, end in enumerate([*before, most]):
            fits = len(dialogue.ids) - start + size < end  # else the trigger would reach beyond this budget
            if not stage or (fits and not ended):
                if stage:
                    dialogue.append(trigger)
                sample = await dialogue.reply(temperature=temperature, max_tokens=end - (len(dialogue.ids) - start))
                ended = at_end == "stop" and sample.finish == "stop"
            where = {"chain": number, "stage": stage, "continued": True}
            stages.append(Trajectory(problem.id, list(dialogue.samples), where))
        return stages

    all_chains = await asyncio.gather(*map(chain, range(chains)))
    return sorted(itertools.chain.from_iterable(all_chains), key=lambda t: int(t.metadata["stage"]))


def budgets(first: int, growth: float) -> Iterator[int]:
    """B_k = floor(T_0 * gamma^k), k = 0, 1, ...: where triggers stand; T_0 * (k + 1) for gamma = 1."""
    for k in itertools.count():
        yield math.floor(first * growth**k) if growth > 1 else first * (k + 1)


def bounds(first: int, growth: float, length: int) -> tuple[int, float]:
    """(most triggers, most tokens of a chain that are read again) within `length` tokens behind the prompt, gamma > 1.

    At trigger k, at most the B_k tokens before it are read again. Their sum is geometric.
    """
    if length < first:
        return 0, 0.0
    return 1 + math.floor(math.log(length / first, growth) + 1e-9), length * growth / (growth - 1)


def flipped(groups: Iterable[list[Attempt]], *, per_problem: Count, seed: int) -> Iterator[Example]:
    """The chains that went from a wrong answer to a correct one, each up to the stages where it did so.

    A draft that was cut before it gave an answer does not count as wrong.
    """
    for attempts in groups:
        kept, wrong = [], set[int]()
        for attempt in sorted(attempts, key=lambda a: int(a.trajectory.metadata["stage"])):
            chain = attempt.trajectory.metadata["chain"]
            if attempt.verdict.status == "wrong":
                wrong.add(chain)
            elif attempt.verdict.status == "correct" and chain in wrong:
                kept.append(attempt)
                wrong.discard(chain)
        yield from distinct(kept, per_problem, seed)
