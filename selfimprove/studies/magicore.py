"""Does refining hard problems alone, by step scores, pay more than plain samples of as many tokens?

Claims of Chen et al. 2024 (arXiv 2409.12147): on a policy whose refinements mend and spoil at set rates, and on the
shipped model with two kinds of reward models, the exact check with noise and models trained on its own solutions. All
arms have the same scores to go by. Arms are compared at equal sampled tokens a problem, means over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from selfimprove.config import compose
from selfimprove.datasets.arithmetic import load
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods import dser
from selfimprove.methods.magicore import Scale, generate
from selfimprove.policy import Engine
from selfimprove.policy.scripted import VERIFY, ScriptedEngine
from selfimprove.report.curve import curve, sampled_tokens
from selfimprove.studies import Claim, Lab, claim_sign, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.dser import critique
from selfimprove.studies.rewards import pooled
from selfimprove.studies.scored import (
    TEMPERATURE,
    Models,
    Remembering,
    below_gate,
    costs,
    heaviest,
    noisy,
    only,
    open_models,
    prefixes,
    routed_hard,
    tokens_of,
    trained_models,
)
from selfimprove.studies.solving import ByProblem, Check, Groups, attempts, grader, plain, solve, solved, traces
from selfimprove.studies.staged import DEV_SEED, GRADE, MAX_TOKENS, bounded
from selfimprove.studies.tiny import shipped
from selfimprove.types import Message, Problem
from selfimprove.verify import Outcome
from selfimprove.verify.answers import stage, vote, weighted
from selfimprove.verify.text import exact

COMMAND = "selfimprove study magicore"
SIZE = 80  # dev problems, and held-out ones
K, ITERATIONS = 8, 3
NOISE = 2.0  # of the exact check: one score in six is on the wrong side
CHOICE = partial(weighted, heaviest=K)
Runs = list[Groups]  # one a seed


def study(lab: Lab) -> Iterator[Claim]:
    yield from scripted(lab)
    yield from shipped_model(lab)


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


# The method's arms


def run_arms(
    lab: Lab,
    models: Models,
    engine: Engine,
    problems: Sequence[Problem],
    dev: Sequence[Problem],
    ask: Mapping[str, Any],
) -> dict[str, Runs]:
    """Routed and uniform refinement, with the old solutions kept and without."""
    options: dict[str, dict[str, Any]] = {
        "routed": {},
        "uniform": {"route": "all"},
        "new alone": {"route": "all", "keep": "new"},
    }
    return {name: run(lab, models, engine, problems, dev, ask, **own) for name, own in options.items()}


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


# The shipped model


def shipped_model(lab: Lab) -> Iterator[Claim]:
    size = 12 if lab.quick else SIZE
    found = load(seed=0, train_size=0, dev_size=size, heldout_size=size)
    dev, problems = found[:size], found[size:]
    engine: Any = Remembering(shipped(max_batch=256))
    node = compose(["method=magicore"], needs=False).solver
    ask = {key: node[key] for key in ("review", "refine", "lead")}
    samples: Runs = []
    kinds: dict[str, Callable[[], Models]] = {
        "exact check with noise": lambda: open_models(noisy(NOISE), GRADE),
        "trained models": lambda: trained_models(lab, engine, dev),
    }
    for kind, opened in kinds.items():
        models = opened()
        if kind == "trained models" and (lacking := below_gate(models, engine, dev)):
            yield Claim(f"{kind}: cannot be tested here, {lacking}", None, "-", None, f"at least {GRADE}", COMMAND)
            continue
        run_one = partial(run, lab, models, engine, problems, dev, ask)
        arms = {"routed": run_one()}
        if kind != "trained models":
            arms["uniform"] = run_one(route="all")
        arms["steps dealt out"] = run_one(shuffled=["steps"])
        arms["all dealt out"] = run_one(shuffled=["outcome", "steps"])
        samples = samples or pool(lab, engine, problems, 2 * tokens_of(arms["routed"]))
        yield from compared(lab, kind, models, arms, samples, refined(lab, engine, problems, dev, arms))


def pool(lab: Lab, engine: Engine, problems: Sequence[Problem], tokens: float) -> Runs:
    """Plain samples worth `tokens` a problem."""
    sampling = {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS}
    return [plain(engine, problems, GRADE, tokens, seed=seed + 50, **sampling) for seed in lab.seeds]


def refined(
    lab: Lab, engine: Engine, problems: Sequence[Problem], dev: Sequence[Problem], arms: Mapping[str, Runs]
) -> Runs:
    """Self-Refine: chains of review and refinement without scores, as many as are worth the tokens."""
    ask = partial(
        dser.generate,
        critique=critique("tiny"),
        iterations=ITERATIONS,
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
    )
    trial = attempts(dev[:20], solve(partial(ask, chains=1), engine, dev[:20], seed=DEV_SEED), GRADE)
    each = np.mean([sampled_tokens(group) for group in trial])
    solver = partial(ask, chains=max(1, round(tokens_of(arms["routed"]) / float(each))))
    return [attempts(problems, solve(solver, engine, problems, seed=seed), GRADE) for seed in lab.seeds]


def compared(
    lab: Lab, kind: str, models: Models, arms: Mapping[str, Runs], samples: Runs, chains: Runs
) -> Iterator[Claim]:
    """The claims that compare the method with plain samples by the same scores, and with its own controls."""
    tokens = tokens_of(arms["routed"])
    weighed = [models.weigh(groups, seed) for groups, seed in zip(samples, lab.seeds, strict=True)]
    own = {name: [answers(groups) for groups in runs] for name, runs in arms.items()}
    beside = {
        "self-consistency": [solved(groups, vote) for groups in prefixes(weighed, tokens)],
        "self-consistency, twice the tokens": [solved(groups, vote) for groups in prefixes(weighed, 2 * tokens)],
        "best-of-k": [solved(groups, heaviest) for groups in prefixes(weighed, tokens)],
        "weighted vote": [solved(groups, weighted) for groups in prefixes(weighed, tokens)],
        "Self-Refine": [solved(groups, partial(vote, window=1)) for groups in chains],
    }
    easy = {group[0].problem.id for group in arms["routed"][0]}.difference(*map(routed_hard, arms["routed"]))
    rows = {name: shown(runs, name, easy) for name, runs in arms.items()}
    for name, found in beside.items():
        runs = chains if name == "Self-Refine" else prefixes(weighed, 2 * tokens if "twice" in name else tokens)
        solved_of_easy = f"{100 * overall([only(one, easy) for one in found]):.1f}"
        rows[name] = {"solved": f"{100 * overall(found):.1f}", "easy": solved_of_easy, **costs(runs)}
    lab.note(table(f"Shipped model, {kind}", rows, "never routed as hard"))
    for name, found in beside.items():
        if "twice" not in name:
            text = f"{kind}: it solves more than {name} of as many tokens"
            yield claim_sign(text, difference(own["routed"], found), f"{tokens:.0f} tokens a problem", COMMAND)
    name = "self-consistency, twice the tokens"
    text = f"{kind}: it is not more than 1 point below self-consistency with twice the tokens"
    yield bounded(text, difference(own["routed"], beside[name]), -0.01, f"{2 * tokens:.0f} tokens", COMMAND)
    yield from rising(arms["routed"], kind)
    if "uniform" in arms:
        yield from routing(kind, arms, own)
    for name, what in (("steps dealt out", "step scores"), ("all dealt out", "all scores")):
        text = f"{kind}: it solves more than with {what} dealt out at random"
        yield claim_sign(text, difference(own["routed"], own[name]), "the same scores, shuffled", COMMAND)
        gap = difference(own[name], beside["self-consistency"])
        text = f"{kind}: with {what} dealt out no gain over self-consistency is left: less than 1 point"
        holds = True if gap.high < 0.01 else False if gap.low > 0.01 else None
        yield Claim(text, holds, gap.value, (gap.low, gap.high), f"{tokens:.0f} tokens a problem", COMMAND)


def routing(kind: str, arms: Mapping[str, Runs], own: Mapping[str, list[ByProblem]]) -> Iterator[Claim]:
    """Refining every problem beside refining the hard ones."""
    spent = [tokens_of(arms[name]) for name in ("routed", "uniform")]
    control = f"{spent[0]:.0f} and {spent[1]:.0f} tokens a problem"
    gap = difference(own["routed"], own["uniform"])
    yield bounded(f"{kind}: routed is not more than 1 point below uniform", gap, -0.01, control, COMMAND)
    names = [{g[0].problem.id for g in groups} - routed_hard(groups) for groups in arms["routed"]]
    after, before = (
        pooled([only(found, easy) for found, easy in zip(runs, names, strict=True)])
        for runs in (own["uniform"], [first_answers(groups) for groups in arms["uniform"]])
    )
    text = f"{kind}: on problems routed as easy uniform refinement lowers accuracy"
    yield claim_sign(text, difference(after, before), "the vote over drafts", COMMAND, above=False)


def shown(runs: Runs, name: str, easy: set[str]) -> dict[str, str]:
    """The cells of an arm of the method."""
    curves = [[row["accuracy"] for row in curve(traces(groups, CHOICE))] for groups in runs]
    along = [np.mean([c[min(n, len(c) - 1)] for c in curves]) for n in range(max(map(len, curves)))]
    return {
        "solved": f"{100 * overall([answers(groups, name) for groups in runs]):.1f}",
        "along": "" if name == "new alone" else ", ".join(f"{100 * value:.1f}" for value in along),
        "easy": f"{100 * overall([only(answers(groups, name), easy) for groups in runs]):.1f}",
        "hard": f"{100 * np.mean([len(routed_hard(groups)) / len(groups) for groups in runs]):.1f}",
        **costs(runs),
    }


def table(title: str, rows: Mapping[str, Mapping[str, str]], label: str) -> Any:
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
