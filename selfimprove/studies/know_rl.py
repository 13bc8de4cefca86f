"""Does agreement with itself teach a policy what it can do, and does that need the guards?

Claims of Kale and Dhami 2025 (arXiv 2510.11407), on chains of arithmetic, some with a step that nobody has explained.
Both arms start from the policy that has learnt the words from the seeds. They differ in the guards. Each has the
learning rate that is best on dev. Truth is what was measured of the shipped policy: its answers are mostly right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.config import compose
from selfimprove.datasets.feasibility import load
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.know_rl import f1
from selfimprove.studies import Claim, Lab, Result, gated
from selfimprove.studies.arms import RATE, Round, arms_table, each_round, evaluated, tuned
from selfimprove.studies.solving import Figure, Groups, attempts, estimated, grader, solve, unweighted
from selfimprove.studies.staged import DEV_SEED, below, best_rates, between, bounded, pass_folder, percent, policy_of
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify.answers import vote
from selfimprove.verify.choice import check

COMMAND = "selfimprove study know_rl"
METHOD, BARE = "KnowRL", "without the guards"
BARE_OPTIONS = [
    "method.stages.assess.filter.share=0",
    "method.stages.assess.filter.balance=false",
    "method.stages.ask.make.alike=null",
]
ARMS = {METHOD: list[str](), BARE: BARE_OPTIONS}
RATES = (1e-4, 3e-4)
K = 8  # assessments of each held-out task
GATE = 0.95  # share of assessments that have to be one of the labels, else the words were not learnt
GAIN = 0.05
SHARES = (0.3, 0.7)  # within which the share of `feasible` has to stay
ONE_LABEL = 0.1  # share of the rarer label below which the other has taken over
GRADE = grader(check)


def study(lab: Lab) -> Iterator[Claim]:
    rounds, dev, heldout = (1, 20, 40) if lab.quick else (5, 100, 200)
    words = ["method=know_rl", f"dataset.heldout_size={heldout}"]
    if lab.quick:
        words += ["dataset.train_size=40", "method.stages.words.train.epochs=3", "method.stages.ask.problems.count=4"]
    sides = tasks(dev, heldout)
    chosen = dict.fromkeys(ARMS, RATES[0]) if lab.quick else chosen_rates(lab, words, rounds, sides["dev"])
    starts = [start(lab, words, seed) for seed in lab.seeds]
    runs = {
        arm: [trained(lab, words, begin, rounds, own, seed) for begin, seed in zip(starts, lab.seeds, strict=True)]
        for arm, own in tuned(ARMS, chosen).items()
    }
    begun = [assessments(policy_of(r), sides["test"], s) for s, r in enumerate(starts)]
    said = {"start": list(map(labels, begun))}
    for arm, found in runs.items():
        said[arm] = [labels(assessments(policy_of(r), sides["test"], s)) for s, r in enumerate(found)]
    voted = [labels([[group[vote(group) or 0]] for group in groups]) for groups in begun]
    lab.note(table({**said, f"start, majority of {K}": voted}))
    lab.note(rounds_table(runs))
    written = float(np.mean([a.verdict.extracted is not None for gs in begun for g in gs for a in g]))
    mine, begin, bare = said[METHOD], said["start"], said[BARE]
    claims = [
        bounded(claim, estimate, least, control, COMMAND)
        for claim, estimate, least, control in (
            ("F1 of an assessment rises by at least 5 points", estimated(f1_of, mine, begin), GAIN, "the start"),
            ("it gets above that of the start's majority", estimated(f1_of, mine, voted), 0.0, f"majority of {K}"),
            ("F1 is higher with the guards than without", estimated(f1_of, mine, bare), 0.0, BARE),
            ("assessments agree with their majority more often", estimated(agreement, mine, begin), 0.0, "the start"),
        )
    ]
    text = "the share that is called feasible stays between .3 and .7"
    claims.append(between(text, estimated(share, mine), *SHARES, "", COMMAND))
    text = "without the guards one label takes over: the other is below .1"
    claims.append(below(text, estimated(rarer, bare), ONE_LABEL, "", COMMAND))
    why = f"{written:.0%} of assessments are a label, of {GATE:.0%} that have to be"
    yield from gated(claims, written >= GATE, why)


def tasks(dev: int, heldout: int) -> dict[str, list[Problem]]:
    """Dev and held-out tasks, as a run is given them."""
    options = compose(["method=know_rl"]).dataset.model_dump()
    given = {key: options[key] for key in ("prompt", "heldout_share")}
    found = load(seed=0, train_size=0, dev_size=dev, heldout_size=heldout, **given)
    return {side: [p for p in found if p.split == side] for side in ("dev", "test")}


def start(lab: Lab, words: Sequence[str], seed: int) -> Result:
    """The run that learns the words from the seeds alone."""
    asked = compose(["method=know_rl"]).stages["ask"].problems or {}
    said = [f"method.stages.words.problems.{key}={json.dumps(asked[key])}" for key in ("ask", "shots")]
    without = [f"~method.stages.{stage}" for stage in ("ask", "assess", "propose")]
    return lab.run(*words, "rounds=1", *said, *without, f"seed={seed}")


def trained(lab: Lab, words: Sequence[str], begin: Result, rounds: int, own: Sequence[str], seed: int) -> Result:
    """A run of an arm from a policy that knows the words."""
    path = Path(policy_of(begin)).resolve()
    return lab.run(*words, "~method.stages.words", f"model.path={path}", f"rounds={rounds}", *own, f"seed={seed}")


def chosen_rates(lab: Lab, words: Sequence[str], rounds: int, dev: Sequence[Problem]) -> dict[str, float]:
    """The learning rate of each arm whose policy has the best F1 on dev."""
    begin = start(lab, words, DEV_SEED)

    def on_dev(own: Sequence[str], rate: float) -> float:
        trial = trained(lab, words, begin, rounds, [*own, f"{RATE}={rate}"], DEV_SEED)
        return unweighted(f1_of, [labels(assessments(policy_of(trial), dev, DEV_SEED))])

    return best_rates(lab, ARMS, RATES, on_dev, "F1", percent)


def assessments(path: str, problems: Sequence[Problem], seed: int) -> Groups:
    """K assessments of each task by a policy, at temperature 1."""
    solver = partial(best_of_n, n=K, temperature=1.0)
    return attempts(problems, solve(solver, shipped(path, 256), problems, seed=seed, max_tokens=16), GRADE)


def labels(groups: Groups) -> np.ndarray:
    """Shape (tasks, 3): the shares of assessments that call it feasible (A) and not (B), and whether it is."""
    said = [[a.verdict.extracted for a in group] for group in groups]
    shares = [[np.mean([letter == own for own in task]) for task in said] for letter in "AB"]
    return np.array([*shares, [group[0].problem.gold == "feasible" for group in groups]]).T


def f1_of(run: np.ndarray, weights: np.ndarray) -> float:
    said, true = weights * run[:, 0], weights * run[:, 2]
    return f1((said * run[:, 2]).sum(), said.sum(), true.sum())


def share(run: np.ndarray, weights: np.ndarray) -> float:
    """Of assessments that say feasible."""
    return float(np.average(run[:, 0], weights=weights))


def rarer(run: np.ndarray, weights: np.ndarray) -> float:
    """The share of the label that is said less often."""
    return float(np.average(run[:, :2], axis=0, weights=weights).min())


def agreement(run: np.ndarray, weights: np.ndarray) -> float:
    """The share of a task's assessments that say what most of them do."""
    return float(np.average(run[:, :2].max(axis=1), weights=weights))


