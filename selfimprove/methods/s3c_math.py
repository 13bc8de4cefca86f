"""S3c-Math: a model learns to notice a wrong step as it writes, to say so, and to write the right one.

S^3c-Math: Spontaneous Step-level Self-correction Makes Large Language Models Better Mathematical Reasoners (Yan et al.
2024, arXiv 2409.01524). s_1..s_n is the worked solution to x.

    fold k of K, one a round
        author     pi_k, from pi_0, on x -> s_1..s_n of all problems but those of fold k
        err        of fold k, for each i:  s' ~ pi_k(. | x, s_<i), and the rest behind s' greedily
                   s' is wrong where it is not s_i and the rest misses the answer
                   rows: x -> [s_1..s_n], and of up to two wrong steps  x -> [s_<i] s' [reflection] [s_i..s_n]
    learn, in the last round
        train      pi, from pi_0:  max  sum log pi(what stands in brackets | x and all before it)
    answer     y ~ pi(. | x), one plain response

So the errors are the model's own, on problems it was not trained on. A wrong step is read, and never learnt.

What of this is the paper's and what is our own choice is said in docs/methods/s3c_math.md.

*Wrong when* a right step in other words is taken for a wrong one, because the rest behind it went wrong. The model then
learns to take back what was right. It is wrong too where steps stand on several lines: a step is a line.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from annotated_types import Ge

from selfimprove.datasets.worked import steps_of
from selfimprove.filter.spans import Span, body, row
from selfimprove.generate.dialogue import Dialogue
from selfimprove.made import Made
from selfimprove.policy import Policy
from selfimprove.policy.chat import Text
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Trajectory

NEEDS = ("solution",)  # of the data set

train = sft
BREAK = "\n"  # between steps


async def written(problem: Problem, policy: Policy) -> list[Trajectory]:
    """The worked solution, as if it had been sampled, in the role `gold`. Nothing is sampled."""
    said = BREAK.join(steps_of(problem))
    prompt, ids = policy.render(problem.prompt), [*policy.encode(said), policy.engine.end]
    scores = await policy.logprobs(prompt, ids)
    return [Trajectory(problem.id, [Sample(prompt, ids, scores, said, "stop", 0, role="gold")])]


async def errors(
    problem: Problem, policy: Policy, *, temperature: NonNegative = 1.0, max_tokens: Count | None = None
) -> list[Trajectory]:
    """The worked solution, then a trajectory for each step that was sampled behind the true ones and is another.

    Such a trajectory is the step, and all that the policy writes behind it, greedily. metadata["step"] is the step's
    place from 0. `max_tokens` is of the step, and again of the rest.
    """
    steps = steps_of(problem)

    async def one(place: int) -> list[Trajectory]:
        dialogue = Dialogue(policy.for_problem(problem, place), problem.prompt)
        dialogue.append("".join(step + BREAK for step in steps[:place]))
        if dialogue.full:
            return []
        step = await dialogue.reply(temperature=temperature, max_tokens=max_tokens, stop=(BREAK,))
        if step.text.strip() in ("", steps[place]):
            return []
        if BREAK in step.text and not dialogue.full:
            await dialogue.reply(temperature=0.0, max_tokens=max_tokens)
        return [Trajectory(problem.id, dialogue.samples, {"step": place})]

    found = await asyncio.gather(*map(one, range(len(steps))))
    return [*await written(problem, policy), *(trajectory for some in found for trajectory in some)]


def plain(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """x -> s_1..s_n of each problem."""
    for group in groups:
        yield solved(group[0])


def solved(gold: Attempt) -> Example:
    (sample,) = gold.trajectory.samples
    return Example(gold.problem.id, [gold.trajectory.id], sample.prompt_ids, sample.completion_ids)


def corrected(
    groups: Iterable[list[Attempt]],
    *,
    reflection: str,
    per_solution: Annotated[int, Ge(0)],
    rows: Literal["masked", "unmasked", "plain"] = "masked",
    text: Text,
    seed: int,
) -> Iterator[Example]:
    """x -> s_1..s_n of each problem, and a corrected row for each of up to `per_solution` wrong steps, drawn at random.

    With `rows: unmasked` wrong steps bear loss too. With `rows: plain` the worked solution stands once more in the
    place of each corrected row: as many rows, without errors.
    """
    for group in groups:
        gold, problem = group[0], group[0].problem
        if gold.trajectory.samples[0].role != "gold":
            continue  # the check of the worked solution itself failed
        yield solved(gold)
        steps, prompt = steps_of(problem), gold.trajectory.samples[0].prompt_ids
        wrong = [a for a in group[1:] if is_wrong(a)]
        rng = random.Random(f"{seed}/{problem.id}")
        for attempt in rng.sample(wrong, min(per_solution, len(wrong))):
            if rows == "plain":
                yield solved(gold)
                continue
            place = attempt.trajectory.metadata["step"]
            step = attempt.trajectory.samples[0]
            ended = [] if BREAK in step.text else text.encode(BREAK)
            before, after = "".join(s + BREAK for s in steps[:place]), BREAK.join(steps[place:])
            spans = [
                Span(text.encode(before) if before else [], True),
                Span([*(body(step) if ended else step.completion_ids), *ended], rows == "unmasked"),
                Span(text.encode(reflection + BREAK), True),
                Span([*text.encode(after), text.end], True),
            ]
            more = {"step": place, "wrong": step.text.strip()}
            yield row(problem.id, [attempt.trajectory.id], prompt, spans, metadata=more)


def is_wrong(attempt: Attempt) -> bool:
    """Whether a step that is not the true one led to another answer, or to none. One that was cut off is not known."""
    step = attempt.trajectory.samples[0]
    return attempt.verdict.status in ("wrong", "unparseable") and (step.finish == "stop" or BREAK in step.text)


def all_rows(groups: Iterable[list[Attempt]], *, made: Made) -> Iterator[Example]:
    """The rows of all folds."""
    return made.examples("err")
