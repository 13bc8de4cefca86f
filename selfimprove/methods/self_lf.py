"""SELF: a model learns once from a teacher to give feedback and to refine, then learns from its own refined answers.

SELF: Language-Driven Self-Evolution for Large Language Model (Lu et al. 2023, arXiv 2310.00533). p is a prompt without
a label, r an answer, f a language feedback that ends in a verdict, r^ a refined answer.

    meta (once)
        generate   r ~ pi_0(. | p); f and r^ by the teacher
        train      L_meta = -E[ log pi(f | p, r) + log pi(r^ | p, r, f) + beta log pi(r^ | p) ]
    evolve (each round)
        generate   r ~ pi(. | p), f ~ pi(. | p, r), and r^ ~ pi(. | p, r, f) where f says that r is wrong, else r^ = r
        verify     f^ ~ pi(. | p, r^): accepted, or not
        filter     the accepted ones: D
        train      L = -E_D[ log pi(r^ | p) ] + alpha L_meta
    answer     r, and after online refinement r^: turn 1 and turn 2

The method reads no gold answer. Where there are some, `gold/precision` is logged: the share of accepted answers that
are right.

What of this is the paper's and what is our own choice is said in docs/methods/self_lf.md.

*Wrong when* the policy's verdict is not better than chance. Then the filter keeps wrong answers as readily as right
ones, and a refinement replaces right answers by wrong ones. Each round then teaches the policy its own errors.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from selfimprove.generate.critique import Critique, fill, verdict
from selfimprove.made import Made
from selfimprove.policy import Policy
from selfimprove.policy.teacher import hear, require_teacher, teacher_of
from selfimprove.schema import Config
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify import Context, Outcome

train = sft
GRADED = True  # verdicts are set beside the data set's own where gold answers are known


def require_stage(config: Config, node: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for a method without a teacher."""
    require_teacher(config)


async def taught(
    problem: Problem,
    policy: Policy,
    *,
    critique: Critique,
    temperature: NonNegative,
    teacher_temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
    tools: Mapping[str, Any],
    roles: Mapping[str, Policy],
    seed: int,
) -> list[Trajectory]:
    """(r, f, r^): the policy's answer, and what the teacher says to it.

    An answer that the teacher finds right is r^ as it is. Raises ValueError if a chat does not fit the window.
    """
    teacher = teacher_of(tools, roles)
    how: dict[str, Any] = {"temperature": teacher_temperature, "max_tokens": max_tokens, "seed": seed}
    (r,) = await policy.sample(problem.prompt, temperature=temperature, max_tokens=max_tokens)
    f = await hear(teacher, policy, fill(critique.verify, problem, r.text), **how)
    if verdict(f.text, critique.correct, critique.incorrect):
        return [Trajectory(problem.id, [r, f, r], {"accepted": True, "refined": False})]
    better = await hear(teacher, policy, fill(critique.refine, problem, r.text, review=f.text), **how)
    return [Trajectory(problem.id, [r, f, better], {"accepted": True, "refined": True})]


