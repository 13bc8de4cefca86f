"""Infinite learning rates: continual pre-training on corpus after corpus, without a plan of where it ends.

Beyond Cosine Decay: On the effectiveness of Infinite Learning Rate Schedule for Continual Pre-training (Singh et al.
2025, arXiv 2503.02844).

    for each corpus k = 1, 2, ...
        generate   log pi_v(x) of its texts, which are read and not sampled
        filter     all of them
        train      pi_{v+1} = argmax sum log pi(x), from pi_v on, at the rate eta(n) of optimizer step n, counted over
                   all corpora:
                       warm-up     n / N_w eta_max                                                    n <= N_w
                       cooldown    eta_c + (eta_max - eta_c)/2 (1 + cos(pi (n - N_w)/(N_cd - N_w)))   n <= N_cd
                       constant    eta_c                                              as long as corpora come
    anneal         eta_c (eta_min / eta_c)^((n - N_c)/(N_e - N_c)), on texts of the last corpus, where a policy is to be
                   used; the next corpus goes on from the policy before the annealing
    score          log pi(x) of held-out texts of all corpora

The schedule is `infinite` of selfimprove.train.schedules, and every method that trains can have it. What of this is the
paper's and what is our own choice is said in docs/methods/inf_lr.md.

*Wrong when* the number of steps is known and there is one corpus: then a cosine that is planned for it does as well.
Wrong too where eta_c is so high that each corpus washes out the one before, or so low that nothing new is learnt.
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
    """All that was read, with loss on each token."""
    for group in groups:
        for attempt in group:
            sample = attempt.trajectory.samples[-1]
            yield Example(attempt.problem.id, [attempt.trajectory.id], sample.prompt_ids, sample.completion_ids)


def train(rows: Sequence[Example], context: TrainContext, **options: Unpack[Optimization]) -> dict[str, float]:
    """Fine-tuning as `train.sft`, on a stream that has a task for each round."""
    return sft(rows, context, **options)
