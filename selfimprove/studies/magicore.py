"""Does refining hard problems alone, by step scores, pay more than plain samples of as many tokens?

Claims of Chen et al. 2024 (arXiv 2409.12147): on a policy whose refinements mend and spoil at set rates, and on the
shipped model with two kinds of reward models, the exact check with noise and models trained on its own solutions. All
arms have the same scores to go by. Arms are compared at equal sampled tokens a problem, means over problems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from selfimprove.config import compose
from selfimprove.datasets.arithmetic import load
from selfimprove.methods import dser
from selfimprove.policy import Engine
from selfimprove.studies import Claim, Lab, claim_sign, difference, overall
from selfimprove.studies.costs import sample_cells, tokens_of
from selfimprove.studies.dser import critique
from selfimprove.studies.rewards import pooled
from selfimprove.studies.routed import (
    COMMAND,
    ITERATIONS,
    NOISE,
    Runs,
    answers,
    first_answers,
    only,
    rising,
    routed_hard,
    run,
    scripted,
    shown,
    table,
)
from selfimprove.studies.scored import (
    TEMPERATURE,
    Models,
    Remembering,
    below_gate,
    heaviest,
    noisy,
    open_models,
    prefixes,
    trained_models,
)
from selfimprove.studies.solving import ByProblem, attempts, plain, solve, solved
from selfimprove.studies.staged import DEV_SEED, GRADE, MAX_TOKENS, below, bounded
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify.answers import vote, weighted

SIZE = 80  # dev problems, and held-out ones


def study(lab: Lab) -> Iterator[Claim]:
    yield from scripted(lab)
    yield from shipped_model(lab)


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
    solver = partial(ask, chains=max(1, round(tokens_of(arms["routed"]) / tokens_of([trial]))))
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
        rows[name] = {"solved": f"{100 * overall(found):.1f}", "easy": solved_of_easy, **sample_cells(runs)}
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
        yield below(text, gap, 0.01, f"{tokens:.0f} tokens a problem", COMMAND)


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