async def refined(
    problem: Problem,
    policy: Policy,
    *,
    critique: Critique,
    temperature: NonNegative,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """(r, f, r^) by the policy alone. r^ is r where f accepts it, and then metadata["accepted"] is true.

    Raises ValueError if a chat does not fit the window.
    """
    (r,) = await policy.sample(problem.prompt, temperature=temperature, max_tokens=max_tokens)
    f = await feedback(problem, policy, r.text, critique, max_tokens)
    if verdict(f.text, critique.correct, critique.incorrect):
        return [Trajectory(problem.id, [r, f, r], {"accepted": True, "refined": False})]
    chat = fill(critique.refine, problem, r.text, review=f.text)
    (better,) = await policy.sample(chat, temperature=temperature, max_tokens=max_tokens)
    return [Trajectory(problem.id, [r, f, better], {"accepted": False, "refined": True})]


async def online(
    problem: Problem, policy: Policy, *, critique: Critique, max_tokens: Count | None = None
) -> list[Trajectory]:
    """Greedily, for held-out problems: r is the candidate of stage 1, r^ that of stage 2."""
    (last,) = await refined(problem, policy, critique=critique, temperature=0.0, max_tokens=max_tokens)
    return [
        Trajectory(problem.id, last.samples[:1], {**last.metadata, "stage": 1}),
        Trajectory(problem.id, last.samples, {**last.metadata, "stage": 2}),
    ]


async def feedback(problem: Problem, policy: Policy, answer: str, critique: Critique, max_tokens: int | None) -> Sample:
    """f: what the policy says of an answer, greedily."""
    (f,) = await policy.sample(fill(critique.verify, problem, answer), temperature=0.0, max_tokens=max_tokens)
    return f


async def own_word(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    critique: Critique,
    max_tokens: Count | None = None,
) -> list[Outcome]:
    """`correct` where the policy's own feedback accepts r^, `wrong` where it does not, `unparseable` without a verdict.

    What was said is the outcome's `reason`. What is accepted already is not asked about again.
    """

    async def one(trajectory: Trajectory) -> Outcome:
        if trajectory.metadata["accepted"]:
            return Outcome("correct", 1.0, reason=trajectory.samples[1].text)
        f = await feedback(problem, context.policy, trajectory.text, critique, max_tokens)
        said = verdict(f.text, critique.correct, critique.incorrect)
        status: Any = {True: "correct", False: "wrong", None: "unparseable"}[said]
        return Outcome(status, float(said is True), reason=f.text)

    return list(await asyncio.gather(*map(one, trajectories)))


def meta_rows(groups: Iterable[list[Attempt]], *, beta: NonNegative) -> Iterator[Example]:
    """The rows of L_meta: p, r -> f, then p, r, f -> r^ where r was refined, then p -> r^ with weight `beta`.

    What was cut off is in no row.
    """
    for attempt in chain.from_iterable(groups):
        name, (r, f, better) = attempt.trajectory.id, attempt.trajectory.samples
        rows = [(f.prompt_ids, f, 1.0, "feedback"), (r.prompt_ids, better, beta, "direct")]
        if attempt.trajectory.metadata["refined"]:
            rows.insert(1, (better.prompt_ids, better, 1.0, "refine"))
        for prompt, said, weight, kind in rows:
            if said.finish == "stop" and weight:
                more = {"row": kind}
                yield Example(attempt.problem.id, [name], prompt, said.completion_ids, weight=weight, metadata=more)


def self_rows(
    groups: Iterable[list[Attempt]],
    *,
    keep: Literal["accepted", "all", "random"] = "accepted",
    mix: Annotated[float, Ge(0), Lt(1)],
    made: Made,
    seed: int,
) -> Iterator[Example]:
    """p -> r^ for the accepted answers, then rows of L_meta drawn at random, as many as make a share `mix` of all rows.

    The controls are without the filter: `all` answers, or as many `random` ones as are accepted. An answer that was cut
    off is in no row.
    """
    rng = random.Random(seed)
    whole = [a for a in chain.from_iterable(groups) if a.trajectory.samples[-1].finish == "stop"]
    accepted = [a for a in whole if a.verdict.status == "correct"]
    chosen = {"accepted": accepted, "all": whole}.get(keep) or rng.sample(whole, len(accepted))
    for attempt in chosen:
        r, better = attempt.trajectory.samples[0], attempt.trajectory.samples[-1]
        more = {"row": "self", "refined": attempt.trajectory.metadata["refined"]}
        yield Example(attempt.problem.id, [attempt.trajectory.id], r.prompt_ids, better.completion_ids, metadata=more)
    meta = list(made.examples("meta"))
    yield from rng.sample(meta, min(len(meta), round(len(chosen) * mix / (1 - mix))))
