"""Rewards of a curator: they measure how well an output is liked, not whether it is right.

`correct` means that the output is a favoured one, so accuracy is the share of favoured outputs.
"""

from __future__ import annotations

import math
from typing import Any

from selfimprove.types import Count, NonNegative
from selfimprove.verify import Outcome

NEEDS_GOLD = False


def category(text: str, gold: str | None, metadata: dict[str, Any], *, rewards: list[float]) -> Outcome:
    """The reward of an outcome of a categorical policy. The outcomes with the highest reward are favoured."""
    reward = rewards[int(text)]
    return Outcome("correct" if reward == max(rewards) else "wrong", reward, extracted=text)


def near(
    text: str,
    gold: str | None,
    metadata: dict[str, Any],
    *,
    centre: tuple[float, float],
    radius: NonNegative,
    gamma: NonNegative,
) -> Outcome:
    """-gamma max(0, distance to `centre` - radius), for a point "x y". Points within `radius` are favoured."""
    x, y = map(float, text.split())
    beyond = max(0.0, math.dist((x, y), centre) - radius)
    return Outcome("wrong" if beyond else "correct", -gamma * beyond, extracted=text)


def lines(text: str, gold: str | None, metadata: dict[str, Any], *, gamma: NonNegative, favoured: Count = 2) -> Outcome:
    """-gamma times the number of lines that are not blank. Answers of at most `favoured` lines are favoured.

    An empty answer is `unparseable` and has the reward of a hundred lines, so that silence does not pay.
    """
    count = sum(bool(line.strip()) for line in text.splitlines())
    if not count:
        return Outcome("unparseable", -100 * gamma, reason="an empty answer")
    return Outcome("correct" if count <= favoured else "wrong", -gamma * count, extracted=str(count))
