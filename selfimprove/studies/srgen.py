"""Does a reflection at an uncertain token make the right token likelier, and answers better?

Claims of Mu et al. 2025 (arXiv 2510.02919), on chains of arithmetic with the shipped policy. The first are measured
along right solutions: where the policy, given the right prefix, is uncertain of the next token, that token is known.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.table import Table

from selfimprove.datasets.arithmetic import Chain, load
from selfimprove.datasets.arithmetic import solution as right_solution
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.srgen import Reflection, entropy, generate
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.hooks import Rows
from selfimprove.report.statistics import mean
from selfimprove.studies import Claim, Lab, difference, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import ByProblem, Groups, attempts, right, solve, solved
from selfimprove.studies.staged import GRADE, MAX_TOKENS, bounded
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify.answers import vote

COMMAND = "selfimprove study srgen"
RATES = (0.01, 0.03, 0.1, 0.3)
TEMPERATURE, SAMPLES = 0.6, 5
THRESHOLDS: dict[str, Any] = {
    "window": 8,
    "k": 2.0,
    "least_std": 0.1,
    "least": 0.5,
    "first": 0.8,
}  # as in conf/generate/srgen.yaml

Change = dict[str, float]  # of one reflection: what it does to the entropy and to the right token's log-probability


def study(lab: Lab) -> Iterator[Claim]:
    size, dev = (30, 10) if lab.quick else (200, 100)
    engine = shipped()
    sides = load(train_size=0, dev_size=dev, heldout_size=size, seed=0)
    tried = [p for p in sides if p.split == "dev"]
    heldout = [p for p in sides if p.split == "test"]
    rates = {rate: overall([gains(along(engine, hook(rate), tried), "gold")]) for rate in RATES}
    rate = max(rates, key=lambda r: (rates[r], -r))
    shown = ", ".join(f"{r:g}: {100 * value:+.2f}" for r, value in rates.items())
    lab.note(f"dev: nats/100 that the right token gains at reflections, by learning rate: {shown}; chosen {rate:g}")
    found = along(engine, hook(rate), heldout)
    for claim, name, sign, control in (
        ("a reflection lowers the entropy of the next token", "entropy", -1, "before the reflection"),
        ("a reflection makes the right token likelier", "gold", 1, "no reflection"),
        ("more than a lower temperature of the same entropy", "beyond", 1, "temperature of the same entropy"),
    ):
        values = np.array(list(gains(found, name).values())) * sign
        yield bounded(claim, mean(values, None), 0.0, control, COMMAND)
    arms = {
        "plain": partial(best_of_n, n=SAMPLES, temperature=TEMPERATURE),
        "srgen": partial(generate, n=SAMPLES, temperature=TEMPERATURE, learning_rate=rate, **THRESHOLDS),
        "entropy alone": partial(
            generate, n=SAMPLES, temperature=TEMPERATURE, learning_rate=rate, weight=1.0, **THRESHOLDS
        ),
    }
    groups: dict[str, list[Groups]] = {arm: [] for arm in arms}
    seconds = dict.fromkeys(arms, 0.0)
    for seed in lab.seeds:
        for arm, solver in arms.items():
            begun = time.process_time()
            answers = solve(solver, engine, heldout, seed=seed, max_tokens=MAX_TOKENS)
            seconds[arm] += time.process_time() - begun
            groups[arm].append(attempts(heldout, answers, GRADE))
    lab.note(table(groups, seconds, found))
    single = {arm: [shares(g) for g in each] for arm, each in groups.items()}
    votes = {arm: [solved(g, vote) for g in each] for arm, each in groups.items()}
    yield bounded(
        "a sample is right not more than 1 point less often", difference(single["srgen"], single["plain"]), -0.01,
        "plain samples", COMMAND,
    )  # fmt: skip
    yield bounded(
        "a sample is right more often", difference(single["srgen"], single["plain"]), 0.0, "plain samples", COMMAND
    )
    yield bounded(
        "the majority of five is right more often", difference(votes["srgen"], votes["plain"]), 0.0,
        "majority of five plain samples", COMMAND,
    )  # fmt: skip


def hook(rate: float) -> Reflection:
    return Reflection(**THRESHOLDS, steps=3, learning_rate=rate, weight=0.05, most=20)


def along(engine: TransformersEngine, reflection: Reflection, problems: Sequence[Problem]) -> dict[str, list[Change]]:
    """What each reflection does along the right solution of each problem, which is the text that is decoded."""
    found: dict[str, list[Change]] = {}
    for problem in problems:
        prompt = engine.render(problem.prompt)
        gold = [*engine.encode(right_solution(Chain.of(problem.metadata))), engine.end]
        ids = [*prompt, *gold]
        with torch.no_grad():
            states = engine.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
            logits = engine.model.get_output_embeddings()(states[len(prompt) - 1 : -1]).float()
        entropies = entropy(logits, [TEMPERATURE] * len(gold)).tolist()
        changes = found.setdefault(problem.id, [])
        for t, now in enumerate(entropies):
            if now > reflection.threshold(entropies[:t]) and len(changes) < reflection.most:
                changes.append(
                    change(engine, reflection, logits[t], states[: len(prompt) + t], ids[: len(prompt) + t], gold[t])
                )
    return found


def change(
    engine: TransformersEngine,
    reflection: Reflection,
    logits: torch.Tensor,
    states: torch.Tensor,
    ids: Sequence[int],
    gold: int,
) -> Change:
    """One reflection. `beyond`: over what the temperature would gain that gives the same entropy."""
    head = engine.model.get_output_embeddings()
    rows = Rows(
        logits[None], [ids], [0], [TEMPERATURE], [reflection], [{}], lambda _: [states], lambda h: head(h).float()
    )
    after = reflection.reflect(rows, [0], [TEMPERATURE])[0]
    h = [float(entropy(x[None], [TEMPERATURE])[0]) for x in (logits, after)]
    said = [float(torch.log_softmax(x / TEMPERATURE, -1)[gold]) for x in (logits, after)]
    cooler = float(torch.log_softmax(logits / temperature_of(logits, h[1]), -1)[gold])
    return {"entropy": h[1] - h[0], "gold": said[1] - said[0], "beyond": said[1] - cooler}


def temperature_of(logits: torch.Tensor, target: float) -> float:
    """The temperature at which the next token has this entropy, by bisection."""
    low, high = 0.01, 100.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if float(entropy(logits[None], [middle])[0]) > target else (middle, high)
    return math.sqrt(low * high)


def gains(found: Mapping[str, Sequence[Change]], name: str) -> ByProblem:
    """Problem id -> mean over its reflections; problems without one are left out."""
    return {problem: float(np.mean([c[name] for c in changes])) for problem, changes in found.items() if changes}


def shares(groups: Groups) -> ByProblem:
    return {group[0].problem.id: float(np.mean(right(group))) for group in groups}


def table(
    groups: Mapping[str, list[Groups]], seconds: Mapping[str, float], found: Mapping[str, Sequence[Change]]
) -> Table:
    every = {arm: [a.trajectory for g in each for p in g for a in p] for arm, each in groups.items()}
    changes = [c for each in found.values() for c in each]
    nats = {name: float(np.mean([c[name] for c in changes])) for name in ("entropy", "gold", "beyond")}

    def reflections(arm: str) -> float:
        return float(np.mean([len(t.metadata.get("reflections", [])) for t in every[arm]]))

    return arms_table(
        f"Held-out, means over seeds. Along right solutions {len(changes)} reflections; nats of entropy "
        f"{nats['entropy']:+.3f}, of the right token {nats['gold']:+.3f}, beyond a temperature {nats['beyond']:+.3f}",
        {arm: arm for arm in groups},
        {
            "a sample": lambda arm: f"{100 * overall([shares(g) for g in groups[arm]]):.1f} %",
            "majority of five": lambda arm: f"{100 * overall([solved(g, vote) for g in groups[arm]]):.1f} %",
            "reflections a sample": lambda arm: f"{reflections(arm):.2f}",
            "sampled tokens": lambda arm: f"{np.mean([t.sampled_tokens for t in every[arm]]):.1f}",
            "processor seconds": lambda arm: f"{seconds[arm] / seconds['plain']:.2f} times plain",
        },
    )
