"""Does a model get better by learning its own refined answers, and does its own feedback choose the right ones?

Claims of Lu et al. 2023 (arXiv 2310.00533), on long chains of arithmetic; a teacher that knows all answers writes the
feedback of the meta stage. The arms are the rounds with the self-filter, the rounds on as many answers drawn at random,
and no rounds. Each has the learning rate that is best on dev.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.report.curve import sampled_tokens
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result, difference, overall, untestable
from selfimprove.studies.arms import arms_table, run_arms, tuned
from selfimprove.studies.solving import ByProblem, resampled, solved
from selfimprove.studies.staged import (
    DEV_SEED,
    GRADE,
    answers_of,
    at_stage,
    bounded,
    chosen_rates,
    first_of_stage,
    heldout_attempts,
    percent,
    percent_of,
    policy_of,
    votes,
)
from selfimprove.types import Example
from selfimprove.verify.answers import vote

COMMAND = "selfimprove study self_lf"
OWN, RANDOM, META = "self-filter", "random, as many", "meta stage alone"
ARMS = {OWN: [], RANDOM: ["method.filter.keep=random"], META: ["~method.stages.evolve", "rounds=1"]}
LEVELS = (5, 6)
RATES = (1e-4, 3e-4)


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout = (40, 16, 20) if lab.quick else (200, 60, 120)
    common = ["method=self_lf", f"dataset.train_size={train}", f"dataset.levels={list(LEVELS)}"]
    common += ["method.stages.meta.problems.between=[0,0.3]", "method.stages.evolve.problems.between=[0.3,1]"]
    chosen = dict.fromkeys(ARMS, RATES[0])
    if not lab.quick:
        evaluate = compose(common).method.evaluate
        assert evaluate is not None
        solver = bind(evaluate, "method.evaluate")
        chosen = chosen_rates(lab, [*common, "rounds=1"], ARMS, RATES, solver, first, dev, levels=LEVELS)
    rounds = 1 if lab.quick else 2
    runs = run_arms(lab, [*common, f"rounds={rounds}", f"dataset.heldout_size={heldout}"], tuned(ARMS, chosen))
    beside = [majority(r, seed) for seed, r in enumerate(runs[OWN])]
    lab.note(table(runs, [n for n, _ in beside], [found for _, found in beside]))
    direct = {arm: [at_stage(r, 1) for r in found] for arm, found in runs.items()}
    better = [at_stage(r, 2) for r in runs[OWN]]
    premise = sharper(runs[OWN])
    yield bounded("answers that its own feedback accepts are right more often than all", premise, 0.0, "all", COMMAND)
    yield bounded(
        "direct answers are better after the rounds than after the meta stage",
        difference(direct[OWN], direct[META]),
        0.0,
        META,
        COMMAND,
    )
    said = "direct answers are better with the self-filter than without"
    if premise.low > 0:
        yield bounded(said, difference(direct[OWN], direct[RANDOM]), 0.0, "as many answers at random", COMMAND)
    else:
        yield untestable(said, "the feedback does not sort", RANDOM, COMMAND)
    refining = "online refinement is better than the direct answer"
    yield bounded(refining, difference(better, direct[OWN]), 0.0, "direct answers", COMMAND)
    yield bounded(
        "online refinement is better than a majority of as many tokens",
        difference(better, [found for _, found in beside]),
        0.0,
        f"majority of {beside[0][0]} sampled answers",
        COMMAND,
    )
    yield bounded(
        "the more of the kept answers are right, the larger is a round's gain (rank correlation)",
        correlation([point for arm in (OWN, RANDOM) for point in points(runs[arm], runs[META])]),
        0.0,
        "0",
        COMMAND,
    )


def first(group: Sequence[object]) -> int | None:
    """The direct answer."""
    return 0 if group else None


def passes(result: Result) -> list[Path]:
    """The folders of the rounds' evolve stage, in order."""
    return sorted(result.path.glob("rounds/*_evolve"))


