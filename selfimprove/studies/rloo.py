"""Does RLOO raise accuracy by what verdicts say, more than imitation does, and what is its baseline worth?

Ahmadian et al. 2024 (arXiv 2402.14740), on chains of arithmetic with the shipped model. The baseline's control is plain
REINFORCE, whose advantage is the reward itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfimprove.studies import Claim, Lab, advantage
from selfimprove.studies.online import common_claims, run_online
from selfimprove.studies.staged import bounded

COMMAND = "selfimprove study rloo"
PLAIN = "no baseline"


def study(lab: Lab) -> Iterator[Claim]:
    runs = run_online(lab, "rloo", {PLAIN: ["method=rloo", "method.filter.baseline=none"]})
    yield from common_claims(lab, "rloo", runs, COMMAND)
    text = "the leave-one-out baseline adds to plain REINFORCE"
    yield bounded(text, advantage(runs["rloo"], runs[PLAIN]), 0.0, "method.filter.baseline=none", COMMAND)
