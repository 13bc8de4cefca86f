"""Does an agent on a knowledge graph learn from what it explored, and find in documents what the graph lacks?

Claims of Liu et al. 2025 (arXiv 2502.03283), on questions of one to three hops over the graph of dataset=kgqa. It lacks
15 % of the facts, and all of them stand in documents. The arms differ in what they learn from: the better of an attempt
and its refinement, the attempt alone, or both where they are right. Each has the learning rate with which it answers
most dev questions. The start is the policy that has learnt the form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.datasets.docqa import FACT, documents, load
from selfimprove.methods.symagent import answer
from selfimprove.studies import Claim, Lab, Result, difference, gated, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import ByProblem, Groups, attempts, estimated, grader, solve, unweighted
from selfimprove.studies.staged import DEV_SEED, best_rate, bounded, heldout_attempts, percent, policy_of
from selfimprove.studies.tiny import shipped
from selfimprove.tools.retrieval import Retriever
from selfimprove.types import Problem
from selfimprove.verify.recall import recall

COMMAND = "selfimprove study symagent"
OWN = "merged"
ARMS = {
    OWN: list[str](),
    "no refinement": ["method.stages.self.generate.refine=null"],
    "no merge": ["method.stages.self.filter._target_=selfimprove.methods.symagent.right"],
}
RATE = "method.stages.self.train.learning_rate"  # all arms learn the form at the same one
RATES = (3e-4, 1e-3, 2e-3)
GATE = 0.9  # share of the start's trajectories that have to end with finish(...), else the form was not learnt
REMOVED = 0.15  # of the facts, as in conf/dataset/kgqa.yaml
GRADE = grader(recall)
TRUE = {(one, relation, other) for text in documents() for relation, one, other in FACT.findall(text)}


def study(lab: Lab) -> Iterator[Claim]:
    rounds, train, dev, heldout = (1, 20, 10, 20) if lab.quick else (3, 450, 100, 200)
    common = ["method=symagent", f"rounds={rounds}", f"dataset.train_size={train}", f"dataset.heldout_size={heldout}"]
    if lab.quick:
        common += ["method.stages.seed.problems.count=20", "method.train.epochs=1"]
    arms = {OWN: ARMS[OWN]} if lab.quick else ARMS
    asked = {side: questions(side, dev, heldout) for side in ("dev", "test")}
    runs = {}
    for arm, own in arms.items():
        rate = chosen(lab, arm, [*common, *own], RATES[:1] if lab.quick else RATES, asked["dev"])
        runs[arm] = lab.over_seeds(*common, *own, f"{RATE}={rate}")
    yield from claims(lab, runs, asked["test"])


def claims(lab: Lab, runs: Mapping[str, Sequence[Result]], heldout: Sequence[Problem]) -> Iterator[Claim]:
    last = {arm: [heldout_attempts(r) for r in found] for arm, found in runs.items()}
    start = [answers(r.path / "rounds/000.0_seed/policy", heldout, s) for s, r in enumerate(runs[OWN])]
    lacking = [p for p in heldout if p.metadata["missing"]]
    alone = [answers(Path(policy_of(r)), lacking, s, ["Nothing is known."]) for s, r in enumerate(runs[OWN])]
    lab.note(table({"start": start, **last}))
    names = {p.id for p in lacking}
    there = [{name: value for name, value in rewards(g).items() if name in names} for g in last[OWN]]
    own = [rewards(groups) for groups in last[OWN]]
    found = [
        bounded("recall rises by more than 10 points", difference(own, each(start)), 0.1, "the start", COMMAND),
        bounded("what the graph lacks is answered", difference(there, each(alone)), 0.0, "without documents", COMMAND),
        bounded("nine of ten extracted triples are true", estimated(precision, last[OWN]), 0.9, "", COMMAND),
    ]
    found += [
        bounded(f"{OWN} learns more than {arm}", difference(own, each(last[arm])), 0.0, arm, COMMAND)
        for arm in runs
        if arm != OWN
    ]
    ends = float(np.mean([a.verdict.status != "unparseable" for groups in start for g in groups for a in g]))
    yield from gated(found, ends >= GATE, f"{ends:.0%} of the start's trajectories finish, of {GATE:.0%} needed")


def questions(side: str, dev: int, heldout: int) -> list[Problem]:
    sizes = {"train_size": 0, "dev_size": dev, "heldout_size": heldout}
    found = load(removed=REMOVED, seed=0, prompt="{question}", **sizes)  # type: ignore[arg-type]
    return [p for p in found if p.split == side]


def answers(policy: Path, problems: Sequence[Problem], seed: int, corpus: Sequence[str] | None = None) -> Groups:
    """A policy's trajectories as the method evaluates it, with verdicts; `corpus`: other documents."""
    method = compose(["method=symagent"]).method
    tools = {name: bind(node, f"method.tools.{name}")() for name, node in method.tools.items()}
    if corpus:
        tools["retriever"] = Retriever(corpus, 1)
    options = {key: value for key, value in (method.evaluate or {}).items() if key != "_target_"}
    solver = partial(answer, tools=tools, **options)
    return attempts(problems, solve(solver, shipped(policy), problems, seed=seed), GRADE)


def chosen(lab: Lab, arm: str, words: Sequence[str], rates: Sequence[float], dev: Sequence[Problem]) -> float:
    """The learning rate of an arm whose policy answers most dev questions rightly."""

    def recalled(rate: float) -> float:
        run = lab.run(*words, f"{RATE}={rate}", f"seed={DEV_SEED}")
        return overall([rewards(answers(Path(policy_of(run)), dev, DEV_SEED))])

    return best_rate(lab, arm, rates, recalled, "recall", percent)


def rewards(groups: Groups) -> ByProblem:
    return {group[0].problem.id: group[0].verdict.reward for group in groups}


def each(runs: Sequence[Groups]) -> list[ByProblem]:
    return [rewards(groups) for groups in runs]


def precision(groups: Groups, weights: np.ndarray) -> float:
    """The share of the triples that were read out of documents which are true; 0 where there are none."""
    true = np.array([sum(tuple(t) in TRUE for t in g[0].trajectory.metadata["extracted"]) for g in groups])
    total = np.array([len(g[0].trajectory.metadata["extracted"]) for g in groups])
    return float(true @ weights / (total @ weights)) if total @ weights > 0 else 0.0


def table(arms: Mapping[str, Sequence[Groups]]) -> Table:
    def recall_of(runs: Sequence[Groups], missing: bool) -> str:
        own = [g[0].verdict.reward for run in runs for g in run if bool(g[0].problem.metadata["missing"]) == missing]
        return f"{100 * np.mean(own):.1f} %" if own else "none"

    return arms_table(
        "Held-out questions, all seeds",
        arms,
        {
            "recall": lambda runs: f"{100 * overall(each(runs)):.1f} %",
            "where the graph has all": lambda runs: recall_of(runs, False),
            "where it lacks a fact": lambda runs: recall_of(runs, True),
            "triples": lambda runs: f"{sum(len(g[0].trajectory.metadata['extracted']) for r in runs for g in r)}",
            "true": lambda runs: f"{unweighted(precision, runs):.2f}",
        },
    )
