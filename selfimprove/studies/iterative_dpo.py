"""Do pairs of right and wrong answers teach more than the right ones alone, and does the NLL term matter?

Iterative Reasoning Preference Optimization (Pang et al. 2024, arXiv 2404.19733), on chains of arithmetic with the
shipped model. The arms have as many answers and rounds, each with its own best rate on dev.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfimprove.studies import Claim, Lab, advantage
from selfimprove.studies.iterated import Plan, common_claims, run_iterated
from selfimprove.studies.staged import bounded

COMMAND = "selfimprove study iterative_dpo"
OWN, PLAIN, IMITATION = "iterative_dpo", "plain DPO, no NLL term", "fine-tuning on right answers"


def study(lab: Lab) -> Iterator[Claim]:
    arms = {
        OWN: [f"method={OWN}"],
        PLAIN: [f"method={OWN}", "method.train.sft_weight=0"],
        IMITATION: ["method=rejection_sampling"],
    }
    plan = Plan(arms, rates=(1e-5, 3e-5, 1e-4, 3e-4))
    runs = run_iterated(lab, plan)
    yield from common_claims(lab, plan, runs, COMMAND)
    text = "it gains more than plain DPO"
    yield bounded(text, advantage(runs[OWN], runs[PLAIN]), 0.0, PLAIN, COMMAND)
    text = "it gains more than by fine-tuning on the right answers"
    yield bounded(text, advantage(runs[OWN], runs[IMITATION]), 0.0, IMITATION, COMMAND)
