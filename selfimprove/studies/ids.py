"""Do triggers at growing budgets stand where they should, and when do they pay?"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.datasets import arithmetic as data
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.ids import bounds, budgets, generate
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.curve import sampled_tokens
from selfimprove.studies import Claim, Lab, claim_above, difference, gain
from selfimprove.studies.solving import at_tokens, attempts, plain, shipped, solve, tuned
from selfimprove.types import Attempt, Example, Problem
from selfimprove.verify import Outcome
from selfimprove.verify.answers import last, vote
from selfimprove.verify.arithmetic import check as arithmetic
from selfimprove.verify.text import exact

COMMAND = "selfimprove study ids"
WAIT = "\nWait.\n"  # the trigger here: the default's words are 60 tokens of the shipped model's

# What the model is tuned on, and how it is asked.
ROWS = {False: 3000, True: 200}  # by lab.quick
TUNING = {"epochs": 3, "learning_rate": 1.5e-3, "batch_size": 32}
FIRST, GROWTH, TRIGGERS, MOST = 24, 2.0, 3, 192  # T_0, gamma, triggers, L


def study(lab: Lab) -> Iterator[Claim]:
    yield positions()
    yield stages(lab)
    yield from equal_tokens(lab)
    yield from tiny(lab)


# Scripted: the algorithm against closed forms


def stated(text: str, problem: Problem) -> Outcome:
    """The check of the scripted arms: the value of the last answer."""
    return exact(text, problem.gold, problem.metadata)


def positions() -> Claim:
    """A policy that never ends by itself: every trigger stands at its budget, and the bounds hold."""
    problem = Problem("p", "Q?", "a" * 5000)
    engine = ScriptedEngine({"Q?": str(problem.gold)}, 1.0, p_improve=1.0)
    exactly, closest = True, 0.0
    for first in (16, 50):
        for growth in (1.5, 2.0, 3.0):
            for length in (100, 1000, 4000):
                solver = partial(generate, chains=1, first=first, growth=growth, triggers=99, trigger=WAIT)
                (found,) = solve(partial(solver, max_tokens=length), engine, [problem])
                prompt, samples = len(found[0].samples[0].prompt_ids), found[-1].samples
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
    count, worst = 150 if lab.quick else 600, 0.0
    for correct in (0.2, 0.5, 0.8):
        for improve, degrade in GRID:
            problems, engine = scripted(count, correct, improve, degrade)
            groups = attempts(problems, solve(partial(WIDE, chains=1), engine, problems), stated)
            limit = improve / (improve + degrade)
            for stage in range(4):
                p = limit + (correct - limit) * (1 - improve - degrade) ** stage
                share = np.mean([group[stage].verdict.status == "correct" for group in groups])
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
        ours = attempts(problems, solve(partial(WIDE, chains=4), engine, problems), stated)
        spent = float(np.mean([sampled_tokens(group) for group in ours]))
        theirs = at_tokens(plain(engine, problems, stated, spent), spent, maj=vote)["maj"]
        return float(np.mean(chosen(ours))), float(np.mean(theirs))

    edges = {pair: edge(0.5, *pair) for pair in GRID}
    yield Claim(
        "where plain samples are right half of the time, voting over chains beats voting over as many tokens of plain "
        "samples where p_improve > p_degrade, and loses where it is the other way round",
        all((ours > theirs) == (improve > degrade) for (improve, degrade), (ours, theirs) in edges.items()),
        "; ".join(f"{i}/{d}: {ours:.3f} against {theirs:.3f}" for (i, d), (ours, theirs) in edges.items()),
        None,
        "maj@n at equal tokens, p_correct 0.5",
        COMMAND,
    )
    ours, theirs = edge(0.8, 0.4, 0.1)
    yield Claim(
        "and so wherever p_improve > p_degrade",
        ours > theirs,
        f"0.4/0.1: {ours:.3f} against {theirs:.3f}",
        None,
        "maj@n at equal tokens, p_correct 0.8",
        COMMAND,
    )


def chosen(groups: Sequence[Sequence[Attempt]]) -> list[bool]:
    """Whether the vote over what each chain said last is right."""
    picked = [vote(group, window=1) for group in groups]
    return [i is not None and g[i].verdict.status == "correct" for g, i in zip(groups, picked, strict=True)]


# Tiny: a model that was taught to correct itself behind "Wait."


def checked(text: str, problem: Problem) -> Outcome:
    return arithmetic(text, problem.gold, problem.metadata)


def waiting(count: int) -> list[Example]:
    """Traces of the shipped model's own drafts, cut anywhere, each with up to three triggers, and behind each the right
    solution step by step, of which all but the last may be cut too. What follows a trigger bears loss, the trigger not.
    A quarter as many plain drafts, so that the model drafts on as before.
    """
    engine = shipped()
    problems = [
        p for p in data.load(levels=(3, 4, 5, 6), train_size=count, heldout_size=1, seed=0) if p.split == "train"
    ]
    drafts = solve(partial(best_of_n, n=1, temperature=1.0), engine, problems, max_tokens=96)
    rng, wait = random.Random(0), engine.encode(WAIT)
    rows = []
    for problem, (draft,) in zip(problems, drafts, strict=True):
        (sample,) = draft.samples
        if rng.random() < 0.25:
            rows.append(Example(problem.id, [], sample.prompt_ids, sample.completion_ids))
        ended = sample.finish == "stop"
        said = cut(rng, sample.completion_ids[:-1] if ended else sample.completion_ids)
        mask = [0] * len(said)
        right = engine.encode(data.solution(data.Chain.of(problem.metadata)))
        triggers = rng.randint(1, TRIGGERS)
        for i in range(triggers):
            again = cut(rng, right) if i + 1 < triggers else [*right, engine.tokenizer.eos_token_id]
            said, mask = said + wait + again, mask + [0] * len(wait) + [1] * len(again)
        rows.append(Example(problem.id, [], sample.prompt_ids, said, mask=mask))
    return rows


def cut(rng: random.Random, ids: list[int]) -> list[int]:
    return ids if rng.random() < 0.5 else ids[: rng.randint(1, len(ids))]


def tiny(lab: Lab) -> Iterator[Claim]:
    count = ROWS[lab.quick]
    made = store.digest([count, TUNING, TRIGGERS, WAIT])[:8]
    path = tuned(lab.folder / f"waiting_{made}", lambda: waiting(count), **TUNING)
    engine = shipped(path)
    heldout = data.load(levels=(5, 6), train_size=0, heldout_size=30 if lab.quick else 80, seed=0)
    problems = [p for p in heldout if p.split == "test"]

    def run(
        chains: int, seed: int, first: int = FIRST, growth: float = GROWTH, triggers: int = TRIGGERS
    ) -> list[list[Attempt]]:
        ask = partial(generate, trigger=WAIT, max_tokens=MOST, temperature=0.7)
        solver = partial(ask, chains=chains, first=first, growth=growth, triggers=triggers)
        return attempts(problems, solve(solver, engine, problems, seed=seed), checked)

    arms = {
        "triggers at T0 * gamma^k": [run(1, seed) for seed in lab.seeds],
        "no trigger": [run(1, seed, triggers=0) for seed in lab.seeds],
        "as many, evenly spread": [run(1, seed, first=MOST // (TRIGGERS + 1), growth=1.0) for seed in lab.seeds],
        "one trigger, at T0": [run(1, seed, triggers=1) for seed in lab.seeds],
    }
    right = {name: [solved(groups) for groups in runs] for name, runs in arms.items()}
    geometric, none, even, one = right.values()
    yield claim_above(
        "with triggers pass@1 on hard problems is higher than without, within the same L",
        difference(geometric, none),
        "triggers=0",
        COMMAND,
    )
    yield claim_above(
        "and higher than with as many triggers at even distances", difference(geometric, even), "growth=1", COMMAND
    )
    yield claim_above("and higher than with a single trigger at T0", difference(geometric, one), "triggers=1", COMMAND)
    voted, plainly = [], []
    for seed in lab.seeds:
        ours = run(4, seed)
        spent = float(np.mean([sampled_tokens(group) for group in ours]))
        theirs = plain(engine, problems, checked, spent, seed=seed, temperature=0.7, max_tokens=MOST)
        voted.append({p.id: float(x) for p, x in zip(problems, chosen(ours), strict=True)})
        maj = at_tokens(theirs, spent, maj=vote)["maj"]
        plainly.append({p.id: float(x) for p, x in zip(problems, maj, strict=True)})
    yield claim_above(
        "a vote over four chains beats a vote over plain samples at equal tokens",
        difference(voted, plainly),
        "maj@n at equal tokens",
        COMMAND,
    )
    yield from learning(lab, path)
    lab.note(table(arms, voted, plainly))


def solved(groups: Sequence[Sequence[Attempt]]) -> dict[str, float]:
    """Problem id -> 1 where its single chain's last word is right."""
    return {g[0].problem.id: float((i := last(g)) is not None and g[i].verdict.status == "correct") for g in groups}


