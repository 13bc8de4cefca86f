"""Do triggers at growing budgets stand where they should, and when do they pay?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from selfimprove.datasets import arithmetic as data
from selfimprove.methods.ids import bounds, budgets, generate
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.curve import sampled_tokens
from selfimprove.studies import Claim, Lab, as_check, claim_above, difference, gain, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.made import waiter
from selfimprove.studies.made.waiter import TRIGGERS, WAIT
from selfimprove.studies.solving import ByProblem, Groups, at_tokens, attempts, grader, plain, right, solve, solved
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify.answers import last, vote
from selfimprove.verify.arithmetic import check as arithmetic
from selfimprove.verify.text import exact

COMMAND = "selfimprove study ids"
FIRST, GROWTH, MOST = 24, 2.0, 192  # T_0, gamma, L of the tuned model

stated = grader(exact)  # the check of the scripted arms: the value of the last answer
chosen = partial(vote, window=1)  # the vote over what each chain said last


def study(lab: Lab) -> Iterator[Claim]:
    yield from map(as_check, (positions(), stages(lab), *equal_tokens(lab)))
    yield from tiny(lab)


# Scripted: the algorithm against closed forms


def positions() -> Claim:
    """A policy that never ends by itself: every trigger stands at its budget, and the bounds hold."""
    problem = Problem("p", "Q?", "a" * 5000)
    engine = ScriptedEngine({"Q?": str(problem.gold)}, 1.0, p_improve=1.0)
    exactly, closest = True, 0.0
    for first in (16, 50):
        for growth in (1.5, 2.0, 3.0):
            for length in (100, 1000, 4000):
                solver = partial(generate, chains=1, first=first, growth=growth, triggers=99, trigger=WAIT)
                (chain,) = solve(partial(solver, max_tokens=length), engine, [problem])
                prompt, samples = len(chain[0].samples[0].prompt_ids), chain[-1].samples
                stops = [len(s.prompt_ids) - prompt - len(WAIT) for s in samples[1:]]
                expected = [b for b, _ in zip(budgets(first, growth), stops, strict=False)]
                most, read = bounds(first, growth, length)
                exactly &= stops == expected and len(stops) <= most and sum(stops) <= read
                closest = max(closest, sum(stops) / read)
    return Claim(
        "triggers stand exactly at T0 * gamma^k; there are at most 1 + log_gamma(L / T0), and the tokens that are read "
        "again are within L * gamma / (gamma - 1)",
        exactly,
        f"18 of (T0, gamma, L); at most {closest:.2f} of the bound",
        None,
        "closed form",
        COMMAND,
    )


def scripted(count: int, correct: float, improve: float, degrade: float) -> tuple[list[Problem], ScriptedEngine]:
    """Problems that are alike, and a policy that has the same chances with each."""
    engine = ScriptedEngine({"Q?": "7"}, correct, p_improve=improve, p_degrade=degrade)
    return [Problem(f"p{i}", "Q?", "7") for i in range(count)], engine


# Answers of the scripted policy are a dozen to two dozen tokens: these budgets cut none off.
WIDE = partial(generate, first=32, growth=4.0, triggers=3, trigger=WAIT, max_tokens=4096)
GRID = [(0.4, 0.1), (0.3, 0.2), (0.2, 0.3), (0.1, 0.4)]  # (p_improve, p_degrade) of a trigger


def stages(lab: Lab) -> Claim:
    """Chains of set chances against the formula of a Markov chain."""
    count, worst = 150 if lab.quick else 600, 0.0
    for correct in (0.2, 0.5, 0.8):
        for improve, degrade in GRID:
            problems, engine = scripted(count, correct, improve, degrade)
            groups = attempts(problems, solve(partial(WIDE, chains=1), engine, problems), stated)
            limit = improve / (improve + degrade)
            for stage in range(4):
                p = limit + (correct - limit) * (1 - improve - degrade) ** stage
                share = np.mean([right(group)[stage] for group in groups])
                worst = max(worst, abs(share - p) / np.sqrt(p * (1 - p) / count))
    return Claim(
        "after k triggers a chain is right with probability pi + (p - pi)(1 - p_improve - p_degrade)^k, "
        "pi = p_improve / (p_improve + p_degrade): all 48 within 3.5 sigma",
        bool(worst < 3.5),
        f"farthest {worst:.2f} sigma",
        None,
        "closed form",
        COMMAND,
    )


def equal_tokens(lab: Lab) -> Iterator[Claim]:
    """Votes of four chains against votes of plain samples that were as many tokens."""
    count = 150 if lab.quick else 500

    def edge(correct: float, improve: float, degrade: float) -> tuple[float, float]:
        problems, engine = scripted(count, correct, improve, degrade)
        groups = attempts(problems, solve(partial(WIDE, chains=4), engine, problems), stated)
        spent = float(np.mean([sampled_tokens(group) for group in groups]))
        votes = at_tokens(plain(engine, problems, stated, spent), spent, maj=vote)["maj"]
        return overall([solved(groups, chosen)]), float(np.mean(votes))

    edges = {pair: edge(0.5, *pair) for pair in GRID}
    yield Claim(
        "where plain samples are right half of the time, voting over chains beats voting over as many tokens of plain "
        "samples where p_improve > p_degrade, and loses where it is the other way round",
        all((chains > samples) == (improve > degrade) for (improve, degrade), (chains, samples) in edges.items()),
        "; ".join(f"{i}/{d}: {chains:.3f} against {samples:.3f}" for (i, d), (chains, samples) in edges.items()),
        None,
        "maj@n at equal tokens, p_correct 0.5",
        COMMAND,
    )
    chains, samples = edge(0.8, 0.4, 0.1)
    text, value = "and so wherever p_improve > p_degrade", f"0.4/0.1: {chains:.3f} against {samples:.3f}"
    yield Claim(text, chains > samples, value, None, "maj@n at equal tokens, p_correct 0.8", COMMAND)


# Tiny: a model that was taught to correct itself behind "Wait."


def tiny(lab: Lab) -> Iterator[Claim]:
    made = waiter.make(lab.folder, 200 if lab.quick else 3000)
    engine, check = shipped(made), grader(arithmetic)
    heldout = data.load(levels=(5, 6), train_size=0, heldout_size=30 if lab.quick else 80, seed=0)
    problems = [p for p in heldout if p.split == "test"]
    ask = partial(generate, trigger=WAIT, max_tokens=MOST, temperature=0.7)

    def run(seed: int, chains: int = 1, first: int = FIRST, growth: float = GROWTH, triggers: int = TRIGGERS) -> Groups:
        solver = partial(ask, chains=chains, first=first, growth=growth, triggers=triggers)
        return attempts(problems, solve(solver, engine, problems, seed=seed), check)

    arms = {
        "triggers at T0 * gamma^k": [run(seed) for seed in lab.seeds],
        "no trigger": [run(seed, triggers=0) for seed in lab.seeds],
        "as many, evenly spread": [run(seed, first=MOST // (TRIGGERS + 1), growth=1.0) for seed in lab.seeds],
        "one trigger, at T0": [run(seed, triggers=1) for seed in lab.seeds],
    }
    geometric, *others = ([solved(groups, last) for groups in runs] for runs in arms.values())
    for text, other, control in (
        ("with triggers pass@1 on hard problems is higher than without, within the same L", others[0], "triggers=0"),
        ("and higher than with as many triggers at even distances", others[1], "growth=1"),
        ("and higher than with a single trigger at T0", others[2], "triggers=1"),
    ):
        yield claim_above(text, difference(geometric, other), control, COMMAND)
    voted, beside = list[ByProblem](), list[ByProblem]()
    for seed in lab.seeds:
        groups = run(seed, chains=4)
        spent = float(np.mean([sampled_tokens(group) for group in groups]))
        samples = plain(engine, problems, check, spent, seed=seed, temperature=0.7, max_tokens=MOST)
        voted.append(solved(groups, chosen))
        votes = at_tokens(samples, spent, maj=vote)["maj"]
        beside.append({p.id: float(vote) for p, vote in zip(problems, votes, strict=True)})
    text = "a vote over four chains beats a vote over plain samples at equal tokens"
    yield claim_above(text, difference(voted, beside), "maj@n at equal tokens", COMMAND)
    yield from learning(lab, str(made))
    table = arms_table(
        "Levels 5 and 6, means over seeds, one chain",
        arms,
        {
            "by stage": lambda runs: " ".join(f"{share:.3f}" for share in by_stage(runs)),
            "last": lambda runs: f"{by_stage(runs)[-1]:.3f}",
            "tokens a chain": lambda runs: f"{np.mean([sampled_tokens(g) for groups in runs for g in groups]):.0f}",
        },
        "",
    )
    for name, scores in (("four chains, vote", voted), ("plain, vote at equal tokens", beside)):
        table.add_row(name, "", f"{overall(scores):.3f}", "")
    lab.note(table)


def by_stage(runs: Sequence[Groups]) -> np.ndarray:
    """The share of right answers at each stage, (stages,), over problems and seeds."""
    return np.asarray(np.mean([right(group) for groups in runs for group in groups], axis=0))


def learning(lab: Lab, path: str) -> Iterator[Claim]:
    """Do flipped chains, learnt, make the model better where nobody puts a trigger?"""
    sizes = (24, 20) if lab.quick else (100, 80)
    size = [f"dataset.train_size={sizes[0]}", f"dataset.heldout_size={sizes[1]}", "dataset.levels=[5,6]", "rounds=1"]
    model = ["model=tiny", f"model.path={json.dumps(path)}", f"model.max_tokens={MOST}"]
    settings = {"chains": 2, "first": FIRST, "triggers": TRIGGERS, "max_tokens": MOST, "trigger": f'"{WAIT}"'}
    solver = ["generate=ids", "filter=flipped", *(f"generate.{key}={value}" for key, value in settings.items())]
    runs = lab.over_seeds(*model, *solver, *size)
    text = "learning the chains that flipped from wrong to right raises greedy accuracy without triggers"
    yield claim_above(text, gain(runs), "start", runs[0].command)
