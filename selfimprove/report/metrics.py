"""Figures of a round and of an evaluation, each estimate with a 95 % interval.

The estimators are in statistics.py. Intervals are over problems; the samples of one problem stay together.

A sample is correct if its verdict's status is `correct`. pass@k and maj@k treat a problem's samples as exchangeable. If
a solver's attempts build on each other, they describe these attempts, and not what k fresh samples would give.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

import numpy as np

from selfimprove.report.statistics import RESAMPLES as RESAMPLES
from selfimprove.report.statistics import Estimate as Estimate
from selfimprove.report.statistics import accuracy as accuracy
from selfimprove.report.statistics import mean_over_problems as mean_over_problems
from selfimprove.report.statistics import paired_difference as paired_difference
from selfimprove.types import Attempt, Sample, Trajectory, Verdict
from selfimprove.verify.equality import canonical

SUBSETS = 200  # random subsets per problem, for maj@k with k below the number of samples


@lru_cache(maxsize=65536)
def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k: the probability that k of n samples, c of them correct, include a correct one.

    1 - C(n-c, k) / C(n, k): Chen et al. 2021 (arXiv 2107.03374), eq. 1. Swapping c and k does not change the ratio, so
    it is a product of min(c, k) factors. Their logarithms are summed: no overflow for large n, no cancellation for
    small c. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    factors, drawn = min(c, k), max(c, k)
    return 0.0 - math.expm1(math.fsum(math.log1p(-drawn / (n - i)) for i in range(factors)))


def pass_at_k_over(problems: Sequence[Sequence[Verdict]], k: int, seed: int = 0) -> Estimate:
    """The mean pass@k over problems. Each is given by its samples' verdicts, at least k of them."""
    return mean_over_problems([pass_at_k(len(group), _correct(group), k) for group in problems], seed)


def mean_at_k(problems: Sequence[Sequence[Verdict]], seed: int = 0) -> Estimate:
    """The share of correct samples, averaged over problems. k is a problem's number of samples, at least one."""
    return mean_over_problems([_correct(group) / len(group) for group in problems], seed)


def maj_at_k(problems: Sequence[Sequence[Verdict]], k: int, seed: int = 0) -> Estimate:
    """The accuracy of the majority among k samples' answers, averaged over problems.

    Samples without an extracted answer do not vote; a problem without votes scores 0. Answers are equal by
    `verify.equality.canonical`: 1/2 and 0.5, for instance. A tie scores the mean over the tied answers. With k equal to
    the number of samples the result is exact. With a smaller k it is the mean over 200 random subsets of size k
    (seeded), an unbiased estimate of the mean over all subsets. Raises ValueError if a problem has fewer than k
    samples.
    """
    rng = np.random.default_rng(seed)
    return mean_over_problems([_majority(group, k, rng) for group in problems], seed)


def _majority(group: Sequence[Verdict], k: int, rng: np.random.Generator) -> float:
    n = len(group)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= n, got n={n}, k={k}")
    answers = [canonical(v.extracted or "") for v in group]
    classes = sorted({answer for answer in answers if answer is not None})
    if not classes:
        return 0.0
    codes = np.array([-1 if answer is None else classes.index(answer) for answer in answers])
    correct = np.array([v.status == "correct" for v in group])
    # Verdicts on equal answers differ only if the verifier reads more than the answer. Then the class counts in part.
    score = np.array([correct[codes == code].mean() for code in range(len(classes))])
    drawn = np.arange(n)[None] if k == n else rng.permuted(np.tile(np.arange(n), (SUBSETS, 1)), axis=1)[:, :k]
    votes = (codes[drawn][:, :, None] == np.arange(len(classes))).sum(axis=1)  # (subsets, classes)
    most = votes.max(axis=1, keepdims=True)
    winners = (votes == most) & (most > 0)
    return float(((winners * score).sum(axis=1) / np.maximum(winners.sum(axis=1), 1)).mean())


def _correct(group: Iterable[Verdict]) -> int:
    return sum(v.status == "correct" for v in group)


def normalise(text: str) -> str:
    """`text` with each run of white space as one space. Equal results count as the same solution."""
    return " ".join(text.split())


def evaluation(problems: Iterable[Sequence[Attempt]], seed: int = 0) -> dict[str, float]:
    """Held-out figures from each problem's attempts, in one pass: `accuracy` of the greedy answers, and `n`.

    If there are samples too (trajectories with `decoding: sampled` in their metadata, K for each problem), the result
    also has mean@K, and pass@k and maj@k for k = 1, 2, 4, ... and K. Each figure has its interval as `<name>_low` and
    `<name>_high`. Raises ValueError if there are no problems.
    """
    greedy: list[Sequence[Verdict]] = []
    sampled: list[Sequence[Verdict]] = []
    for group in problems:
        greedy.append([a.verdict for a in group if decoding(a) == "greedy"])
        sampled.append([a.verdict for a in group if decoding(a) == "sampled"])
    result = {**mean_at_k(greedy, seed).named("accuracy"), "n": len(greedy)}
    most = min(map(len, sampled))
    if most > 1:
        result |= mean_at_k(sampled, seed).named(f"mean@{most}")
        for k in sorted({2**power for power in range(most.bit_length())} | {most}):
            result |= pass_at_k_over(sampled, k, seed).named(f"pass@{k}")
            if k > 2:  # the majority of one or two samples is, in expectation, one sample
                result |= maj_at_k(sampled, k, seed).named(f"maj@{k}")
    return result


