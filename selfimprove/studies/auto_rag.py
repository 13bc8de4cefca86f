"""Does a policy that learnt to talk with a retriever ask as often as a question needs, and on where documents lack?

Claims of Yu et al. 2024 (arXiv 2411.19443), on questions of one to three hops over the documents of dataset=docqa. The
arms learn from the same scripted teacher, who errs: from dialogues whose answer is right, and from any, as many rows.
Each has the learning rate with which it answers most dev questions. What a single retrieval could answer at most is
known exactly: it needs all facts of the question among its passages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import rankdata

from selfimprove.config import compose
from selfimprove.datasets.docqa import documents, load
from selfimprove.methods.auto_rag import ANSWER, answer
from selfimprove.studies import Claim, Lab, Result, difference, gated, overall
from selfimprove.studies.arms import RATE, arms_table, rows_of
from selfimprove.studies.solving import ByProblem, Groups, attempts, estimated, grader, solve, solved
from selfimprove.studies.staged import (
    DEV_SEED,
    answered,
    below,
    best_rate,
    bounded,
    heldout_attempts,
    percent,
    policy_of,
)
from selfimprove.studies.tiny import shipped
from selfimprove.tools.retrieval import Retriever
from selfimprove.types import Problem
from selfimprove.verify.answers import last
from selfimprove.verify.text import exact

COMMAND = "selfimprove study auto_rag"
OWN, ANY = "right dialogues", "any dialogues"
RATES = (1e-3, 2e-3)
GATE = 0.9  # share of held-out dialogues that have to end with an answer, else the form was not learnt
TOP = 10  # passages that the tool gives
GRADE = grader(exact)


def study(lab: Lab) -> Iterator[Claim]:
    taught, dev, heldout = (60, 20, 30) if lab.quick else (500, 100, 150)
    common = ["method=auto_rag", "rounds=1", f"dataset.heldout_size={heldout}"]
    if lab.quick:
        common += ["method.train.epochs=2"]
    rates = RATES[:1] if lab.quick else RATES
    sides = {p: questions(p, dev, heldout) for p in ("dev", "test")}
    own = [f"dataset.train_size={taught}"]
    best = chosen(lab, OWN, [*common, *own], rates, sides["dev"])
    runs = {OWN: lab.over_seeds(*common, *own, f"{RATE}={best}")}
    rows = round(rows_of(runs[OWN]))
    unfiltered = ["method.filter.right=false", f"dataset.train_size={rows}"]
    best = chosen(lab, ANY, [*common, *unfiltered], rates, sides["dev"])
    runs[ANY] = lab.over_seeds(*common, *unfiltered, f"{RATE}={best}")
    yield from claims(lab, runs, sides["test"])


def claims(lab: Lab, runs: Mapping[str, Sequence[Result]], heldout: Sequence[Problem]) -> Iterator[Claim]:
    groups = {arm: [heldout_attempts(r) for r in found] for arm, found in runs.items()}
    asked = [searches(found) for found in groups[OWN]]
    short = [p for p in heldout if p.metadata["hops"] == 1]
    without = set(documents()) - {fact for p in short for fact in p.metadata["facts"]}
    lacking = [dialogues(r, short, sorted(without), s) for s, r in enumerate(runs[OWN])]
    passages = round(overall(asked) * options()["max_passages"])
    once = [retrieved_once(heldout, passages)] * len(asked)
    lab.note(table(groups, lacking))
    ends = float(np.mean([ANSWER in a.trajectory.text for found in groups[OWN] for g in found for a in g]))
    names = {hops: [p.id for p in heldout if p.metadata["hops"] == hops] for hops in (1, 3)}
    one, three = ([{name: run[name] for name in names[hops]} for run in asked] for hops in (1, 3))
    nothing = [[dict.fromkeys(run, 0.0) for run in found] for found in (one, three)]
    more = [{p.id: searches(found)[p.id] for p in short} for found in lacking]
    wrote = [{g[0].problem.id: float(bool(g[0].trajectory.metadata["written"])) for g in found} for found in lacking]
    mine, others = ([answered(r) for r in runs[arm]] for arm in (OWN, ANY))
    least = f"what {passages} passages hold, which the question finds itself"
    found = [
        bounded("more answers are right than one retrieval could give", difference(mine, once), 0.0, least, COMMAND),
        below("questions of one hop take at most 1.3 searches", difference(one, nothing[0]), 1.3, "", COMMAND),
        bounded("questions of three hops take at least 2.6", difference(three, nothing[1]), 2.6, "", COMMAND),
        bounded("hops and searches rank alike (Spearman above .7)", estimated(spearman, groups[OWN]), 0.7, "", COMMAND),
        bounded("without its document a question takes more searches", difference(more, one), 0.0, "with it", COMMAND),
        bounded("and most then have the policy write one itself", difference(wrote, nothing[0]), 0.5, "", COMMAND),
        bounded("right dialogues teach more than any", difference(mine, others), 0.0, "as many rows", COMMAND),
    ]
    yield from gated(found, ends >= GATE, f"{ends:.0%} of dialogues end with an answer, of {GATE:.0%} needed")


def options() -> dict[str, Any]:
    """The options of the solver for held-out problems, as the method has them."""
    node = compose(["method=auto_rag"]).method.evaluate
    assert node is not None
    return {key: value for key, value in node.items() if key != "_target_"}


def questions(side: str, dev: int, heldout: int) -> list[Problem]:
    found = load(seed=0, prompt="{question}", train_size=0, dev_size=dev, heldout_size=heldout)
    return [p for p in found if p.split == side]


def chosen(lab: Lab, arm: str, words: Sequence[str], rates: Sequence[float], dev: Sequence[Problem]) -> float:
    """The learning rate of an arm whose policy answers most dev questions rightly."""

    def accuracy(one: float) -> float:
        run = lab.run(*words, "dataset.heldout_size=10", f"{RATE}={one}", f"seed={DEV_SEED}")
        return overall([solved(dialogues(run, dev, documents(), DEV_SEED), last)])

    return best_rate(lab, arm, rates, accuracy, "accuracy", percent)


def dialogues(run: Result, problems: Sequence[Problem], corpus: Sequence[str], seed: int) -> Groups:
    """The last policy's dialogues with a retriever over a corpus, with verdicts."""
    solver = partial(answer, tools={"retriever": Retriever(corpus, TOP)}, **options())
    return attempts(problems, solve(solver, shipped(policy_of(run)), problems, seed=seed), GRADE)


