"""Solutions with labels from a check. They are the rows for reward models that learn probabilities."""

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
    """Rows for `train.reward.classifier`: up to `per_problem` solutions of each problem, drawn at random.

    Solutions differ as texts. The label is 1 if the answer is right, else 0. `timeout` and `error` say nothing of an
    answer, so such attempts make no row.
    """
    for group in groups:
        for attempt in _drawn(group, per_problem, seed):
            label = {LABEL: int(attempt.verdict.status == "correct")}
            yield Example(attempt.problem.id, [attempt.trajectory.id], *answered(attempt.trajectory), metadata=label)


def labelled_steps(
    groups: Iterable[list[Attempt]], *, per_problem: Count, separator: str = "\n", text: Speaker, seed: int
) -> Iterator[Example]:
    """Rows for `train.steps.steps`: the question and the steps of the solutions that `labelled_answers` takes.

    A step's label is 1 if the verifier gives it the reward 1, else 0. If the verifier gives steps no rewards, all steps
    of a solution have one label: whether the answer is right. The ids are those that `verify/steps.py` reads, with
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