def change(before: Iterable[Sequence[Attempt]], after: Iterable[Sequence[Attempt]], seed: int = 0) -> Estimate:
    """The paired difference of two evaluations' greedy accuracy. Raises ValueError if their problems differ."""
    first, second = _solved(before), _solved(after)
    if first.keys() != second.keys():
        raise ValueError(f"evaluations of {len(first)} and {len(second)} problems, not the same ones")
    return paired_difference(list(first.values()), [second[problem] for problem in first], seed)


def _solved(problems: Iterable[Sequence[Attempt]]) -> dict[str, float]:
    shares = {}
    for group in problems:
        greedy = [a.verdict for a in group if decoding(a) == "greedy"]
        shares[group[0].problem.id] = _correct(greedy) / len(greedy)
    return shares


def decoding(attempt: Attempt) -> str:
    """How an attempt of a held-out evaluation was decoded: "greedy" unless its metadata says otherwise."""
    return str(attempt.trajectory.metadata.get("decoding", "greedy"))


def cost(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    """The cost of trajectories, in one pass. Those of one problem must follow one another.

    Returns `trajectories`; `tokens/prompt` and `tokens/sampled`, totals over samples; `completion/mean_tokens`, the
    mean length of a sample; and `completion/truncated`, the share of samples cut off at the limit. A step that several
    paths of a tree share is one sample, identified by its role, seed and tokens.
    """
    total: Counter[str] = Counter()
    for _, group in itertools.groupby(trajectories, key=lambda trajectory: trajectory.problem_id):
        samples: dict[tuple[str | int, ...], Sample] = {}
        for trajectory in group:
            total["trajectories"] += 1
            samples |= {(s.role, s.seed, len(s.prompt_ids), *s.completion_ids): s for s in trajectory.samples}
        total["samples"] += len(samples)
        total["prompt"] += sum(len(s.prompt_ids) for s in samples.values())
        total["sampled"] += sum(len(s.completion_ids) for s in samples.values())
        total["truncated"] += sum(s.finish == "length" for s in samples.values())
    samples_or_one = max(1, total["samples"])
    return {
        "trajectories": total["trajectories"],
        "tokens/prompt": total["prompt"],
        "tokens/sampled": total["sampled"],
        "completion/mean_tokens": total["sampled"] / samples_or_one,
        "completion/truncated": total["truncated"] / samples_or_one,
    }


def round_metrics(problems: Iterable[Sequence[Attempt]], kept: Collection[str]) -> dict[str, float]:
    """How a round explored and exploited, in one pass over its attempts by problem. It holds one group at a time.

    `kept` are the ids of the trajectories that training imitates (of a pair, the preferred one). Returns:

    - explore/pass@k: for k = 1, 2, 4, ..., the mean over the problems with at least k attempts
    - explore/distinct_answers, distinct_solutions, distinct_correct: the numbers of different extracted answers (1/2
      and 0.5 are one), texts, and correct texts among a problem's attempts, as means over problems
    - exploit/available_reward, kept_reward: the mean reward of all attempts and of the kept ones; best_reward: the best
      attempt's reward, as a mean over problems; keep_rate: kept attempts / attempts

    Figures over nothing are left out: all of them without an attempt, kept_reward if nothing was kept.
    """
    passes: defaultdict[int, list[float]] = defaultdict(list)
    total: Counter[str] = Counter()
    available = kept_reward = best = 0.0
    for group in problems:
        n, c = len(group), _correct(a.verdict for a in group)
        for power in range(n.bit_length()):
            passes[2**power].append(pass_at_k(n, c, 2**power))
        texts = [normalise("\n".join(s.text for s in a.trajectory.samples)) for a in group]
        right = (text for text, a in zip(texts, group, strict=True) if a.verdict.status == "correct")
        total["problems"] += 1
        total["attempts"] += n
        total["answers"] += len({canonical(a.verdict.extracted or "") for a in group} - {None})
        total["solutions"] += len(set(texts))
        total["correct solutions"] += len(set(right))

        chosen = [a.verdict.reward for a in group if a.trajectory.id in kept]
        total["kept"] += len(chosen)
        kept_reward += sum(chosen)
        available += sum(a.verdict.reward for a in group)
        best += max(a.verdict.reward for a in group)
    if not total["problems"]:
        return {}
    result = {f"explore/pass@{k}": math.fsum(values) / len(values) for k, values in sorted(passes.items())}
    result["explore/distinct_answers"] = total["answers"] / total["problems"]
    result["explore/distinct_solutions"] = total["solutions"] / total["problems"]
    result["explore/distinct_correct"] = total["correct solutions"] / total["problems"]
    result["exploit/available_reward"] = available / total["attempts"]
    result["exploit/best_reward"] = best / total["problems"]
    result["exploit/keep_rate"] = total["kept"] / total["attempts"]
    if total["kept"]:
        result["exploit/kept_reward"] = kept_reward / total["kept"]
    return result
