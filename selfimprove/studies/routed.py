"""The arms of MAgICoRe, which refines hard problems alone, and what they come to; first on a policy of set rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.magicore import Scale, generate
from selfimprove.policy import Engine
from selfimprove.policy.scripted import VERIFY, ScriptedEngine
from selfimprove.studies import Claim, Lab, claim_sign, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.costs import sample_cells
from selfimprove.studies.rewards import pooled
from selfimprove.studies.scored import TEMPERATURE, Models, noisy, open_models
from selfimprove.studies.solving import ByProblem, Check, Groups, attempts, by_stage, grader, solve, solved
from selfimprove.studies.staged import DEV_SEED, MAX_TOKENS, bounded
from selfimprove.types import Message, Problem
from selfimprove.verify import Outcome
from selfimprove.verify.answers import stage, weighted
from selfimprove.verify.text import exact

COMMAND = "selfimprove study magicore"
K, ITERATIONS = 8, 3
NOISE = 2.0  # of the exact check: one score in six is on the wrong side
CHOICE = partial(weighted, heaviest=K)
Runs = list[Groups]  # one a seed


def run(
    lab: Lab,
    models: Models,
    engine: Engine,
    problems: Sequence[Problem],
    dev: Sequence[Problem],
    ask: Mapping[str, Any],
    **options: Any,
) -> Runs:
    """The method's solutions, one a seed. mu and sigma are of the dev problems."""
    found = []
    scale = measured_scale(models, engine, dev)
    for seed in lab.seeds:
        solver = partial(
            generate,
            n=K,
            iterations=ITERATIONS,
            temperature=TEMPERATURE,
            top_p=0.95,
            judge=models.judge(seed),
            prepared=scale,
            **{**ask, **options},
        )
        found.append(
            attempts(problems, solve(solver, engine, problems, seed=seed, max_tokens=MAX_TOKENS), models.check)
        )
    return found


def measured_scale(models: Models, engine: Engine, dev: Sequence[Problem]) -> Scale:
    """mu and sigma, as `magicore.prepare` has them."""
    one = partial(best_of_n, n=1, temperature=TEMPERATURE)
    groups = attempts(dev, solve(one, engine, dev, seed=DEV_SEED, max_tokens=MAX_TOKENS), models.check)
    w = [group[0].trajectory.metadata["weight"] for group in models.weigh(groups, DEV_SEED)]
    return Scale(mean=float(np.mean(w)), std=float(np.std(w)))


def answers(groups: Groups, name: str = "") -> ByProblem:
    """Which problems an arm solves in the end."""
    return solved(groups, partial(weighted, window=1) if name == "new alone" else CHOICE)


def at_most(groups: Groups, last: int) -> ByProblem:
    """Which problems are solved by the solutions there are after `last` iterations."""
    return solved([[a for a in group if stage(a) <= last] for group in groups], CHOICE)


def first_answers(groups: Groups) -> ByProblem:
    return at_most(groups, 0)


def rising(runs: Runs, where: str) -> Iterator[Claim]:
    """Does the accuracy on hard problems rise with iterations?"""
    hard = [routed_hard(groups) for groups in runs]

    def after(last: int) -> list[ByProblem]:
        return pooled([only(at_most(groups, last), names) for groups, names in zip(runs, hard, strict=True)])

    along = ", ".join(f"{100 * overall(after(n)):.1f}" for n in range(ITERATIONS + 1))
    count = sum(map(len, hard))
    for first, control in ((0, "the drafts"), (1, "one iteration")):
        text = f"{where}: on problems routed as hard accuracy rises from {control} to {ITERATIONS} iterations"
        control = f"{count} hard problems over seeds; after 0 to {ITERATIONS} iterations {along} %"
        yield claim_sign(text, difference(after(ITERATIONS), after(first)), control, COMMAND)


def routed_hard(groups: Groups) -> set[str]:
    """The problems that were hard after the drafts were scored."""
    return {group[0].problem.id for group in groups if group[0].trajectory.metadata["hard"]}


