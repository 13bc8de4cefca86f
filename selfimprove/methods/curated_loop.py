"""A generative model retrained on what a curator picks of its own samples, round after round.

Self-Consuming Generative Models with Curated Data Provably Optimize Human Preferences (Ferbach et al. 2024, arXiv
2407.09499). The model sees no reward and no gradient of one. It sees only what was picked.

    generate   x_1..x_K ~ p_t, for each of N draws (for text: K answers to each prompt)
    verify     r(x_k), what the curator likes
    filter     the curator picks one:  P(x_k) = e^r(x_k) / sum_j e^r(x_j)  (Plackett-Luce); with real data, the example
               is a real one with probability 1 / (1 + lambda) instead, so that examples are distributed as
                   1/(1 + lambda) p_data + lambda/(1 + lambda) curated(p_t)
    train      p_{t+1} = argmax_p  sum log p(x) over the examples

In expectation, with w = e^r: the pick of K has mean weight E[sum w_k^2 / sum w_k] = E[w + s^2 / w], s^2 and w the
variance (over K) and mean of the K weights, so that without real data
    E_{t+1}[e^r]  >=  E_t[e^r] + (K - 1)/K  Var_t[e^r] / e^r_max.

*Wrong when* the curator's reward is not what one wants more of: the loop raises that reward and nothing else. Without
real data it also loses its variety, round after round, until it gives one outcome.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import reduce

import numpy as np

from selfimprove.errors import RunError
from selfimprove.filter.distinct import answered
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Example, NonNegative

generate, train = best_of_n, sft


def curate(groups: Iterable[list[Attempt]], *, lam: NonNegative | None, seed: int) -> Iterator[Example]:
    """One example a problem: its real draw with probability 1 / (1 + lam), else the curator's pick.

    `lam` None: no real data. Raises RunError for a problem that has no real draw when one is wanted.
    """
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


# What the theory says of a learner that fits exactly, over a finite set of outcomes; arrays are (outcomes,)


def curated(p: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """The distribution of the pick of k independent draws from p, each picked in proportion to its weight.

    All ways the other k - 1 can fall are summed over.
    """
    others = reduce(np.add.outer, [weights] * (k - 1), np.zeros(()))
    chance = reduce(np.multiply.outer, [p] * (k - 1), np.ones(()))
    return np.array([k * p[i] * weights[i] * (chance / (weights[i] + others)).sum() for i in range(len(p))])


def mixed(p: np.ndarray, weights: np.ndarray, k: int, lam: float | None, real: np.ndarray) -> np.ndarray:
    """p_{t+1} from p_t = p."""
    picks = curated(p, weights, k)
    return picks if lam is None else (real + lam * picks) / (1 + lam)


def simulated(
    start: np.ndarray, weights: np.ndarray, k: int, lam: float | None, rounds: int, n: int, loops: int
) -> np.ndarray:
    """p_0 ... p_T of loops without a model, shape (loops, rounds + 1, outcomes); p_0 is the real data too.

    Each fits n draws a round, as the theory distributes them. n = 0 is the limit of many draws, the closed form.
    """
    rng = np.random.default_rng(0)
    paths = []
    for _ in range(loops):
        path = [start]
        real = rng.choice(len(start), n, p=start)  # as in a run, the same real draws in all rounds
        for _ in range(rounds):
            if n == 0:
                path.append(mixed(path[-1], weights, k, lam, start))
                continue
            draws = rng.choice(len(start), n, p=(picks := curated(path[-1], weights, k)) / picks.sum())
            if lam is not None:
                draws = np.where(rng.random(n) < 1 / (1 + lam), real, draws)
            path.append(np.bincount(draws, minlength=len(start)) / n)
        paths.append(path)
    return np.array(paths)


def margins(path: np.ndarray, weights: np.ndarray, k: int, n: int) -> np.ndarray:
    """(E_{t+1} - E_t - (k-1)/k Var_t / w_max) / sigma of each round, sigma being the noise of fitting n draws."""
    mean = path @ weights
    variance = path @ weights**2 - mean**2
    drift = mean[1:] - mean[:-1] - (k - 1) / k * variance[:-1] / weights.max()
    after = np.array([curated(p, weights, k) for p in path[:-1]])
    noise = np.sqrt(np.maximum(after @ weights**2 - (after @ weights) ** 2, 0) / n)
    return np.asarray(drift / np.maximum(noise, 1e-12))


def entropy(p: np.ndarray) -> float:
    """In nats."""
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def divergence(real: np.ndarray, p: np.ndarray, n: int) -> float:
    """KL(real || p) in nats of a table fitted to n draws; an outcome that none fell on counts as half a draw."""
    return float((real * np.log(real / np.maximum(p, 0.5 / n))).sum())