def right(run: np.ndarray, weights: np.ndarray) -> float:
    """The share of assessments that are right."""
    return float(np.average(np.where(run[:, 2], run[:, 0], run[:, 1]), weights=weights))


def table(arms: dict[str, list[np.ndarray]]) -> Table:
    columns = {"F1": f1_of, "right": right, "call it feasible": share, "agree with their majority": agreement}

    def cell(figure: Figure[np.ndarray], found: list[np.ndarray]) -> str:
        return f"{unweighted(figure, found):.3f}"

    return arms_table(
        f"{K} assessments of each held-out task at temperature 1, means over seeds",
        arms,
        {name: partial(cell, figure) for name, figure in columns.items()},
        "policy",
    )


def rounds_table(runs: dict[str, list[Result]]) -> Table:
    """What each round of an arm came to: greedy assessments of held-out tasks, tasks made, rows, proposals."""

    def passes(stage: str, phase: str, figure: str, row: Round) -> float:
        number, found = row
        manifests = [store.read_json(pass_folder(r, stage, number) / f"{phase}.manifest.json") for r in found]
        return float(np.mean([manifest["metrics"].get(figure, 0) for manifest in manifests]))

    def asked(row: Round) -> float:
        correct, wrong = (passes("propose", "verify", f"verdicts/{s}", row) for s in ("correct", "wrong"))
        return correct / max(1, correct + wrong)

    return arms_table(
        "Each round, means over seeds; held-out tasks with one greedy assessment",
        each_round(runs),
        {
            "F1": lambda row: f"{evaluated(row, 'f1'):.3f}",
            "call it feasible": lambda row: f"{evaluated(row, 'said'):.3f}",
            "tasks": lambda row: f"{passes('ask', 'make', 'problems', row):.0f}",
            "rows": lambda row: f"{passes('assess', 'filter', 'examples', row):.0f}",
            "label as asked for": lambda row: f"{asked(row):.3f}",
        },
        "arm",
    )
