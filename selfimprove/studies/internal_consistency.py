"""Is consistency (almost) correctness, and can a policy be trained on it?"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.report.consistency import agreement, responses
from selfimprove.report.metrics import RESAMPLES, Estimate
from selfimprove.studies import (
    Claim,
    Lab,
    Result,
    advantage,
    as_check,
    claim_above,
    claim_within,
    difference,
    gain,
    measured,
    untestable,
)
from selfimprove.studies.tiny import untrained
from selfimprove.types import Problem

METHOD = "method=internal_consistency"
SAMPLES, OTHERS = 16, 8
MARGIN = 0.05  # two ways to train within it are as good as each other
# The samples whose accuracy is compared are others than those whose agreement is: else one would be part of the other.
MEASURED = (
    f"eval.consistency={{samples:{SAMPLES},temperature:0.7}}",
    f"eval.samples={SAMPLES}",
    "eval.temperature=0.7",
)


def study(lab: Lab) -> Iterator[Claim]:
    size = (
        ["dataset.train_size=24", "dataset.heldout_size=24", "rounds=1", "method.generate.n=8"]
        if lab.quick
        else ["dataset.train_size=150", "dataset.heldout_size=100", "rounds=2"]
    )
    runs = lab.over_seeds(METHOD, *MEASURED, *size)
    command = runs[0].command

    trained = correlation([pairs(result) for result in runs])
    text = "Spearman correlation of consistency and accuracy, item by item, above 0.5 on the trained model"
    yield claim_above(text, trained, "items drawn again", command, least=0.5)
    yield on_a_random_model(lab, size)
    guesses = correlation([guesser(100 if lab.quick else 400, seed) for seed in lab.seeds])
    control = "four answers, all as likely, whatever the question"
    text = "no correlation on a guesser, for whom all items are alike"
    holds = guesses.low <= 0 <= guesses.high
    yield as_check(measured(text, holds, guesses, control, "selfimprove study internal_consistency"))

    change = difference([agreements(r, "last") for r in runs], [agreements(r, "base") for r in runs])
    text = "training on consistent answers makes held-out answers more consistent"
    yield claim_above(text, change, "start", command)
    text = "and more often correct, without gold answers in training"
    yield claim_above(text, gain(runs), "start", command)
    temperature = ["method.generate.temperature=0.7", f"method.generate.n={8 if lab.quick else SAMPLES}"]
    rejection = lab.over_seeds("method=rejection_sampling", *temperature, *small(size), rounds(size))
    behind = advantage(runs, rejection)
    control = f"rejection_sampling with gold answers, same samples: {gain(rejection).value:+.3f} over the start"
    text = f"as much as training on correct answers does, within {100 * MARGIN:.0f} points"
    yield claim_within(text, behind, MARGIN, control, rejection[0].command)
    shuffled = lab.over_seeds(METHOD, *size, "control=shuffled_verdicts")
    text = "more than training on as many answers picked at random"
    yield claim_above(text, advantage(runs, shuffled), "shuffled_verdicts", shuffled[0].command)
    lab.note(table(runs, rejection, lab))


def on_a_random_model(lab: Lab, size: Sequence[str]) -> Claim:
    """The correlation on a model that has learnt nothing, where it can be computed."""
    blank = lab.run(METHOD, *MEASURED, *random_model(lab.folder / "random"), *small(size))
    items = pairs(blank)
    text, control = "and within 0.2 of 0 on a random model", "the same architecture with fresh random weights"
    if constant(items):
        why = f"accuracy {span(items[:, 1])} and agreement {span(items[:, 0])} over the items"
        return untestable(text, why, control, blank.command)
    return claim_within(text, correlation([items]), 0.2, control, blank.command)


def small(size: Sequence[str]) -> list[str]:
    return [word for word in size if word.startswith("dataset.")]


def rounds(size: Sequence[str]) -> str:
    return next(word for word in size if word.startswith("rounds="))


def pairs(result: Result, folder: str = "base") -> np.ndarray:
    """(agreement of the consistency samples, accuracy of the other samples) of each held-out problem, (items, 2)."""
    accuracy = {
        group[0].problem.id: sum(a.verdict.status == "correct" for a in group) / len(group)
        for group in result.attempts(result.evaluation(folder), "sampled")
    }
    agreed = agreements(result, folder)
    return np.array([(agreed[name], accuracy[name]) for name in accuracy])


def agreements(result: Result, folder: str) -> dict[str, float]:
    groups = result.attempts(result.evaluation(folder), "consistency")
    return {group[0].problem.id: agreement(responses(group)) for group in groups}


def span(values: np.ndarray) -> str:
    return f"{values.min():.3f}" if np.ptp(values) == 0 else f"{values.min():.3f} to {values.max():.3f}"


def constant(items: np.ndarray) -> bool:
    return bool((items == items[0]).all(axis=0).any())


def correlation(tables: Sequence[np.ndarray]) -> Estimate:
    """Spearman's correlation, mean over seeds, with the 95 % interval of the bootstrap over seeds and items."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)

    def mean(chosen: Sequence[np.ndarray]) -> float:
        return float(np.mean([spearmanr(t[:, 0], t[:, 1]).statistic for t in chosen]))

    drawn = []
    for _ in range(RESAMPLES // 4):
        seeds = rng.integers(len(tables), size=len(tables))
        drawn.append(mean([tables[s][rng.integers(len(tables[s]), size=len(tables[s]))] for s in seeds]))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(mean(tables), float(low), float(high), len(tables[0]))


def random_model(folder: Path) -> list[str]:
    """Overrides for a model of the shipped one's architecture and tokenizer, its weights drawn afresh into `folder`."""
    if not (folder / "model.safetensors").exists():
        untrained(folder)
    short = ["model.max_tokens=32", "method.generate.n=2", "rounds=1"]  # it never ends by itself, and nothing is kept
    return ["model=tiny", f"model.path={json.dumps(str(folder))}", *short]


def guesser(items: int, seed: int) -> np.ndarray:
    """As `pairs`, of a policy that gives one of four answers, all as likely."""
    problems = [Problem(f"p{i}", f"Question {i}?", str(4 * i)) for i in range(items)]
    engine = ScriptedEngine({str(p.prompt): str(p.gold) for p in problems}, 0.25, wrong_values=3)
    policy = Policy(engine, seed)

    async def answers(problem: Problem) -> tuple[float, float]:
        samples = await policy.for_problem(problem).sample(problem.prompt, SAMPLES + OTHERS)
        texts = [sample.text.removeprefix(ANSWER) for sample in samples]
        return agreement(texts[:SAMPLES]), texts[SAMPLES:].count(str(problem.gold)) / OTHERS

    async def every() -> list[tuple[float, float]]:
        return await asyncio.gather(*map(answers, problems))

    return np.array(asyncio.run(every()))


def table(runs: Sequence[Result], rejection: Sequence[Result], lab: Lab) -> Table:
    shown = Table("", "accuracy", "agreement", "entropy, nats", "decoders agree", title="Held-out, means over seeds")
    names = ("accuracy", "consistency/agreement", "consistency/entropy", "consistency/decoding")
    for name, key in (("start", "base"), ("internal_consistency", "final")):
        shown.add_row(name, *(f"{np.mean([r.summary[key][figure] for r in runs]):.3f}" for figure in names))
    shown.add_row("rejection_sampling", f"{np.mean([r.summary['final']['accuracy'] for r in rejection]):.3f}")
    for name, figure in lab.at_equal_tokens(runs).items():
        shown.add_row(f"start, {name}, at equal tokens", f"{figure.value:.3f}")
    return shown
