"""Does imitating answers that passed a check raise accuracy round after round, and is it the check that does it?

STaR (Zelikman et al. 2022, arXiv 2203.14465) and ReST-EM (Singh et al. 2023, arXiv 2312.06585), on chains of arithmetic
with the shipped model. The arms differ in where each M step starts from, and in how often answers are sampled again.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfimprove.studies import Claim, Lab, advantage, gain
from selfimprove.studies.iterated import Plan, common_claims, run_iterated
from selfimprove.studies.staged import bounded

COMMAND = "selfimprove study rejection_sampling"
OWN, FROM_BASE, ONCE = "rejection_sampling", "each M step from the base", "all answers of the base"


def study(lab: Lab) -> Iterator[Claim]:
    arms = {
        OWN: [f"method={OWN}"],
        FROM_BASE: [f"method={OWN}", "method.start=base"],
        ONCE: [f"method={OWN}", "method.sampler=base"],
    }
    plan = Plan(arms, rates=(3e-5, 1e-4, 3e-4, 1e-3))
    runs = run_iterated(lab, plan)
    yield from common_claims(lab, plan, runs, COMMAND)
    text = "sampling anew each round is better than learning from the base's answers alone"
    yield bounded(text, advantage(runs[OWN], runs[ONCE]), 0.0, ONCE, COMMAND)
    text = "starting each M step from the base is better than from the last policy"
    yield bounded(text, advantage(runs[FROM_BASE], runs[OWN]), 0.0, OWN, COMMAND)
    text = "starting each M step from the base raises accuracy too"
    yield bounded(text, gain(runs[FROM_BASE]), 0.0, "the policy it starts from", COMMAND)
