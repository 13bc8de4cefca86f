"""EVOLVE: a model learns to refine its answers by preference, and its refinements are what it learns from next.

Evolving LLMs' Self-Refinement Capability (Zeng et al. 2025, arXiv 2502.05605; first titled ARIES). z is the words that
ask for a refinement.

    activate (once)
        generate   y_1..y_n ~ pi(. | x)
        filter     y_w right, y_l wrong
        train      max  log pi(y_w | x) + log pi(y_w | x, y_l, z)
    prefer (each round)
        generate   y_0 ~ pi_v(. | x),  y_{i+1} ~ pi_v(. | x, y_i, z), a chain of four
        verify     a reward for each y_i
        filter     by reward: y_w the best, y_l the worst, where the gap is above a threshold
                   by rule:   y_w the last, y_l the first
        train      min  (1 - a) L_DPO(x; y_w, y_l) + a L_DPO(x, y_l, z; y_w, y_l), with pi_v as the reference
    answer     y_0, then y_1 ~ pi(. | x, y_0, z): turn 1 and turn 2

What of this is the paper's and what is our own choice is said in docs/methods/evolve.md.

*Wrong when* a refinement does not depend on what it is shown. Then both prompts learn the same, and turn 2 is turn 1
drawn again. The rule is wrong too where refinements are no better than what they refine.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Literal

from selfimprove.generate.best_of_n import best_of_n
from selfimprove.generate.turns import turns
from selfimprove.policy.chat import Text
from selfimprove.train.dpo import dpo
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Sample, Share

candidates, chain = best_of_n, turns
activate, prefer = sft, dpo


def refining(first: Sample, ask: str, text: Text) -> list[int]:
    """The ids of (x, y, z): a sample's prompt and completion, and the words that ask for a better one."""
    return [*first.prompt_ids, *first.completion_ids, *text.turn(ask, first.finish == "stop")]


def activation(
    groups: Iterable[list[Attempt]], *, ask: str, per_problem: Count, text: Text, seed: int
) -> Iterator[Example]:
    """Two rows for each of up to `per_problem` pairs of a right and a wrong answer: x -> y_w, and (x, y_l, z) -> y_w.

    The answers are drawn at random. A right answer to a problem without a wrong one makes the first row alone.
    """
    for group in groups:
        rng = random.Random(f"{seed}/{group[0].problem.id}")
        ended = [a for a in distinct(group) if a.trajectory.samples[0].finish == "stop"]
        right = [a for a in ended if a.verdict.status == "correct"]
        wrong = [a for a in ended if a.verdict.status == "wrong"]
        for lists in (right, wrong):
            rng.shuffle(lists)
        for i, better in enumerate(right[:per_problem]):
            chosen = better.trajectory.samples[0]
            name, ids = better.problem.id, chosen.completion_ids
            yield Example(name, [better.trajectory.id], chosen.prompt_ids, ids, metadata={"prompt": "direct"})
            if wrong:
                worse = wrong[i % len(wrong)].trajectory
                prompt = refining(worse.samples[0], ask, text)
                both = [better.trajectory.id, worse.id]
                yield Example(name, both, prompt, ids, metadata={"prompt": "refine"})


def distinct(group: list[Attempt]) -> list[Attempt]:
    """Attempts with different texts, the first of each."""
    return list({attempt.trajectory.text: attempt for attempt in reversed(group)}.values())[::-1]


def pairs(
    groups: Iterable[list[Attempt]],
    *,
    ask: str,
    a: Share,
    select: Literal["reward", "rule"],
    gap: NonNegative,
    text: Text,
) -> Iterator[Example]:
    """Two pairs for each chain: (y_w, y_l) behind x with weight 1 - a, and behind (x, y_l, z) with weight a.

    Weights are divided by their mean, so that each step is as large for every a; a pair of weight 0 is left out.
    `select` and `gap` are as of `best_and_worst`.
    """
    shares = {"direct": 1 - a, "refine": a}
    used = {prompt: share for prompt, share in shares.items() if share}
    for group in groups:
        for attempt in group:
            samples, rewards = attempt.trajectory.samples, attempt.verdict.step_rewards or []
            found = best_and_worst(samples, rewards, select, gap)
            if found is None:
                continue
            best, worst = (samples[i] for i in found)
            for prompt, share in used.items():
                yield Example(
                    attempt.problem.id,
                    [attempt.trajectory.id],
                    samples[0].prompt_ids if prompt == "direct" else refining(shown(samples[0], worst), ask, text),
                    best.completion_ids,
                    rejected_ids=worst.completion_ids,
                    weight=share * len(used),
                    metadata={"prompt": prompt, "chosen": found[0], "rejected": found[1]},
                )


def shown(first: Sample, other: Sample) -> Sample:
    """An answer of a chain as if it had been the first one."""
    return Sample(first.prompt_ids, other.completion_ids, other.logprobs, other.text, other.finish, other.seed)


def best_and_worst(samples: list[Sample], rewards: list[float], select: str, gap: float) -> tuple[int, int] | None:
    """The places of y_w and y_l in a chain; None if it makes no pair.

    `reward`: the best and the worst, of equals the last and the first, where the gap of their rewards is above `gap`.
    `rule`: the last and the first. Answers that are blank or were cut off are passed over, and two equal texts make no
    pair.
    """
    whole = [i for i, sample in enumerate(samples) if sample.finish == "stop" and sample.text.strip()]
    if len(whole) < 2:
        return None
    best, worst = whole[-1], whole[0]
    if select == "reward":
        best = max(whole, key=lambda i: (rewards[i], i))
        worst = min(whole, key=lambda i: (rewards[i], i))
        if rewards[best] - rewards[worst] <= gap:
            return None
    return None if samples[best].text.strip() == samples[worst].text.strip() else (best, worst)
