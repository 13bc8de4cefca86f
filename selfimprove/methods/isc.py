"""ISC: a model learns to check its own answer within its response, and to answer again where it was wrong.

Small Language Model Can Self-correct (Han et al. 2024, arXiv 2401.07301): intrinsic self-correction, by partial answer
masking (PAM).

    generate   A0_1..A0_n ~ pi(. | Q)
    verify     r(Q, A0) in {0, 1}, by the data set's verifier
    filter     r = 1:  Q -> [A0] [check: correct]               loss on all of it
               r = 0:  Q -> A0 [check: incorrect] [A1]          PAM: no loss on A0; A1 is a right answer to Q
    train      pi = argmax  sum log pi(what stands in brackets | Q and all before it)
    answer     y ~ pi(. | Q), one response: A0, the check, and A1 where the policy itself says that A0 is wrong

What of this is the paper's and what is our own choice is said in docs/methods/isc.md.

*Wrong when* the policy cannot tell its right answers from its wrong ones. Then the check learns how often answers are
wrong and not which, and second answers replace right ones as readily as wrong ones. First answers in training are
sampled: the check may learn to see slips of sampling alone, and pass the errors of a greedy answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Literal

from selfimprove.filter.spans import Span, body, row
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.policy.chat import Text
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Trajectory

train = sft


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    check_words: str,
    temperature: NonNegative,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n first answers A0, a trajectory each. A policy that has learnt to check itself is stopped behind `check_words`,
    with which its check begins."""
    stop = (check_words.strip(),)
    found = await policy.sample(problem.prompt, n, temperature=temperature, max_tokens=max_tokens, stop=stop)
    return [Trajectory(problem.id, [sample]) for sample in found]


async def respond(
    problem: Problem,
    policy: Policy,
    *,
    check_words: str,
    incorrect: str,
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One response, for held-out problems: what stands before its check is the candidate of stage 1, all of it that of
    stage 2. metadata["triggered"] says whether the policy said that its first answer is wrong.

    `max_tokens` is of the first answer, and again of the check with the second one.
    """
    options = {"temperature": temperature, "max_tokens": max_tokens}
    stop = (check_words.strip(),)
    dialogue = Dialogue(policy, problem.prompt)
    first = whole = await dialogue.reply(stop=stop, **options)
    triggered = False
    if stop[0] in first.text and not dialogue.full:
        rest = await dialogue.reply(**options)
        triggered = rest.text.lstrip().startswith(incorrect.strip())
        whole = joined(first, rest)
    return [
        Trajectory(problem.id, [sample], {"stage": stage, "triggered": triggered})
        for stage, sample in enumerate((first, whole), start=1)
    ]


def joined(first: Sample, rest: Sample) -> Sample:
    """Two samples, of which the second goes on where the first was stopped, as the one that they are."""
    return replace(
        first,
        completion_ids=[*first.completion_ids, *rest.completion_ids],
        logprobs=[*first.logprobs, *rest.logprobs],
        text=first.text + rest.text,
        finish=rest.finish,
    )


def corrected(
    groups: Iterable[list[Attempt]],
    *,
    check_words: str,
    correct: str,
    incorrect: str,
    rows: Literal["masked", "unmasked", "plain"] = "masked",
    text: Text,
    seed: int,
) -> Iterator[Example]:
    """A row for each distinct first answer: right ones with a check that says so, wrong ones with a check and A1.

    `check_words`, then `correct` or `incorrect`, stand behind an answer. A1 is a right first answer to the same
    problem, drawn at random: a wrong answer to a problem that has none makes no row. An answer that was cut off or
    cannot be read makes none either. With `rows: unmasked` wrong first answers bear loss too. With `rows: plain` there
    is no check, and A1 stands in the place of a wrong answer: as many rows, with right answers alone.
    """
    says = {True: text.encode(check_words + correct), False: text.encode(check_words + incorrect)}
    begin = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(*says.values(), strict=False))]
    for group in groups:
        found = [(first_answer(attempt.trajectory.samples[0], begin, check_words), attempt) for attempt in group]
        answers = {ids: attempt for ids, attempt in found if ids}
        right = [ids for ids, a in answers.items() if a.verdict.status == "correct"]
        rng = random.Random(f"{seed}/{group[0].problem.id}")
        for ids, attempt in answers.items():
            good = attempt.verdict.status == "correct"
            if not good and (attempt.verdict.status != "wrong" or not right):
                continue
            second = ids if good else rng.choice(right)
            spans = [Span(second, True)]
            if rows != "plain":
                spans = [Span(ids, good or rows == "unmasked"), Span(says[good], True), *([] if good else spans)]
            names = [attempt.trajectory.id] if good else [attempt.trajectory.id, answers[second].trajectory.id]
            prompt = attempt.trajectory.samples[0].prompt_ids
            yield row(attempt.problem.id, names, prompt, [*spans, Span([text.end], True)], metadata={"right": good})


def first_answer(sample: Sample, begin: list[int], check_words: str) -> tuple[int, ...]:
    """The ids of A0 alone; none where it was cut off. A check that follows it is left out. `begin` is what all
    checks begin with, as the policy has learnt it; an answer before the same words in other ids is given up."""
    if sample.finish != "stop":
        return ()
    if check_words.strip() not in sample.text:
        return tuple(body(sample))
    size = len(begin)
    return tuple(sample.completion_ids[:-size]) if sample.completion_ids[-size:] == begin else ()
