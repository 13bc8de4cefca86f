"""A policy reads two instructions and writes a new one (Self-Instruct, Wang et al. 2022, arXiv 2212.10560).

`two_seeds` chooses a pass's problems, and `instructions` makes problems from what the policy wrote.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import chain

from selfimprove.errors import ConfigError
from selfimprove.types import Attempt, Count, Message, Problem
from selfimprove.verify.text_checks import count_words


def two_seeds(problems: list[Problem], *, count: Count, ask: str, seed: int) -> list[Problem]:
    """`count` requests for an instruction. Each shows two seed instructions, in `ask` at {first} and {second}.

    metadata["before"] has what stands before the question in a seed's prompt, such as worked examples.

    Raises ConfigError if there are fewer than two seeds.
    """
    if len(problems) < 2:
        raise ConfigError(f"dataset.train_size: there are {len(problems)} seed instructions, and two are needed")
    rng, found = random.Random(seed), list[Problem]()
    for number in range(count):
        seeds = rng.sample(problems, 2)
        first, second = (str(p.metadata["question"]) for p in seeds)
        said = ask.replace("{first}", first).replace("{second}", second)
        before = [] if isinstance(seeds[0].prompt, str) else seeds[0].prompt[:-1]
        found.append(Problem(f"ask-{number}", said, metadata={"question": said, "before": before}))
    return found


def instructions(groups: Iterable[list[Attempt]], *, words: tuple[Count, Count]) -> Iterator[Problem]:
    """A problem for each new instruction that was not cut off and has more than words[0] and fewer than words[1] words.

    The problem has no gold answer. It is asked in the same way as the seeds.
    """
    for attempt in chain.from_iterable(groups):
        text = attempt.trajectory.text.strip()
        if attempt.verdict.status == "correct" and words[0] < count_words(text) < words[1]:
            before: list[Message] = attempt.problem.metadata["before"]
            prompt = [*before, {"role": "user", "content": text}] if before else text
            yield Problem("", prompt, metadata={"question": text, "origin": attempt.trajectory.id})
