"""What the score of a held-out problem is called, and how it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Scale = tuple[float, float]  # the least and the greatest value there can be


@dataclass(frozen=True, slots=True)
class Unit:
    """How a score is named and written. `scale` has the least and the greatest possible value, if there are any."""

    name: str
    label: str
    scale: Scale | None
    percent: bool = False

    @property
    def kind(self) -> str:
        """How a table writes scores of this unit."""
        return "percent" if self.percent else "score"

    @property
    def change_kind(self) -> str:
        """How a table writes differences of such scores."""
        return "points" if self.percent else "gain"

    def show(self, value: float) -> str:
        """A score, as it stands in tables."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"

    def change(self, value: float) -> str:
        """A difference of two scores, with its sign; of percentages in points."""
        return f"{100 * value:+.1f} points" if self.percent else f"{value:+.4g}"

    def size(self, value: float) -> str:
        """The size of a difference, without a sign."""
        return f"{100 * value:.1f} points" if self.percent else f"{value:.4g}"

    def headline(self, figures: Mapping[str, float], signed: bool = False) -> str:
        """The mean score of an evaluation with its interval. With `signed`: a difference of two scores."""
        ends = self.interval(figures[f"{self.name}_low"], figures[f"{self.name}_high"], signed)
        value = figures[self.name]
        return f"{self.change(value) if signed else self.show(value)} {ends}"

    def interval(self, low: float, high: float, signed: bool = False) -> str:
        """The ends of an interval, in brackets."""
        factor, digits = (100, ".1f") if self.percent else (1, ".4g")
        sign = "+" if signed else ""
        return f"[{factor * low:{sign}{digits}}, {factor * high:{sign}{digits}}]"


UNITS = {
    unit.name: unit
    for unit in (
        Unit("accuracy", "accuracy", (0.0, 1.0), percent=True),
        Unit("quantile", "leaderboard quantile", (0.0, 1.0), percent=True),
        Unit("reward", "mean reward", None),
        Unit("return", "mean return", None),
        Unit("length_score", "length score", (0.0, 100.0)),
        Unit("negative_mse", "negative mean squared error", None),
        Unit("log_likelihood", "mean log-likelihood (nats)", None),
    )
}


def unit_of(summary: Mapping[str, Any]) -> Unit:
    """The unit of a run's scores, by its summary. Runs of earlier versions have accuracies."""
    return UNITS[summary.get("unit", "accuracy")]
