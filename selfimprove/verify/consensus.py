"""Agreement among a problem's samples as the verdict. It does not read the gold answer.

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
    """The most frequent answer is `correct` if at least `threshold` of all samples give it.

    A sample without an answer is `unparseable` and does not vote, but counts in the shares' denominator.
    reward: `share` is the share of samples that give the same answer; `majority` is 1 for `correct` and 0 for others.
    ties: of equally frequent answers, `all` are `correct` or only the `first` sampled. This favours no answer, because
    samples are exchangeable. fallback: how to read a text that states no answer and that the data set's check did not
    read (`read`).
    """
    answers = await asyncio.gather(*(answer(problem, t.text, context, fallback) for t in trajectories))
    votes = Counter(vote for vote in answers if vote is not None)
    most = max(votes.values(), default=0)
    winners = [vote for vote, count in votes.items() if count == most]  # in order of appearance
    if ties == "first":
        winners = winners[:1]
    outcomes = []
    for vote in answers:
        if vote is None:
            outcomes.append(Outcome("unparseable", 0.0, reason="no answer is stated"))
            continue
        share = votes[vote] / len(answers)
        right = vote in winners and share >= threshold
        value = share if reward == "share" else float(right)
        reason = f"{votes[vote]} of {len(answers)} samples agree"
        outcomes.append(Outcome("correct" if right else "wrong", value, vote, reason=reason))
    return outcomes


async def answer(problem: Problem, text: str, context: Context | None, fallback: Fallback = "none") -> str | None:
    """The answer that a text gives, in one form for equal answers; None if it gives none.

    The data set's own check extracts it. If there is no check, or no gold answer for it, or it ends as `timeout` or
    `error`, the general conventions hold (`read`).
    """
    if problem.gold is not None and context is not None:
        checked = await context.check(text, problem)
        if checked.status not in ("timeout", "error"):
            return None if checked.extracted is None else canonical(checked.extracted)
    return read(text, problem.metadata, fallback)


def read(text: str, metadata: dict[str, Any], fallback: Fallback) -> str | None:
    """The answer of a completion by the general conventions, in one form for equal answers; None if there is none.

    With `metadata["options"]` it is the letter of the one chosen option. Else it is what the text states last, or the
    whole text if that is an expression of whole numbers, or what `fallback` names: the last number, or the whole text.
    """
    options = metadata.get("options")
    if isinstance(options, list) and options:
        chosen = choice.chosen_in(text, options)
        return chr(ord("A") + chosen.pop()) if len(chosen) == 1 else None
    verbatim = stated(text)
    if verbatim is None:
        if arithmetic.parse(text) is not None:
            verbatim = text
        elif fallback == "last_number":
            verbatim = maths.extract(text, "last_number")
        elif fallback == "text":
            verbatim = text
    return None if verbatim is None else form(verbatim)


def form(verbatim: str) -> str | None:
    """The one form of an answer as it stands in a text, such as "$18" or "18 dollars a day"."""
    return canonical(cleaning.clean(verbatim) or verbatim)
