"""Self-Lengthen: a generator and an extender teach each other to write longer, with no longer text to learn from.

Language Models can Self-Lengthen to Generate Long Texts (Quan et al. 2024, arXiv 2410.23933). A round is one
macro-iteration; G and E begin as the same model.

    ask        x ~ pi_0(. | two seed instructions), as many as are wanted             new instructions
    draft      y ~ G(. | x), two for each; short ones are dropped at random:          keep where u > 2 rank^3
    lengthen   up to 3 times, for the text y so far:
                   a = E(. | x, first half of y), and of it the first 2/3 of the lines
                   y' = a, then E(. | x, y, a)                                        kept where longer and whole
               the last y' is y+, where it has more than 1.2 times the words of y;    again keep where u > 2 rank^3
    train      G: x -> y+          E: x, y without a fifth of its lines -> y+
    align      pi, from pi_0: x and a limit of words -> y or y+, of all rounds so far  loss on the text alone

What is the released code's, what the paper's and what our own is said in docs/methods/self_lengthen.md.

*Wrong when* E does not enrich but goes on, or repeats: then texts get longer and worse, and nothing here sees it but a
check for repeated words. Length comes from instructions that bear longer texts; one that does not is padded.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TypedDict, Unpack

from selfimprove.datasets import lengths
from selfimprove.made import Made
from selfimprove.policy import Policy
from selfimprove.policy.chat import Text
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Share, Trajectory
from selfimprove.verify.text_checks import count_words, fault

train = sft


class Sampling(TypedDict, total=False):
    """How all texts are drawn."""

    temperature: NonNegative
    top_p: Share
    top_k: int
    max_tokens: Count | None


async def draft(
    problem: Problem, policy: Policy, *, n: Count, tries: Count, ngram: Count, seed: int, **sampling: Unpack[Sampling]
) -> list[Trajectory]:
    """n texts. One that is not whole is drawn again, up to `tries` times."""

    async def one(number: int) -> Trajectory:
        own = policy.for_problem(problem, number)
        for _ in range(tries):
            (sample,) = await own.sample(problem.prompt, **sampling)
            if is_whole(sample, ngram):
                break
        return Trajectory(problem.id, [sample], {"u": uniform(seed, number)})

    return await asyncio.gather(*map(one, range(n)))


def is_whole(sample: Sample, ngram: int) -> bool:
    """Whether a text ended by itself, at the end of a sentence, and has no `ngram` words in a row twice."""
    return sample.finish == "stop" and fault(sample.text, ngram) is None


def uniform(seed: int, number: int) -> float:
    """The u in [0, 1) that decides whether an attempt is dropped, drawn when it is made."""
    return random.Random(f"{seed}/{number}").random()


async def lengthen(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    extend: str,
    passes: Count,
    tries: Count,
    growth: NonNegative,
    ngram: Count,
    roles: dict[str, Policy],
    seed: int,
    **sampling: Unpack[Sampling],
) -> list[Trajectory]:
    """Up to n longer texts for a made problem, which holds an instruction and a draft.

    `extend` asks the extender: it has {instruction} and {response}. Each text has more than `growth` times the words of
    the draft. Up to `tries` are made until one has; else there is none.
    """
    instruction, first = str(problem.metadata["question"]), str(problem.metadata["response"])

    async def one(number: int) -> list[Trajectory]:
        extender = roles["extender"].for_problem(problem, number)
        for _ in range(tries):
            best: Sample | None = None
            for _ in range(passes):
                text = best.text if best else first
                longer = await enriched(extender, extend, instruction, text, sampling)
                if longer and is_whole(longer, ngram) and count_words(longer.text) > count_words(text):
                    best = longer
            if best and count_words(best.text) > growth * count_words(first):
                return [Trajectory(problem.id, [best], {"u": uniform(seed, number)})]
        return []

    return list(chain.from_iterable(await asyncio.gather(*map(one, range(n)))))


async def enriched(extender: Policy, extend: str, instruction: str, text: str, sampling: Sampling) -> Sample | None:
    """One pass: the first half is extended alone, and behind the first two thirds of that the whole text is.

    The sample's prompt is of the second request. None if the model's window has no room, or where the start that is
    kept has other ids than were drawn.
    """
    lines, between = paragraphs(text)
    half = extender.render(request(extend, instruction, between.join(lines[: len(lines) // 2])))
    whole = extender.render(request(extend, instruction, text))
    window = extender.engine.max_length
    if max(len(half), len(whole)) >= window:
        return None
    (former,) = await extender.sample(half, **sampling)
    lines, between = paragraphs(former.text)
    kept = extender.encode(between.join(lines[: 2 * len(lines) // 3]))
    if former.completion_ids[: len(kept)] != kept or len(whole) + len(kept) >= window:
        return None
    (latter,) = await extender.sample([*whole, *kept], **sampling)
    scores = await extender.logprobs(whole, kept) if kept else []
    return replace(
        latter,
        prompt_ids=whole,
        completion_ids=[*kept, *latter.completion_ids],
        logprobs=[*scores, *latter.logprobs],
        text=between.join(lines[: 2 * len(lines) // 3]) + latter.text,
    )


def paragraphs(text: str) -> tuple[list[str], str]:
    """The parts of a text and what is between them: blank lines, or line breaks where there are at most two parts."""
    parts = text.split("\n\n")
    return (parts, "\n\n") if len(parts) > 2 else (text.split("\n"), "\n")


def request(extend: str, instruction: str, response: str) -> str:
    return extend.replace("{instruction}", instruction).replace("{response}", response)


def drafts(groups: Iterable[list[Attempt]]) -> Iterator[Problem]:
    """A problem for each whole draft that is not dropped for being short; it holds the draft's text and ids."""
    for attempt in survivors([a for a in chain.from_iterable(groups) if a.verdict.status == "correct"]):
        (sample,) = attempt.trajectory.samples
        more = {"response": sample.text, "ids": sample.completion_ids, "origin": attempt.trajectory.id}
        yield replace(attempt.problem, id="", metadata={"question": attempt.problem.metadata["question"], **more})


