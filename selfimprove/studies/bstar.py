"""B-STaR's claims at tiny scale: fixed settings lose variety over the rounds, those chosen again each round keep it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table

from selfimprove import store
from selfimprove.report.metrics import normalise
from selfimprove.report.surface import heat_map
from selfimprove.studies import Claim, Lab, Result, advantage, as_check, claim_above, difference, measured
from selfimprove.types import Attempt

Measure = Callable[[list[Attempt]], float]

MEASURES: dict[str, Measure] = {
    "sampled accuracy": lambda group: float(np.mean([a.verdict.status == "correct" for a in group])),
    "pass@k": lambda group: float(any(a.verdict.status == "correct" for a in group)),
    "unique share": lambda group: len({normalise(a.trajectory.text) for a in group}) / len(group),
}


def study(lab: Lab) -> Iterator[Claim]:
    rounds, samples = (2, 8) if lab.quick else (6, 32)
    train, dev, heldout, n = (40, 12, 12, 4) if lab.quick else (160, 32, 48, 8)
    temperatures = (0.5, 1.1) if lab.quick else (0.5, 0.7, 0.9, 1.1)
    shared = [
        f"rounds={rounds}",
        f"eval.samples={samples}",
        f"dataset.train_size={train}",
        f"dataset.dev_size={dev}",
        f"dataset.heldout_size={heldout}",
    ]
    bstar = [
        "method=bstar",
        f"method.filter.target_size={2 * train}",
        f"method.train.steps={3 if lab.quick else 12}",
        f"method.generate.n={n}",
    ]
    step = round(temperatures[1] - temperatures[0], 6)
    grid = f"method.probe.temperatures={{low: {temperatures[0]}, high: {temperatures[-1]}, step: {step}}}"
    chosen = lab.over_seeds(*bstar, *shared, f"method.probe.n={n}", grid)
    fixed = lab.over_seeds(*bstar, *shared, "method.probe=null", "method.adapt=null")
    equal = n + round(dev * len(temperatures) * n / train)  # with what B-STaR samples of dev problems
    plain = lab.over_seeds(
        "method=rejection_sampling", *shared, f"method.generate.n={equal}", "method.filter.per_problem=2"
    )

    arms = {"bstar": chosen, "fixed T=1": fixed, "rejection sampling, equal tokens": plain}
    lab.note(_curves(arms, rounds, samples))
    for number in (0, rounds - 1):
        path = chosen[0].path / "rounds" / f"{number:03d}" / "adapt" / "surface.parquet"
        lab.note(f"balance score on the dev problems, round {number}, seed {lab.seeds[0]}")
        lab.note(heat_map(pq.read_table(path).to_pylist(), "temperature", "threshold", "balance"))
    for name, estimate in lab.at_equal_tokens(chosen).items():
        interval = f"95 % {estimate.low:.3f} to {estimate.high:.3f}"
        lab.note(f"base policy, {name} at B-STaR's sampled tokens: {estimate.value:.3f}, {interval}")

    command, k = chosen[0].command, f"pass@{samples}"
    for name, measure in ((k, MEASURES["pass@k"]), ("the share of unique solutions", MEASURES["unique share"])):
        falls = difference(_values(fixed, "base", measure), _values(fixed, "last", measure))
        text = f"with fixed T {name} falls over {rounds} rounds (fall)"
        yield claim_above(text, falls, "its own start", fixed[0].command)
    settings = [_choices(result) for result in chosen]
    pairs = "; ".join(" ".join(f"({t:g}, {tau:g})" for t, tau in row) for row in settings)
    several = all(len(set(row)) > 1 for row in settings)
    # Probes of a policy that is never trained differ too, so this says nothing of the paper.
    yield as_check(Claim("(T, tau) differ between rounds, in each seed", several, pairs, None, "", command))
    for name, measure in ((k, MEASURES["pass@k"]), ("share of unique solutions", MEASURES["unique share"])):
        ahead = difference(_values(chosen, "last", measure), _values(fixed, "last", measure))
        yield claim_above(f"final {name} is above that with fixed T", ahead, "fixed T=1, same n", command)
    ahead = advantage(chosen, fixed)
    level = True if ahead.low >= 0 else False if ahead.high < 0 else None
    yield measured("final pass@1 (greedy) is no lower than with fixed T", level, ahead, "fixed T=1", command)
    text = "final pass@1 is above rejection sampling"
    yield claim_above(text, advantage(chosen, plain), "equal sampled tokens", command)


def _curves(arms: dict[str, list[Result]], rounds: int, samples: int) -> Table:
    """Means over seeds of each arm's held-out figures, from the base policy to the last round."""
    table = Table("arm", "figure", "base", *(f"round {i}" for i in range(rounds)), title=f"held out, k={samples}")
    for arm, results in arms.items():
        folders = ["base/evaluation", *(f"rounds/{i:03d}/evaluation" for i in range(rounds))]
        greedy = [[_mean(r, r.path / f, MEASURES["sampled accuracy"], "greedy") for r in results] for f in folders]
        table.add_row(arm, "pass@1 (greedy)", *(f"{100 * np.mean(values):.1f}" for values in greedy))
        for name, measure in MEASURES.items():
            means = [np.mean([_mean(r, r.path / f, measure, "sampled") for r in results]) for f in folders]
            table.add_row("", name, *(f"{100 * mean:.1f}" for mean in means))
        for key in ("exploit/available_reward", "exploit/kept_reward"):
            values = [
                [store.read_json(r.path / f"rounds/{i:03d}/metrics.json").get(f"filter/{key}", np.nan) for r in results]
                for i in range(rounds)
            ]
            table.add_row("", key.removeprefix("exploit/"), "", *(f"{np.mean(row):.3f}" for row in values))
    return table


def _mean(result: Result, folder: Path, measure: Measure, decoding: str) -> float:
    return float(np.mean([measure(group) for group in result.attempts(folder, decoding)]))


def _values(results: Sequence[Result], folder: str, measure: Measure) -> list[dict[str, float]]:
    """For each run, held-out problem id -> a measure of its samples."""
    groups = [result.attempts(result.evaluation(folder), "sampled") for result in results]
    return [{group[0].problem.id: measure(group) for group in run} for run in groups]


def _choices(result: Result) -> list[tuple[float, float]]:
    """The temperature and threshold of each round."""
    choices: list[tuple[float, float]] = []
    for path in sorted(result.path.glob("rounds/*/adapt/surface.parquet")):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        best = max(rows, key=lambda row: row["balance"])
        choices.append((best["temperature"], best["threshold"]))
    return choices
