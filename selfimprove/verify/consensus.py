"""Agreement among a problem's samples as the verdict. The gold answer is not looked at.

Self-consistency (Wang et al. 2022, arXiv 2203.11171) takes the answer that most samples state. LMSI (Huang et al. 2022,
arXiv 2210.11610) fine-tunes on the solutions that state it. TTRL (Zuo et al. 2025, arXiv 2504.16084) rewards them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Literal

from selfimprove.types import Problem, Share, Trajectory
from selfimprove.verify import Context, Outcome, arithmetic, choice, cleaning, stated
from selfimprove.verify import math as maths
from selfimprove.verify.equality import canonical

Fallback = Literal["last_number", "text", "none"]


async def consensus(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context | None,
    *,
    threshold: Share = 0.0,
    reward: Literal["majority", "share"] = "share",
    ties: Literal["first", "all"] = "all",
    fallback: Fallback = "none",
) -> list[Outcome]:
    """`correct` is the answer that most samples give, where at least `threshold` of all samples do.

    Shares are of all samples, those without an answer among them, which are `unparseable` and never vote.
    reward: `share` is the share of samples that give the same answer; `majority` is 1 for `correct` and 0 for others.
    ties: of equally frequent answers `all` are `correct`, or the `first` that was sampled, which favours none, since
    samples are alike before they are drawn. fallback: what a text says that states no answer, where the data set's
    check does not read it.
    """
    answers = await asyncio.gather(*(answer(problem, t.text, context, fallback) for t in trajectories))
    votes = Counter(said for said in answers if said is not None)
    most = max(votes.values(), default=0)
    winners = [said for said, count in votes.items() if count == most]  # in order of appearance
    if ties == "first":
        winners = winners[:1]
    outcomes = []
    for said in answers:
        if said is None:
            outcomes.append(Outcome("unparseable", 0.0, reason="no answer is stated"))
            continue
        share = votes[said] / len(answers)
        right = said in winners and share >= threshold
        value = share if reward == "share" else float(right)
        reason = f"{votes[said]} of {len(answers)} samples agree"
        outcomes.append(Outcome("correct" if right else "wrong", value, said, reason=reason))
    return outcomes


async def answer(problem: Problem, text: str, context: Context | None, fallback: Fallback = "none") -> str | None:
    """The answer that a text gives, in one form for equal answers; None when it gives none.

    It is what the data set's own check extracts. Where there is no check, or no gold answer for it to run with, or it
    came to no end, the general conventions hold (`read`).
    """
    if problem.gold is not None and context is not None:
        checked = await context.check(text, problem)
        if checked.status not in ("timeout", "error"):
            return None if checked.extracted is None else canonical(checked.extracted)
    return read(text, problem.metadata, fallback)


def read(text: str, metadata: dict[str, Any], fallback: Fallback) -> str | None:
    """The answer of a completion by the general conventions, in one form for equal answers; None without one.

    With `metadata["options"]` it is the letter of the one option that is chosen. Else it is what the text states last,
    or the whole text where it is but an expression of whole numbers, or what `fallback` says.
    """
    options = metadata.get("options")
    if isinstance(options, list) and options:
        chosen = choice.chosen_in(text, options)
        return chr(ord("A") + chosen.pop()) if len(chosen) == 1 else None
    said = stated(text)
    if said is None:
        if arithmetic.parse(text) is not None:
            said = text
        elif fallback == "last_number":
            said = maths.extract(text, "last_number")
        elif fallback == "text":
            said = text
    return None if said is None else form(said)


def form(said: str) -> str | None:
    """The single form of an answer that stands in a text, such as "$18" or "18 dollars a day"."""
    return canonical(cleaning.clean(said) or said)
