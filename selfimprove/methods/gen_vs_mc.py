"""Self-correction in two output spaces: is writing an answer corrected otherwise than picking one?

Self-Correcting Large Language Models: Generation vs. Multiple Choice (Rahmani et al. 2025, arXiv 2511.09381). Released
code: github.com/rahmanidashti/task-self-correction, run.py.

    x           open: the question. choice: the question with lettered options
    y_0 ~ pi(. | x)
    for k = 1 .. K:
        y_k ~ pi(. | x, y_0, review, y_1, .., review)       "Review your previous responses ..."

Both spaces have the same loop and the same history. Nobody tells the policy whether an answer was right. The study
compares how right and wrong answers turn into each other from round to round: `turns` and what follows it below.

*Wrong when* the policy was never taught to review: later rounds then mostly turn right answers wrong, or state no
answer at all, in either space.
"""

from __future__ import annotations

import asyncio
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from selfimprove.errors import ConfigError
from selfimprove.generate.critique import fill
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.report.statistics import Estimate, ratio
from selfimprove.types import Attempt, Count, NonNegative, Problem, Sample, Share, Trajectory
from selfimprove.verify.equality import canonical

Space = Literal["open", "choice"]


def needs(*, space: Space, margin: str | None = None, **options: Any) -> tuple[str, ...]:
    """Picking needs options, a margin needs log-probabilities. Raises ConfigError for a margin in the open space."""
    if margin is not None and space == "open":
        raise ConfigError("generate.margin: is between options, which space=open does not show", "generate.margin")
    return (*(["options"] if space == "choice" else []), *(["logprobs"] if margin is not None else []))


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    space: Space,
    rounds: Count,
    ask: str,
    review: str,
    temperature: NonNegative = 1.0,
    top_p: Share = 1.0,
    top_k: int = 0,
    margin: str | None = None,
) -> list[Trajectory]:
    """The answers y_0 .. y_K of one problem, K = `rounds`; fewer where the window is full.

    `review` is the request of each further round, with {question} and {options} replaced. The first prompt is the
    problem's own. But in the open space a problem that lists options is asked by `ask` instead, without them. `margin`
    are the words behind which a letter stands in a reply. Each letter is then scored there, and the metadata's `margin`
    is the lead of the best over the next, in nats; None if the reply has no such words. Raises ValueError if the
    question does not fit the model's window.
    """
    options = problem.metadata.get("options", [])
    first: str | list[Any] = problem.prompt
    if space == "open" and options:
        bare = {key: value for key, value in problem.metadata.items() if key != "options"}
        problem = replace(problem, metadata=bare)
        first = fill([{"role": "user", "content": ask}], problem, "")
    ((again),) = fill([{"role": "user", "content": review}], problem, "")
    dialogue = Dialogue(policy, first)
    answers: list[Trajectory] = []
    for stage in range(rounds + 1):
        if stage:
            dialogue.user(again["content"])
        try:
            reply = await dialogue.reply(temperature=temperature, top_p=top_p, top_k=top_k)
        except ValueError:
            if not answers:
                raise  # the question itself does not fit
            break
        answers.append(Trajectory(problem.id, list(dialogue.samples), {"stage": stage}))
        if margin is not None:
            answers[-1].metadata["margin"] = await lead(policy, reply, margin, len(options))
    return answers


async def lead(policy: Policy, reply: Sample, words: str, options: int) -> float | None:
    """log p of the most probable letter minus that of the next, where the last `words` of a reply end."""
    start = reply.text.rfind(words)
    if start < 0:
        return None
    before = reply.text[: start + len(words)]
    texts = [policy.encode(before + letter) for letter in string.ascii_uppercase[:options]]
    scores = sorted(map(sum, await asyncio.gather(*(policy.logprobs(reply.prompt_ids, ids) for ids in texts))))
    return scores[-1] - scores[-2]


# What is measured


@dataclass(frozen=True)
class Turns:
    """Each problem's answers, round by round: whether they are right, and what they are. Both (problems, K + 1)."""

    right: np.ndarray  # bool
    answers: np.ndarray  # object: normalised text, or None

    @property
    def accuracy(self) -> np.ndarray:
        """Share of right answers of each round, (K + 1,)."""
        return np.asarray(self.right.mean(axis=0))

    @property
    def cumulative(self) -> np.ndarray:
        """Share of problems with a right answer in a round or one before it, (K + 1,). result.py of their code."""
        return np.asarray(np.maximum.accumulate(self.right, axis=1).mean(axis=0))

    @property
    def transitions(self) -> np.ndarray:
        """Counts from one round to the next, over all rounds: [[C->C, C->I], [I->C, I->I]]."""
        before, after = self.right[:, :-1], self.right[:, 1:]
        return np.array(
            [[(before & after).sum(), (before & ~after).sum()], [(~before & after).sum(), (~before & ~after).sum()]]
        )

    @property
    def flipped(self) -> np.ndarray:
        """Share of each problem's rounds in which a right answer became wrong or a wrong one right, (problems,)."""
        return np.asarray((self.right[:, :-1] != self.right[:, 1:]).mean(axis=1))

    @property
    def flipped_first(self) -> np.ndarray:
        """The same of the first review alone, 0 or 1."""
        return np.asarray(self.right[:, 0] != self.right[:, 1]).astype(float)

    @property
    def inertia(self) -> np.ndarray:
        """Share of each problem's rounds that say the same as the round before, (problems,). No answer is like none."""
        return np.asarray(_same(self.answers[:, :-1], self.answers[:, 1:]).mean(axis=1))

    @property
    def drift(self) -> np.ndarray:
        """Share of problems whose answer is not the first one any more, of each round, (K + 1,); 0 in round 0."""
        unlike = ~_same(self.answers[:, :1], self.answers)
        unlike[:, 0] = False
        return np.asarray(unlike.mean(axis=0))


def turns(groups: Sequence[Sequence[Attempt]]) -> Turns:
    """From each problem's attempts in the order of their stages. Where a window was full, the last answer stays."""
    width = max(map(len, groups))
    verdicts = [[group[min(i, len(group) - 1)].verdict for i in range(width)] for group in groups]
    answers = [[canonical(v.extracted or "") for v in row] for row in verdicts]
    return Turns(
        np.array([[v.status == "correct" for v in row] for row in verdicts]),
        np.array(answers, dtype=object),
    )


def flip_rate(each: Sequence[Turns], was: bool) -> Estimate | None:
    """Of answers that were right (or, with `was` False, wrong), the share that flips by the next round.

    `each` is one a seed, of the same problems; the interval is over problems. None if no answer could flip.
    """
    before = np.stack([t.right[:, :-1] == was for t in each])  # (seeds, problems, rounds)
    after = np.stack([t.right[:, 1:] != was for t in each])
    could, did = before.sum(axis=(0, 2)), (before & after).sum(axis=(0, 2))
    return ratio(did[could > 0], could[could > 0]) if could.any() else None


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray((one == other) & (one != None))  # noqa: E711 -- element by element
