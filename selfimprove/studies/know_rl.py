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
    said = {"start": [assessments(policy_of(r), sides["test"], s) for s, r in enumerate(starts)]}
    said |= {arm: [assessments(policy_of(r), sides["test"], s) for s, r in enumerate(rs)] for arm, rs in runs.items()}
    voted = [[[group[vote(group) or 0]] for group in groups] for groups in said["start"]]
    lab.note(table({**said, f"start, majority of {K}": voted}))
    lab.note(rounds_table(runs))
    written = float(np.mean([a.verdict.extracted is not None for gs in said["start"] for g in gs for a in g]))
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
        return unweighted(f1_of, [assessments(policy_of(trial), dev, DEV_SEED)])

    return best_rates(lab, ARMS, RATES, on_dev, "F1", percent)


def assessments(path: str, problems: Sequence[Problem], seed: int) -> Groups:
    """K assessments of each task by a policy, at temperature 1."""
    solver = partial(best_of_n, n=K, temperature=1.0)
    return attempts(problems, solve(solver, shipped(path, 256), problems, seed=seed, max_tokens=16), GRADE)


def called(groups: Groups, letter: str) -> np.ndarray:
    """Of each task the share of assessments that give this label: A is feasible, B is not."""
    return np.array([np.mean([a.verdict.extracted == letter for a in group]) for group in groups])


def truth(groups: Groups) -> np.ndarray:
    """Of each task whether it is feasible."""
    return np.array([group[0].problem.gold == "feasible" for group in groups])


def f1_of(groups: Groups, weights: np.ndarray) -> float:
    said, true = weights * called(groups, "A"), weights * truth(groups)
    return f1((said * truth(groups)).sum(), said.sum(), true.sum())


def share(groups: Groups, weights: np.ndarray) -> float:
    """Of assessments that say feasible."""
    return float(np.average(called(groups, "A"), weights=weights))


def rarer(groups: Groups, weights: np.ndarray) -> float:
    """The share of the label that is said less often."""
    return min(float(np.average(called(groups, letter), weights=weights)) for letter in "AB")


def agreement(groups: Groups, weights: np.ndarray) -> float:
    """The share of a task's assessments that say what most of them do."""
    return float(np.average(np.maximum(called(groups, "A"), called(groups, "B")), weights=weights))


def right(groups: Groups, weights: np.ndarray) -> float:
    """The share of assessments that are right."""
    return float(np.average(np.where(truth(groups), called(groups, "A"), called(groups, "B")), weights=weights))


def table(arms: dict[str, list[Groups]]) -> Table:
    columns = {"F1": f1_of, "right": right, "call it feasible": share, "agree with their majority": agreement}

    def cell(figure: Figure, found: list[Groups]) -> str:
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
