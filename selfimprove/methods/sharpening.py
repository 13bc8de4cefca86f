"""Sharpening: the policy judges its own samples by their probability, and learns to give the probable ones at once.

Self-Improvement in Language Models: The Sharpening Mechanism (Huang et al. 2024, arXiv 2412.01951). No gold answer is
read. The policy learns what the base policy holds already, but spread over many answers.

    generate   y_1..y_N ~ pi_base(. | x)
    verify     r(y) = log pi_base(y | x), or per token, or the share of samples with the same answer; best: argmax_i r
    filter     sft:  D = {(x, best)}                         rlhf:  D = {(x, y, y')}, independent pairs
    train      sft:  argmax_pi  sum_D log pi(y | x)
               rlhf: argmin_pi  sum_D (beta [log pi/pi_base (y) - log pi/pi_base (y')] - [r(y) - r(y')])^2,
                     whose minimum is that of  max E_pi[r] - beta KL(pi | pi_base):  pi* ~ pi_base^(1 + 1/beta)

`bon` is the form without training: it answers with the best of N. `sft` imitates that answer, and needs N of the order
of 1 / pi_base(y* | x), where y* is the mode. `rlhf` needs only two samples a prompt, but a y* well ahead of the second.

*Wrong when* the most probable answer is wrong: the policy then grows surer of it. In the RLHF
form, two modes that are nearly tied stay so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence

from selfimprove.filter.distinct import answered
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.residual import residual, squared_residual
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example

generate, train, train_rlhf = best_of_n, sft, residual


def bon(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """The expected value of the best of n: the mean, over all n of the samples, of the one of highest reward's value.

    Of N samples in order of reward, the i-th (from 0) is the best of n drawn ones with probability
    C(N-1-i, n-1) / C(N, n). Among equal rewards the earlier sample is better. Raises ValueError unless 1 <= n <= N.
    """
    total = len(rewards)
    if not 1 <= n <= total:
        raise ValueError(f"best of {n} out of {total} samples")
    order = sorted(range(total), key=lambda i: -rewards[i])
    return math.fsum(math.comb(total - 1 - rank, n - 1) * values[i] for rank, i in enumerate(order)) / math.comb(
        total, n
    )


def keep_best(groups: Iterable[list[Attempt]], *, seed: int) -> Iterator[Example]:
    """Each problem's best response, which the verifier marked `correct`."""
    for attempts in groups:
        for a in attempts:
            if a.verdict.status == "correct":
                yield Example(a.problem.id, [a.trajectory.id], *answered(a.trajectory))


def pairs(groups: Iterable[list[Attempt]], *, per_problem: Count, seed: int) -> Iterator[Example]:
    """Up to `per_problem` pairs of a problem's samples, with `margin` = r(y) - r(y'). No sample is in two pairs.

    Samples are paired in a random order, so that the two are independent. The one of higher reward is written first,
    which makes no difference to the loss. Two equal responses make no pair: their residual is 0 whatever the policy.
    Responses that were cut off at the token limit are left out.
    """
    for attempts in groups:
        whole = [a for a in attempts if a.trajectory.samples[-1].finish == "stop"]
        random.Random(f"{seed}/{attempts[0].problem.id}").shuffle(whole)
        for pair in list(zip(whole[::2], whole[1::2], strict=False))[:per_problem]:
            first, second = sorted(pair, key=lambda a: -a.verdict.reward)
            (prompt_ids, chosen), (_, rejected) = answered(first.trajectory), answered(second.trajectory)
            if chosen == rejected:
                continue
            yield Example(
                first.problem.id,
                [first.trajectory.id, second.trajectory.id],
                prompt_ids,
                chosen,
                rejected_ids=rejected,
                metadata={"margin": first.verdict.reward - second.verdict.reward},
            )


# What the theory says, of a policy over a few outcomes


def sharpened(base: Sequence[float], beta: float) -> list[float]:
    """pi_base^(1 + 1/beta), normalised."""
    powers = [p ** (1 + 1 / beta) for p in base]
    return [power / sum(powers) for power in powers]


def optimum(base: Sequence[float], beta: float) -> list[float]:
    """The softmax policy that minimises the expected loss of the RLHF form over pairs of `base`, with r = log base."""
    import torch

    p = torch.tensor(base, dtype=torch.float64)
    logits = p.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        ratio, reward = logits.log_softmax(0) - p.log(), p.log()
        each = squared_residual(ratio[:, None], ratio[None], reward[:, None] - reward[None], beta)
        total: torch.Tensor = (p[:, None] * p[None] * each).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    probabilities: list[float] = logits.detach().softmax(0).tolist()
    return probabilities


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    """Between two distributions over the same outcomes, 0 to 1."""
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
