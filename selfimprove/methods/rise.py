"""RISE: a model learns to answer better each time it is told that its last answer was wrong.

Recursive Introspection: Teaching Language Model Agents How to Self-Improve (Qu et al. 2024, arXiv 2407.18219), in its
form without a stronger model (self-distillation).

    generate   s_1 = x; at turn k = 1..K, until an answer is right:
                   a_k^1..a_k^{N_k} ~ pi_v(. | s_k)             N = (1, 16): one attempt, then the best of 16
                   a_k = the one of highest reward, the first of equals
                   s_{k+1} = (x, a_k, "the answer is incorrect, try again")
    verify     r(x, a_k): 1 right, 0 wrong, -1 where no answer can be read
    filter     D = {(s_k, a_k)}: all turns, or those that are better, best or right
    train      pi_{v+1} = argmax  sum_D exp(r / tau) log pi(a_k | s_k), with loss on a_k alone
    answer     five turns without knowing whether an answer is right; the majority of the five

What of this is the paper's, the released code's and our own is said in docs/methods/rise.md.

*Wrong when* the policy, shown its wrong answer, does no better than from the start: the later turns then teach nothing
that more samples of the first would not. Where most answers are right at once, later turns have few rows, all of hard
problems.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from annotated_types import Gt, Len

from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Trajectory
from selfimprove.verify import Judge

train = sft

Keep = Literal["all", "better", "best", "success"]


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    candidates: Annotated[Sequence[Count], Len(1)],
    ask: str,
    judge: Judge,
    shown: Count | None = None,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One dialogue, in which turn k is the best of `candidates[k]` answers; it ends with the first right one.

    `ask` is what a wrong answer is told, `shown` how many earlier answers the policy sees (None: all).
    """
    dialogue = Dialogue(policy, problem.prompt)
    for turn, n in enumerate(candidates):
        if turn:
            if shown is not None:
                dialogue.show(shown)
            dialogue.user(ask)
            if dialogue.full:
                break
        found = await dialogue.propose(n, temperature=temperature, max_tokens=max_tokens)
        outcomes = await judge(problem, [Trajectory(problem.id, [sample]) for sample in found])
        best = max(range(n), key=lambda i: (outcomes[i].reward, -i))
        dialogue.take(found[best])
        if outcomes[best].status == "correct":
            break
    return [Trajectory(problem.id, dialogue.samples)]


def weighted(groups: Iterable[list[Attempt]], *, keep: Keep = "all", tau: Annotated[float, Gt(0)]) -> Iterator[Example]:
    """A row for each kept turn: what the policy saw, and the turn's answer, with the weight exp(r / tau).

    An answer that repeats an earlier one of its dialogue makes no row, and neither does one that is blank or was cut
    off. `keep` is as of `kept`.
    """
    for group in groups:
        for attempt in group:
            samples, rewards = attempt.trajectory.samples, attempt.verdict.step_rewards or []
            said = set[str]()
            for turn, (sample, reward) in enumerate(zip(samples, rewards, strict=True)):
                text = sample.text.strip()
                if text and text not in said and sample.finish == "stop" and kept(rewards[: turn + 1], keep):
                    yield Example(
                        attempt.problem.id,
                        [attempt.trajectory.id],
                        sample.prompt_ids,
                        sample.completion_ids,
                        weight=math.exp(reward / tau),
                        metadata={"turn": turn + 1, "reward": reward},
                    )
                said.add(text)


def kept(rewards: Sequence[float], keep: Keep) -> bool:
    """Whether the last of these turns is kept, given the rewards up to it.

    `success`: only a right answer, of reward 1. The others keep every first turn, and then `all` every turn, `better`
    one above the turn before, `best` one that no earlier turn is above.
    """
    *before, last = rewards
    if keep == "success":
        return last == 1.0
    if keep == "all" or not before:
        return True
    return last > before[-1] if keep == "better" else last >= max(before)


def first_turns(groups: Iterable[list[Attempt]], *, tau: Annotated[float, Gt(0)]) -> Iterator[Example]:
    """The control of one turn: every right answer, of whichever turn, as an answer to the problem alone."""
    for group in groups:
        for attempt in group:
            first = attempt.trajectory.samples[0]
            for example in weighted([[attempt]], keep="success", tau=tau):
                yield replace(example, prompt_ids=first.prompt_ids)