def searches(groups: Groups) -> ByProblem:
    """Problem id -> searches of its dialogue."""
    return {group[0].problem.id: float(group[0].trajectory.metadata["searches"]) for group in groups}


def retrieved_once(problems: Sequence[Problem], passages: int) -> ByProblem:
    """Whether so many passages for the question as a query hold all its facts: what a perfect reader could answer."""
    retriever = Retriever(documents(), passages)

    async def holds(problem: Problem) -> float:
        found = (await retriever(str(problem.metadata["question"]))).splitlines()
        return float(set(problem.metadata["facts"]) <= set(found))

    return {problem.id: asyncio.run(holds(problem)) for problem in problems}


def spearman(groups: Groups, weights: np.ndarray) -> float:
    """The rank correlation of hops and searches; 0 where all dialogues have as many."""
    counts = [[g[0].problem.metadata["hops"] for g in groups], list(searches(groups).values())]
    ranks = np.array([rankdata(values) for values in counts])
    cov = np.cov(ranks, aweights=weights)
    return float(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])) if cov[0, 0] * cov[1, 1] > 0 else 0.0


def table(groups: Mapping[str, Sequence[Groups]], lacking: Sequence[Groups]) -> Table:
    def by_hops(found: Sequence[Groups], hops: int) -> tuple[float, float]:
        own = [g[0] for run in found for g in run if g[0].problem.metadata["hops"] == hops]
        right = float(np.mean([a.verdict.status == "correct" for a in own]))
        return right, float(np.mean([a.trajectory.metadata["searches"] for a in own]))

    def column(hops: int) -> dict[str, Any]:
        return {
            f"{hops}-hop right": lambda found: f"{100 * by_hops(found, hops)[0]:.1f} %" if has(found, hops) else "",
            "searches" + " " * hops: lambda found: f"{by_hops(found, hops)[1]:.2f}" if has(found, hops) else "",
        }

    def has(found: Sequence[Groups], hops: int) -> bool:
        return any(g[0].problem.metadata["hops"] == hops for run in found for g in run)

    arms = {**groups, f"{OWN}, document removed": lacking}
    return arms_table("Held-out questions, all seeds", arms, {**column(1), **column(2), **column(3)})
