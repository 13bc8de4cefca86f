"""Does GRPO raise accuracy by what verdicts say, more than imitation does, and do its group's mean and scale matter?

Shao et al. 2024 (arXiv 2402.03300), on chains of arithmetic with the shipped model. RLOO differs in the baseline, in
the scale of the advantages, and in that it has no KL term.
"""

from __future__ import annotations

from collections.abc import Iterator

from selfimprove.studies import Claim, Lab, advantage
from selfimprove.studies.online import MARGIN, alike, common_claims, run_online

COMMAND = "selfimprove study grpo"


def study(lab: Lab) -> Iterator[Claim]:
    runs = run_online(lab, "grpo", {"rloo": ["method=rloo"]})
    yield from common_claims(lab, "grpo", runs, COMMAND)
    text = f"GRPO and RLOO end within {100 * MARGIN:.0f} points of each other"
    yield alike(text, advantage(runs["grpo"], runs["rloo"]), "rloo", COMMAND)