def survivors(found: list[Attempt]) -> list[Attempt]:
    """Those with u > 2 rank^3. The rank is 1 / n for the longest, and 1 for the shortest, which never stays."""
    ordered = sorted(len(a.trajectory.text) for a in found)
    place = {length: ordered.index(length) for length in set(ordered)}
    return [a for a in found if a.trajectory.metadata["u"] > 2 * (1 - place[len(a.trajectory.text)] / len(found)) ** 3]


def extended(groups: Iterable[list[Attempt]]) -> list[Attempt]:
    """The longer texts that are trained on: the same for all three learners."""
    return survivors(list(chain.from_iterable(groups)))


def generator_rows(groups: Iterable[list[Attempt]], *, text: Text) -> Iterator[Example]:
    """Instruction -> longer text."""
    for attempt in extended(groups):
        yield learnt(attempt, text.render(attempt.problem.prompt))


def extender_rows(
    groups: Iterable[list[Attempt]], *, extend: str, dropped: Share, text: Text, seed: int
) -> Iterator[Example]:
    """Instruction and draft, of which each line is left out with probability `dropped` -> longer text."""
    rng = random.Random(seed)
    for attempt in extended(groups):
        lines, between = paragraphs(str(attempt.problem.metadata["response"]))
        outline = between.join(line for line in lines if rng.random() >= dropped)
        asked = request(extend, str(attempt.problem.metadata["question"]), outline)
        yield learnt(attempt, text.render(asked))


def learnt(attempt: Attempt, prompt_ids: list[int]) -> Example:
    """A longer text behind a prompt."""
    (sample,) = attempt.trajectory.samples
    more = {"words": count_words(sample.text)}
    return Example(attempt.problem.id, [attempt.trajectory.id], prompt_ids, sample.completion_ids, metadata=more)


def limited_rows(
    groups: Iterable[list[Attempt]], *, unit: Count, text: Text, seed: int, made: Made
) -> Iterator[Example]:
    """Instruction and a limit of words -> text that keeps it: drafts and longer texts of this round, and the rows of
    earlier ones as they were. Limits are in multiples of `unit`."""
    rng, drafted = random.Random(seed), set[str]()

    def limited(attempt: Attempt, ids: list[int], said: str, kind: str) -> Example:
        words = count_words(said)
        ask = f"{attempt.problem.metadata['question']} {lengths.asked(lengths.drawn(rng, words, unit))}"
        return replace(
            learnt(attempt, text.render(ask)),
            completion_ids=ids,
            metadata={"words": words, "row": f"{kind} {attempt.trajectory.id}"},
        )

    before = {example.metadata["row"]: example for example in made.examples("align")}
    yield from before.values()
    for attempt in extended(groups):
        problem, (sample,) = attempt.problem, attempt.trajectory.samples
        if problem.id not in drafted:
            drafted.add(problem.id)
            yield limited(attempt, problem.metadata["ids"], str(problem.metadata["response"]), "draft")
        yield limited(attempt, sample.completion_ids, sample.text, "longer")
