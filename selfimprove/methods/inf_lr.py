"""Infinite learning rates: continual pre-training on corpus after corpus, without a planned end.

Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule for Continual Pre-training (Singh et al.
2025, arXiv 2503.02844).

    for each corpus k = 1, 2, ...
        generate   log pi_v(x) of its texts, which are read and not sampled
        filter     all texts
        train      pi_{v+1} = argmax sum log pi(x), starting from pi_v. Optimizer step n, counted over all corpora, has
                   the rate eta(n):
                       warm-up     n / N_w eta_max                                                    n <= N_w
                       cooldown    eta_c + (eta_max - eta_c)/2 (1 + cos(pi (n - N_w)/(N_cd - N_w)))   n <= N_cd
                       constant    eta_c                                              as long as corpora come
    anneal         eta_c (eta_min / eta_c)^((n - N_c)/(N_e - N_c)), on texts of the last corpus, for a policy that is to
                   be used; the next corpus goes on from the policy before the annealing
    score          log pi(x) of held-out texts of all corpora

The schedule is `infinite` of selfimprove.train.schedules, and every method that trains can use it.
docs/methods/inf_lr.md says which parts are the paper's and which our own choice.

*Wrong when* there is one corpus and the number of steps is known: then a cosine planned for it does as well. Also wrong
when eta_c is so high that each corpus erases the one before, or so low that nothing new is learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Unpack

from selfimprove.generate.read import read
from selfimprove.train import Optimization, TrainContext
from selfimprove.train.own import require_stage
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Example

__all__ = ["every", "generate", "require_stage", "train"]

generate = read


def every(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """Each text that was read, with loss on each token."""
    for group in groups:
        for attempt in group:
            sample = attempt.trajectory.samples[-1]
            yield Example(attempt.problem.id, [attempt.trajectory.id], sample.prompt_ids, sample.completion_ids)


def train(rows: Sequence[Example], context: TrainContext, **options: Unpack[Optimization]) -> dict[str, float]:
    """Fine-tuning as `train.sft`, on a stream that has a task for each round."""
    return sft(rows, context, **options)
