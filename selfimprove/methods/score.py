"""SCoRe: a model learns by reinforcement to correct, in a second answer, its own first one.

Training Language Models to Self-Correct via Reinforcement Learning (Kumar et al. 2024, arXiv 2409.12917).

    generate   y1 ~ pi(. | x);  y2 ~ pi(. | x, y1, "there might be an error ... correct it"), both at temperature 1
    verify     r(y1), r(y2) in {0, 1}, by the data set's verifier
    stage I    max_pi  E[ r(y2) ] - beta2 KL(pi(. | x) | pi_ref(. | x))            y1 is held, y2 is learnt
    stage II   max_pi  E[ r(y1) + r(y2) + alpha (r(y2) - r(y1)) ] - beta1 KL       both are learnt
    repeat     stage I, stage II, stage I, ...
    answer     y2

A turn is credited with its own reward alone: y1 with r(y1), y2 with r(y2) and the bonus. So a policy gains nothing by
answering worse at first to correct itself later. Baselines are the mean of the same turn in the problem's other
dialogues (RLOO). In stage I the tokens of y1 have an advantage of 0, and the KL term alone acts on them. The small
beta1 is on y2 in both stages. pi_ref is the base policy.

What of this is the paper's and what is our own choice is said in docs/methods/score.md.

*Wrong when* a second look has nothing to find. Where y2 can only be another draw of y1, both turns come to the same
accuracy and the bonus rewards luck. Wrong too where y1 is always right or always wrong: then no bonus is ever paid.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from annotated_types import Len

from selfimprove.filter.advantages import advantages
from selfimprove.generate.turns import turns
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Example, NonNegative

generate, turnwise, train, imitate = turns, advantages, policy_gradient, sft


Weights = Annotated[Sequence[NonNegative], Len(2, 2)]  # of the rewards of turn 1 and turn 2


def shaped(attempt: Attempt, *, weights: Weights, alpha: NonNegative) -> list[float]:
    """The reward that each turn is credited with: w_1 r(y1), then w_2 r(y2) + alpha (r(y2) - r(y1)).

    Stage I has `weights` (0, 1) and an `alpha` of 0, stage II (1, 1) and 10. A dialogue that ended behind its first
    turn has that turn's reward only.
    """
    first, *second = attempt.verdict.step_rewards or [0.0]
    return [weights[0] * first, *(weights[1] * r + alpha * (r - first) for r in second[:1])]


def corrections(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """The control by fine-tuning (STaR on correction traces): the second turns that made a wrong answer right.

    A row is all that the policy saw, and y2, which alone bears loss. Each text makes one row a problem.
    """
    for group in groups:
        known = set[tuple[str, ...]]()
        for attempt in group:
            samples, rewards = attempt.trajectory.samples, attempt.verdict.step_rewards or []
            texts = tuple(sample.text.strip() for sample in samples)
            if len(rewards) == 2 and rewards[0] < rewards[1] == 1 and texts not in known:
                known.add(texts)
                yield Example(
                    attempt.problem.id, [attempt.trajectory.id], samples[1].prompt_ids, samples[1].completion_ids
                )
