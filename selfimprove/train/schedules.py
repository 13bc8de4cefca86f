"""Schedules of the learning rate over optimizer steps, as shares of a train slot's `learning_rate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from selfimprove.errors import ConfigError
from selfimprove.types import CLOSED

Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "infinite"]
Steps = Annotated[int, Ge(0)]
Fraction = Annotated[float, Gt(0), Le(1)]
Shares = Callable[[int], float]  # step of a phase, counted from 0 -> share of the learning rate


@dataclass(frozen=True)
class Infinite:
    """A schedule over all optimizer steps of a policy, for any number of tasks (Singh et al. 2025, arXiv 2503.02844).

    The rate rises for `warmup` steps, falls along a cosine until step `cooldown`, and then stays at `constant`. With
    `anneal` the phase is an annealing: the rate falls from `constant` to `minimum`, by the same factor in each step.
    """

    warmup: Steps  # N_w
    cooldown: Steps  # N_cd, the step at which the cooldown ends
    constant: Fraction  # eta_const / eta_max
    minimum: Fraction  # eta_min / eta_max
    anneal: bool = False

    __pydantic_config__ = CLOSED

    def share(self, step: int) -> float:
        """eta(n) / eta_max at global step n, counted from 1."""
        if step <= self.warmup:
            return step / self.warmup
        if step >= self.cooldown:
            return self.constant
        rest = (step - self.warmup) / (self.cooldown - self.warmup)
        return self.constant + (1 - self.constant) / 2 * (1 + math.cos(math.pi * rest))

    def annealed(self, rest: float) -> float:
        """eta / eta_max when the share `rest` of the annealing is done."""
        return self.constant * float((self.minimum / self.constant) ** rest)


def infinite(schedule: Infinite, steps: int, before: int) -> Shares:
    """An infinite schedule in a phase of `steps` steps, after `before` steps of earlier phases."""
    if schedule.anneal:
        return lambda step: schedule.annealed((step + 1) / steps)
    return lambda step: schedule.share(before + step + 1)


def spanning(kind: Schedule, warmup: float, steps: int, turn: int, turns: int) -> Shares:
    """The part of a schedule over `turns` phases that phase number `turn`, of `steps` steps, has.

    All phases are equal parts of the schedule. The rate rises in the share `warmup` of it. With `cosine_with_restarts`
    each phase has a whole cosine.
    """
    if kind == "cosine_with_restarts":
        kind, turn, turns = "cosine", 0, 1

    def share(step: int) -> float:
        done, reached = (turn + step / steps) / turns, (turn + (step + 1) / steps) / turns
        rise = min(1.0, reached / warmup) if warmup else 1.0
        rest = min(1.0, max(0.0, (done - warmup) / (1 - warmup))) if warmup < 1 else 0.0
        fall = {"linear": 1 - rest, "cosine": (1 + math.cos(math.pi * rest)) / 2}.get(kind, 1.0)
        return rise * fall

    return share


def require(options: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError if the options of a train slot give an impossible schedule."""
    if "infinite" not in options and options.get("schedule") != "infinite":
        return
    for key, wanted in (("schedule", "infinite"), ("carry", True)):
        if options.get(key) != wanted:
            said = f"an infinite schedule goes on from phase to phase, and needs {str(wanted).lower()}"
            raise ConfigError(f"{where}.{key}={str(options.get(key)).lower()}: {said}", f"{where}.{key}")
    if "infinite" not in options:
        raise ConfigError(f"{where}.infinite: needs a value, e.g. +schedule@{where}=infinite", where)
    found = Infinite(**options["infinite"])
    if found.cooldown < found.warmup:
        key = f"{where}.infinite.cooldown"
        raise ConfigError(f"{key}={found.cooldown}: must be at least infinite.warmup={found.warmup}", key)
    if found.minimum > found.constant:
        key = f"{where}.infinite.minimum"
        raise ConfigError(f"{key}={found.minimum}: must be at most infinite.constant={found.constant}", key)
