"""A generative model retrained on what a curator picks of its own samples, round after round.

Self-Consuming Generative Models with Curated Data Provably Optimize Human Preferences (Ferbach et al. 2024, arXiv
2407.09499). The model sees no reward, no gradient of one and nothing that was not picked.

    generate   x_1..x_K ~ p_t, for each of N draws (for text: K answers to each prompt)
    verify     r(x_k), what the curator likes
    filter     the curator picks one:  P(x_k) = e^r(x_k) / sum_j e^r(x_j)  (Plackett-Luce); with real data, the example
               is a real one with probability 1 / (1 + lambda) instead, so that examples are distributed as
                   1/(1 + lambda) p_data + lambda/(1 + lambda) curated(p_t)
    train      p_{t+1} = argmax_p  sum log p(x) over the examples

In expectation, with w = e^r: the pick of K has mean weight E[sum w_k^2 / sum w_k] = E[w + s^2 / w], s^2 and w the
variance (over K) and mean of the K weights, so that without real data
    E_{t+1}[e^r]  >=  E_t[e^r] + (K - 1)/K  Var_t[e^r] / e^r_max.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import numpy as np

from selfimprove.errors import RunError
from selfimprove.filter.distinct import answered
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Example, NonNegative

generate, train = best_of_n, sft


def curate(groups: Iterable[list[Attempt]], *, lam: NonNegative | None, seed: int) -> Iterator[Example]:
    """One example a problem: its real draw with probability 1 / (1 + lam), else the curator's pick. `lam` None: no real
    data. Raises RunError for a problem that has no real draw when one is wanted."""
    for attempts in groups:
        problem = attempts[0].problem
        rng = random.Random(f"{seed}/{problem.id}")
        if lam is not None and rng.random() < 1 / (1 + lam):
            if "real" not in problem.metadata:
                raise RunError(f"method.filter.lam={lam}: problem {problem.id} has no real draw; use lam=null")
            yield Example(problem.id, [], [], **{"completion_ids": [], **problem.metadata["real"]})
            continue
        rewards = np.array([attempt.verdict.reward for attempt in attempts])
        picked = rng.choices(attempts, np.exp(rewards - rewards.max()))[0].trajectory
        yield Example(problem.id, [picked.id], *answered(picked), array=picked.samples[-1].array)