def only(found: ByProblem, names: set[str]) -> ByProblem:
    return {name: value for name, value in found.items() if name in names}


def shown(runs: Runs, name: str, easy: set[str]) -> dict[str, str]:
    """The cells of an arm of the method."""
    return {
        "solved": f"{100 * overall([answers(groups, name) for groups in runs]):.1f}",
        "along": "" if name == "new alone" else ", ".join(f"{100 * value:.1f}" for value in by_stage(runs, CHOICE)),
        "easy": f"{100 * overall([only(answers(groups, name), easy) for groups in runs]):.1f}",
        "hard": f"{100 * np.mean([len(routed_hard(groups)) / len(groups) for groups in runs]):.1f}",
        **sample_cells(runs),
    }


def table(title: str, rows: Mapping[str, Mapping[str, str]], label: str) -> Table:
    """Accuracy and cost of each arm, by the cells of `shown`."""
    columns = {
        "solved, %": "solved",
        "after each iteration, %": "along",
        f"{label}, %": "easy",
        "routed as hard, %": "hard",
        "samples": "samples",
        "sampled tokens": "tokens",
        "prompt tokens": "read",
    }
    cells = {name: partial(lambda key, row: row.get(key, ""), key) for name, key in columns.items()}
    return arms_table(f"{title}, means over seeds, costs a problem", rows, cells)


# A policy of set rates

SPOILS = {"p_improve": 0.3, "p_degrade": 0.45, "tpr": 0.8, "fpr": 0.4, "wrong_values": 9}
EASY, HARD = 0.8, 0.3  # the chance that a draft is right
ASK: dict[str, list[Message]] = {
    "review": [{"role": "user", "content": "{question}\n\n{scored}"}, {"role": "user", "content": VERIFY}],
    "refine": [{"role": "user", "content": "{question}\n\n{scored}\n\n{review}\n\nSolve it again."}],
}


def scripted(lab: Lab) -> Iterator[Claim]:
    half = 12 if lab.quick else 250  # with 100 not even an equal accuracy could be told from one 1 point lower
    problems = [Problem(f"p{i}", f"Question number {i:03}?", str(100 * i)) for i in range(2 * half)]
    chances = {str(p.prompt): EASY if i < half else HARD for i, p in enumerate(problems)}
    engine = ScriptedEngine({str(p.prompt): str(p.gold) for p in problems}, chances, **SPOILS)  # type: ignore[arg-type]
    check = grader(exact)
    easy = {p.id for p in problems[:half]}
    run_one = partial(run, lab, open_models(noisy(NOISE), one_step(check)), engine, problems, problems, ASK)
    arms = {
        "routed": run_one(),
        "uniform": run_one(route="all"),
        "new alone": run_one(route="all", keep="new"),
    }
    rows = {name: shown(runs, name, easy) for name, runs in arms.items()}
    lab.note(table("Scripted policy", rows, "easy problems"))
    on_easy = {name: [only(answers(groups, name), easy) for groups in runs] for name, runs in arms.items()}
    none = [only(first_answers(groups), easy) for groups in arms["routed"]]
    where = "scripted policy: on easy problems"
    for name, how in (("uniform", "where the best are kept"), ("new alone", "where they replace the old ones")):
        text = f"{where} uniform refinement lowers accuracy {how}"
        yield claim_sign(text, difference(on_easy[name], none), "the vote over drafts", COMMAND, above=False)
    text = f"{where} routed refinement does not: at most 1 point"
    yield bounded(text, difference(on_easy["routed"], none), -0.01, "the vote over drafts", COMMAND)
    yield from rising(arms["routed"], "scripted policy")


def one_step(check: Check) -> Check:
    """A check of answers of one line, which also rewards that line as a step."""

    def checked(text: str, problem: Problem) -> Outcome:
        outcome = check(text, problem)
        return replace(outcome, step_rewards=[float(outcome.status == "correct")])

    return checked