def graded(result: Result, folder: Path) -> list[tuple[bool, bool, bool]]:
    """Of each answer of a pass: whether it is right, whether its own feedback accepts it, and whether it is kept."""
    kept = {e.trajectory_ids[0] for e in store.read_records(folder / "examples.parquet", Example)}
    return [
        (
            GRADE(a.trajectory.text, a.problem).status == "correct",
            a.verdict.status == "correct",
            a.trajectory.id in kept,
        )
        for group in result.attempts(folder)
        for a in group
    ]


def sharper(results: Sequence[Result]) -> Estimate:
    """P(right | accepted) - P(right) over all rounds and seeds, with a bootstrap over answers."""
    rows = np.array([row for r in results for folder in passes(r) for row in graded(r, folder)], dtype=float)

    def figure(places: np.ndarray) -> float:
        sample = rows[places]
        accepted = sample[sample[:, 1] == 1, 0]
        return float(accepted.mean() - sample[:, 0].mean()) if len(accepted) else 0.0

    return resampled(figure, len(rows))


def points(results: Sequence[Result], starts: Sequence[Result]) -> list[tuple[float, float]]:
    """(share of kept answers that are right, gain in direct accuracy) of each round; `starts` are without rounds."""
    found = []
    for result, start in zip(results, starts, strict=True):
        before = overall([at_stage(start, 1)])
        for folder in passes(result):
            after = overall([first_of_stage(result.attempts(folder / "evaluation"), 1)])
            kept = [right for right, _, keep in graded(result, folder) if keep]
            found.append((float(np.mean(kept)), after - before))
            before = after
    return found


def correlation(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Spearman's rank correlation, with a bootstrap over the pairs."""
    from scipy.stats import rankdata

    rows = np.array(pairs)

    def figure(places: np.ndarray) -> float:
        x, y = rankdata(rows[places, 0]), rankdata(rows[places, 1])
        return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else 0.0

    return resampled(figure, len(rows))


def majority(result: Result, seed: int) -> tuple[int, ByProblem]:
    """As many sampled answers as have the tokens of online refinement, at least two, and which problems their majority
    solves."""
    groups = heldout_attempts(result)
    direct = np.mean([group[0].trajectory.sampled_tokens for group in groups])
    n = max(2, round(float(np.mean([sampled_tokens(group[-1:]) for group in groups]) / direct)))
    found = answers_of(policy_of(result), [group[0].problem for group in groups], votes(n), DEV_SEED + seed)
    return n, solved(found, vote)


def table(runs: dict[str, list[Result]], counts: list[int], beside: list[ByProblem]) -> Table:
    base = [f"{100 * overall([at_stage(r, turn, 'base') for r in runs[OWN]]):.1f} %" for turn in (1, 2)]

    def share(which: Callable[[tuple[bool, bool, bool]], bool]) -> Callable[[list[Result]], str]:
        def cell(results: list[Result]) -> str:
            rows = [row for r in results for folder in passes(r) for row in graded(r, folder)]
            mine = [row[0] for row in rows if which(row)]
            return f"{100 * np.mean(mine):.1f} %" if mine else ""

        return cell

    def by_round(results: list[Result]) -> str:
        found = [[first_of_stage(r.attempts(f / "evaluation"), 1) for f in passes(r)] for r in results]
        return ", ".join(percent(overall(runs)) for runs in zip(*found, strict=True))

    own_majority = f"{100 * overall(beside):.1f} % (of {round(float(np.mean(counts)))})"
    return arms_table(
        f"Held-out, means over seeds; the shipped policy: {base[0]} directly, {base[1]} refined",
        runs,
        {
            "direct": percent_of(partial(at_stage, number=1)),
            "direct, by round": by_round,
            "refined online": percent_of(partial(at_stage, number=2)),
            "majority": lambda rs: own_majority if rs is runs[OWN] else "",
            "training answers right": share(lambda row: True),
            "of the accepted": share(lambda row: row[1]),
            "of the kept": share(lambda row: row[2]),
            "rows a round": lambda rs: f"{np.mean([one['examples'] for r in rs for one in r.summary['rounds']]):.0f}",
            "sampled tokens": lambda rs: f"{np.mean([r.sampled_tokens for r in rs]):,.0f}",
        },
    )
