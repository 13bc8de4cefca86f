"""Rejection sampling fine-tuning: sample, keep what is correct, imitate it, repeat.

STaR (Zelikman et al. 2022, arXiv 2203.14465) without rationalisation, which is ReST-EM (Singh et al. 2023, arXiv
2312.06585, algorithm 1) with a 0/1 reward and threshold, and RFT (Yuan et al. 2023, arXiv 2308.01825) in one round.

    generate   E step: y_1..y_n ~ pi_v(. | x) for every training problem x
    verify     r(x, y) in {0, 1}, by the data set's verifier
    filter     D = {(x, y) : r(x, y) = 1}, distinct, at most `per_problem` for each x
    train      M step: pi_{v+1} = argmax_pi  sum_D log pi(y | x), from the base policy or the last one

*Wrong when* every problem is either solved by all samples or by none: what is imitated is then what the policy does
already. It harms where the check also passes wrong ways to the answer, because these are imitated too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from selfimprove.filter.distinct import distinct
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example

generate, train = best_of_n, sft


def keep_correct(groups: Iterable[list[Attempt]], *, per_problem: Count, seed: int) -> Iterator[Example]:
    """The distinct correct answers of each problem; a random `per_problem` of them where there are more."""
    for attempts in groups:
        yield from distinct([a for a in attempts if a.verdict.status == "correct"], per_problem, seed)
