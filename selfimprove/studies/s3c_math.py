"""Does a model that read its own wrong steps take back a wrong step, and does masking keep it from writing them?

Claims of Yan et al. 2024 (arXiv 2409.01524), on chains of arithmetic. The arms are the same folds as three kinds of
rows: with wrong steps that bear no loss, with wrong steps that do, and worked solutions alone. Each has the learning
rate that is best on dev.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.datasets.arithmetic import Chain
from selfimprove.datasets.worked import steps_of
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.report.statistics import Estimate, mean_over_problems
from selfimprove.studies import Claim, Lab, Result, difference, overall
from selfimprove.studies.arms import arms_table, run_arms, tuned
from selfimprove.studies.solving import ByProblem, solve, solved
from selfimprove.studies.staged import (
    DEV_SEED,
    MAX_TOKENS,
    answers_of,
    below,
    bounded,
    chosen_rates,
    heldout_problems,
    policy_of,
    votes,
)
from selfimprove.studies.tiny import shipped
from selfimprove.types import Example, Problem, Trajectory
from selfimprove.verify.answers import best
from selfimprove.verify.arithmetic import step_rewards

COMMAND = "selfimprove study s3c_math"
OWN, UNMASKED, PLAIN = "masked", "unmasked", "plain"
ARMS = {rows: [f"method.stages.err.filter.rows={rows}"] for rows in (OWN, UNMASKED, PLAIN)}
LEVELS = (4, 5, 6)
RATES = (3e-4, 1e-3)
REFLECTION = "Wait, that is wrong."  # as in conf/method/s3c_math.yaml


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout = (30, 16, 24) if lab.quick else (180, 100, 150)
    common = ["method=s3c_math", f"rounds={2 if lab.quick else 3}", f"dataset.train_size={train}"]
    common += [f"dataset.levels={list(LEVELS)}"]
    chosen = dict.fromkeys(ARMS, RATES[-1])
    if not lab.quick:
        greedy = partial(best_of_n, n=1, temperature=0.0)
        chosen = chosen_rates(lab, common, ARMS, RATES, greedy, best, dev, levels=LEVELS)
    runs = run_arms(lab, [*common, f"dataset.heldout_size={heldout}"], tuned(ARMS, chosen))
    right = {arm: [r.heldout() for r in found] for arm, found in runs.items()}
    mended = {arm: [repaired(r) for r in found] for arm, found in runs.items()}
    slips = {arm: [slipped(r) for r in found] for arm, found in runs.items()}
    lab.note(table(runs, mended, slips))
    yield bounded("steps taken for wrong ones are wrong in at least .8", precision(runs[OWN]), 0.8, "", COMMAND)
    yield bounded("a forced wrong step is repaired in at least .6", mean(mended[OWN]), 0.6, "", COMMAND)
    yield below("without the data in at most .1", mean(mended[PLAIN]), 0.1, "", COMMAND)
    yield bounded(
        "a forced wrong step is repaired more often than without the data",
        difference(mended[OWN], mended[PLAIN]),
        0.0,
        "plain: as many rows",
        COMMAND,
    )
    yield bounded(
        "unforced answers are not more than 1 point below those of plain fine-tuning",
        difference(right[OWN], right[PLAIN]),
        -0.01,
        "plain: as many rows",
        COMMAND,
    )
    yield bounded(
        "loss on wrong steps makes wrong steps more frequent",
        difference(slips[UNMASKED], slips[OWN]),
        0.0,
        "masked: the same rows",
        COMMAND,
    )


def mean(runs: list[ByProblem]) -> Estimate:
    """The mean over problems of what is their mean over seeds."""
    return mean_over_problems([float(np.mean([run[name] for run in runs])) for name in runs[0]])


def repaired(result: Result) -> ByProblem:
    """Which held-out problems are solved, greedily, behind true steps and a wrong one that was put there."""

    async def forced(problem: Problem, policy: Policy) -> list[Trajectory]:
        dialogue = Dialogue(policy, problem.prompt)
        dialogue.append(astray(problem))
        await dialogue.reply(temperature=0.0)
        return [Trajectory(problem.id, dialogue.samples)]

    return solved(answers_of(policy_of(result), heldout_problems(result), forced), best)


def astray(problem: Problem) -> str:
    """The start of the worked solution up to a step drawn at random, whose result is off by 1 to 3."""
    rng, steps = random.Random(problem.id), steps_of(problem)
    place = rng.randrange(len(steps) - 1)
    left, _, result = steps[place].partition(" = ")
    wrong = rng.choice([v for d in (-3, -2, -1, 1, 2, 3) if (v := int(result) + d) >= 0])
    return "\n".join([*steps[:place], f"{left} = {wrong}", ""])


def slipped(result: Result) -> ByProblem:
    """Which held-out problems' sampled answer has a wrong step before anything is taken back."""
    problems = heldout_problems(result)
    found = solve(votes(1), shipped(policy_of(result)), problems, seed=DEV_SEED, max_tokens=MAX_TOKENS)

    def wrong(problem: Problem, text: str) -> float:
        before = text.partition(REFLECTION)[0]
        return float(not all(step_rewards(before, Chain.of(problem.metadata), str(problem.gold))))

    return {p.id: wrong(p, one.text) for p, (one,) in zip(problems, found, strict=True)}


def precision(results: list[Result]) -> Estimate:
    """The share of steps that bear no loss as wrong ones which are wrong by the exact check, over rows of all seeds."""
    values = list[float]()
    for result in results:
        problems = {p.id: p for p in store.read_records(result.path / "problems.parquet", Problem)}
        for path in sorted(result.path.glob("rounds/*_err/examples.parquet")):
            for example in store.read_records(path, Example):
                if "step" in example.metadata:
                    problem = problems[example.problem_id]
                    lines = [*steps_of(problem)[: example.metadata["step"]], example.metadata["wrong"]]
                    rewards = step_rewards("\n".join(lines), Chain.of(problem.metadata), str(problem.gold))
                    values.append(float(rewards[-1] == 0))
    return mean_over_problems(values)


def table(
    runs: dict[str, list[Result]], mended: dict[str, list[ByProblem]], slips: dict[str, list[ByProblem]]
) -> Table:
    base = overall([r.heldout("base") for r in runs[OWN]])
    return arms_table(
        f"Held-out, means over seeds; the shipped policy: {100 * base:.1f} %",
        {arm: (arm, found) for arm, found in runs.items()},
        {
            "right, unforced": lambda of: f"{100 * overall([r.heldout() for r in of[1]]):.1f} %",
            "forced error repaired": lambda of: f"{overall(mended[of[0]]):.3f}",
            "answers with a wrong step": lambda of: f"{overall(slips[of[0]]):.3f}",
            "rows": lambda of: f"{np.mean([learnt(r) for r in of[1]]):.0f}",
            "sampled tokens": lambda of: f"{np.mean([r.sampled_tokens for r in of[1]]):,.0f}",
        },
    )


def learnt(result: Result) -> int:
    """Rows that the policy was trained on."""
    (path,) = result.path.glob("rounds/*_learn/examples.parquet")
    return store.count_records(path)