def learning(lab: Lab, path: str) -> Iterator[Claim]:
    """Do flipped chains, learnt, make the model better where nobody puts a trigger?"""
    size = [
        f"dataset.train_size={24 if lab.quick else 100}",
        f"dataset.heldout_size={20 if lab.quick else 80}",
        "dataset.levels=[5,6]",
        "rounds=1",
    ]
    model = ["model=tiny", f"model.path={json.dumps(path)}", f"model.max_tokens={MOST}"]
    settings = {"chains": 2, "first": FIRST, "triggers": TRIGGERS, "max_tokens": MOST, "trigger": f'"{WAIT}"'}
    ids = ["generate=ids", "filter=flipped", *(f"generate.{key}={value}" for key, value in settings.items())]
    runs = lab.over_seeds(*model, *ids, *size)
    yield claim_above(
        "learning the chains that flipped from wrong to right raises greedy accuracy without triggers",
        gain(runs),
        "start",
        runs[0].command,
    )


def table(
    arms: dict[str, list[list[list[Attempt]]]], voted: Sequence[dict[str, float]], plainly: Sequence[dict[str, float]]
) -> Table:
    shown = Table("", "by stage", "last", "tokens a chain", title="Levels 5 and 6, means over seeds, one chain")
    for name, runs in arms.items():
        most = max(len(group) for groups in runs for group in groups)
        by = [np.mean([g[k].verdict.status == "correct" for groups in runs for g in groups]) for k in range(most)]
        spent = float(np.mean([sampled_tokens(group) for groups in runs for group in groups]))
        shown.add_row(name, " ".join(f"{x:.3f}" for x in by), f"{by[-1]:.3f}", f"{spent:.0f}")
    for name, groups in (("four chains, vote", voted), ("plain, vote at equal tokens", plainly)):
        shown.add_row(name, "", f"{np.mean([x for g in groups for x in g.values()]):.3f}", "")
    return shown
