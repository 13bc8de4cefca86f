"""Do unit tests with retries make pipelines valid, does a memory of earlier tasks help with later ones, and does
Bayesian optimisation beat random search?

Claims of Grosnit et al. 2024 (arXiv 2411.03562), on ten data-science tasks. A script writes the stages from twelve
templates, three of ten times as broken code. The tasks are halved twice: the first five fill the memory and the others
are answered, and the other way round, so that each of the ten is answered with a memory of five others, and without.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove import scores
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.methods.agent_k import generate
from selfimprove.policy.templates import TEMPLATES, TemplatesEngine, written
from selfimprove.report import elo_mmr
from selfimprove.report.statistics import Estimate, mean_over_problems
from selfimprove.studies import Claim, Lab, Result, as_check, claim_above, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import ByProblem, Groups, attempts, grader, solve
from selfimprove.studies.staged import below
from selfimprove.tools.pipeline import SETUP, SOLUTION
from selfimprove.tools.stages import Stages, stages
from selfimprove.types import Problem
from selfimprove.verify.leaderboard import ENTRANT, check

COMMAND = "selfimprove study agent_k"
TABLES = [
    "iris",
    "wine",
    "diabetes",
    "clusters",
    "friedman",
    "breast_cancer",
    "digits",
    "sparse_linear",
    "moons",
    "shells",
]
VALID, INVALID = 0.9, 0.7  # shares of valid submissions that the card names, with unit tests and without
DRAWS = 4  # pipelines of each task and seed by which these shares are measured
TRIALS = 20  # of a search
SEARCHED = ("support", "boosting", "forest")  # templates with two hyper-parameters
NEWCOMERS = {"a": 1758, "b": 1576, "c": 1424, "d": 1242}  # Elo-MMR after one contest that ends in this order


def study(lab: Lab) -> Iterator[Claim]:
    if elo_mmr.installed():
        yield rated()
    runs = remembered(lab)
    lab.note(memory_table(runs))
    after, before = (merged(runs, folder) for folder in ("last", "base"))
    text = "a memory of earlier tasks raises the quantile on others"
    yield claim_above(text, difference(after, before), "no memory, as many trials", COMMAND)
    tool = stages()
    try:
        tasks = problems(lab)
        yield from validity(lab, tool, tasks)
        yield from searches(lab, tool, tasks)
    finally:
        tool.close()


def problems(lab: Lab) -> list[Problem]:
    """The ten tasks; two of them in the quick form."""
    names = TABLES[::5] if lab.quick else TABLES
    words = [f"dataset.tables=[{','.join(names)}]", f"dataset.train_size={len(names) - 1}", "dataset.heldout_size=1"]
    node = compose(["method=agent_k", *words]).dataset.model_dump(by_alias=True)
    found: list[Problem] = bind(node, "dataset")(seed=0)
    return found


# The memory


def remembered(lab: Lab) -> list[list[Result]]:
    """The runs of each half, one a seed."""
    halves = [TABLES[::3]] if lab.quick else [TABLES, [*TABLES[5:], *TABLES[:5]]]
    small = ["dataset.train_size=2", "dataset.heldout_size=2", "method.parts=2", "method.generate.trials=3"]
    return [
        lab.over_seeds("method=agent_k", f"dataset.tables=[{','.join(half)}]", *(small if lab.quick else ()))
        for half in halves
    ]


def merged(runs: Sequence[Sequence[Result]], folder: str) -> list[ByProblem]:
    """The quantile of each task of all halves, a mapping a seed."""
    return [
        {name: value for r in of_seed for name, value in read(r, folder).by_problem.items()}
        for of_seed in zip(*runs, strict=True)
    ]


def read(result: Result, folder: str) -> scores.Scores:
    return scores.read(result.evaluation(folder) / scores.FILE)


def memory_table(runs: Sequence[Sequence[Result]]) -> Table:
    def standings(folder: str) -> list[list[str | None]]:
        return [list(read(run, folder).answers) for half in runs for run in half]

    def rating(folder: str) -> str:
        contests = [[one for one in found if one] for found in standings(folder)]
        if not elo_mmr.installed():
            return "elo-mmr-py is not installed"
        return f"{np.mean([elo_mmr.ratings(found)[ENTRANT][0] for found in contests if found]):.0f}"

    return arms_table(
        "Held-out tasks, means over seeds",
        {"no memory": "base", "a memory of earlier tasks": "last"},
        {
            "quantile": lambda folder: f"{100 * overall(merged(runs, folder)):.1f} %",
            "valid": lambda folder: f"{100 * np.mean([bool(one) for own in standings(folder) for one in own]):.0f} %",
            "Elo-MMR": rating,
        },
    )


def rated() -> Claim:
    """The ratings of four newcomers, which the package elommr gives too."""
    found = {name: round(own) for name, (own, _) in elo_mmr.ratings(["a b c d"]).items()}
    said = ", ".join(f"{found[name]}" for name in NEWCOMERS)
    line = Claim("Elo-MMR of four newcomers after a contest", found == NEWCOMERS, said, None, "", COMMAND)
    return as_check(line)


# Unit tests and retries


def validity(lab: Lab, tool: Stages, tasks: Sequence[Problem]) -> Iterator[Claim]:
    """The shares of valid submissions with unit tests and retries, without retries, and with neither."""
    arms = {"tests, 3 retries": (True, 3), "tests, no retry": (True, 0), "no tests, no retry": (False, 0)}
    found = {arm: valid(lab, tool, tasks, *how) for arm, how in arms.items()}
    lab.note(arms_table("Valid submissions", found, {"share": lambda e: f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"}))
    text = f"with unit tests and retries more than {VALID:.0%} of submissions are valid"
    yield claim_above(text, found["tests, 3 retries"], "", COMMAND, least=VALID)
    text = f"with neither, less than {INVALID:.0%}: all nine stages have to be right at once"
    yield as_check(below(text, found["no tests, no retry"], INVALID, "", COMMAND))


def valid(lab: Lab, tool: Stages, tasks: Sequence[Problem], tests: bool, retries: int) -> Estimate:
    """The share of valid submissions. One trial is enough, since a search changes no validity."""
    draws = [DRAWS * seed + i for seed in lab.seeds for i in range(1 if lab.quick else DRAWS)]
    groups: list[Groups] = []
    for seed in draws:
        options: dict[str, Any] = {"trials": 1, "members": 1, "sampler": "random", "top": 0, "memory": [], "seed": seed}
        solver = partial(generate, tests=tests, retries=retries, tools={"stages": tool}, **options)
        groups.append(attempts(tasks, solve(solver, TemplatesEngine(), tasks, seed=seed), grader(check)))
    right = [np.mean([g[0].verdict.status == "correct" for g in of_task]) for of_task in zip(*groups, strict=True)]
    return mean_over_problems(np.array(right, float))


# The search


def searches(lab: Lab, tool: Stages, tasks: Sequence[Problem]) -> Iterator[Claim]:
    """The best validation score of a search, mean over templates, by the estimator and at random."""
    names = SEARCHED[:1] if lab.quick else SEARCHED
    tpe, random = ([searched(tool, tasks, names, s, seed) for seed in lab.seeds] for s in ("tpe", "random"))
    lab.note(search_table(tpe, random))
    text = f"in {TRIALS} trials Bayesian optimisation finds better validation scores than random search"
    yield claim_above(text, difference(tpe, random, scale=None), "random search, as many trials", COMMAND)


def searched(tool: Stages, tasks: Sequence[Problem], names: Sequence[str], sampler: str, seed: int) -> ByProblem:
    async def one(task: Problem, name: str) -> float:
        codes = {s: written(s, name, task.metadata["kind"] == "classification") for s in (*SETUP, *SOLUTION)}
        asked = {"task": task.metadata, "codes": codes, "tests": True, "trials": TRIALS, "members": 1}
        reply = json.loads(await tool(json.dumps({**asked, "sampler": sampler, "seed": seed})))
        return float(reply["done"]["validation"])

    async def everything() -> list[list[float]]:
        return [list(await asyncio.gather(*(one(task, name) for name in names))) for task in tasks]

    assert set(names) <= set(TEMPLATES)
    return {t.id: float(np.mean(own)) for t, own in zip(tasks, asyncio.run(everything()), strict=True)}


def search_table(tpe: Sequence[Mapping[str, float]], random: Sequence[Mapping[str, float]]) -> Table:
    def mean(runs: Sequence[Mapping[str, float]], name: str) -> float:
        return float(np.mean([run[name] for run in runs]))

    return arms_table(
        "Best validation score of a search, means over templates and seeds",
        {name: name for name in tpe[0]},
        {"tpe": lambda name: f"{mean(tpe, name):.4f}", "random": lambda name: f"{mean(random, name):.4f}"},
        "task",
    )
