"""Solutions with labels, as a check judged them: the rows of reward models that learn probabilities."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from selfimprove.filter.distinct import answered
from selfimprove.policy.chat import Speaker
from selfimprove.train.reward import LABEL
from selfimprove.train.steps import ENDS, LABELS
from selfimprove.types import Attempt, Count, Example
from selfimprove.verify.steps import bare_question, lines, separated


def labelled_answers(groups: Iterable[list[Attempt]], *, per_problem: Count, seed: int) -> Iterator[Example]:
    """Rows for `train.reward.classifier`: of each problem up to `per_problem` solutions that differ as texts, drawn at
    random, with label 1 where the answer is right. `timeout` and `error` say nothing, so such attempts make no row."""
    for group in groups:
        for attempt in _drawn(group, per_problem, seed):
            label = {LABEL: int(attempt.verdict.status == "correct")}
            yield Example(attempt.problem.id, [attempt.trajectory.id], *answered(attempt.trajectory), metadata=label)


def labelled_steps(
    groups: Iterable[list[Attempt]], *, per_problem: Count, separator: str = "\n", text: Speaker, seed: int
) -> Iterator[Example]:
    """Rows for `train.steps.steps`, of the solutions that `labelled_answers` has: the question and the steps.

    A step's label is 1 where the verifier rewards it with 1, else 0. A verifier that says nothing of steps labels all
    of a solution's steps alike, by whether its answer is right. The ids are those that `verify/steps.py` reads, with
    `separator` behind each step.
    """
    for group in groups:
        for attempt in _drawn(group, per_problem, seed):
            steps, question = lines(attempt.trajectory.text), bare_question(attempt.problem)
            rewards = attempt.verdict.step_rewards or [float(attempt.verdict.status == "correct")] * len(steps)
            ids, ends = separated(text.tokenizer, question, steps, separator)
            start = len(separated(text.tokenizer, question, [], separator)[0])
            yield Example(
                attempt.problem.id,
                [attempt.trajectory.id],
                ids[:start],
                ids[start:],
                metadata={ENDS: [end - start for end in ends], LABELS: [int(reward == 1) for reward in rewards]},
            )


def _drawn(group: Sequence[Attempt], count: int, seed: int) -> list[Attempt]:
    judged = [a for a in group if a.verdict.status not in ("timeout", "error") and lines(a.trajectory.text)]
    kept = list({a.trajectory.text: a for a in judged}.values())
    return random.Random(f"{seed}/{kept[0].problem.id}").sample(kept, count) if len(kept) > count else kept
