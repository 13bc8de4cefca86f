"""Three models of different sizes refine their own answers, and are ranked: by the formula, and against plain votes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.methods.perfics import Figures, Weights, ranking, table
from selfimprove.report.statistics import difference
from selfimprove.studies import Claim, Lab, as_check, claim_sign, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.costs import timed
from selfimprove.studies.made import refiner
from selfimprove.studies.solving import ByProblem, grader, plain, solved, traces
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify import arithmetic
from selfimprove.verify.answers import last, vote

COMMAND = "selfimprove study perfics"
GAMMAS = tuple(np.linspace(0, 4, 81).tolist())


def study(lab: Lab) -> Iterator[Claim]:
    problems = refiner.heldout(20 if lab.quick else 150)
    documents = 400 if lab.quick else refiner.DOCUMENTS
    folders = {name: refiner.make(lab.folder, name, documents) for name in refiner.SIZES}
    measured = {name: measure(name, folder, problems, lab.seeds) for name, folder in folders.items()}
    figures = [m.figures for m in measured.values()]
    lab.note(table(figures, Weights()))
    lab.note(wins(measured))

    for name, m in measured.items():
        text = f"{name}: refining raises accuracy"
        yield claim_sign(text, difference(m.refined, m.first), "its first answers", COMMAND)
    for name, m in measured.items():
        control = f"majority of plain answers, as many tokens: {overall(m.voted):.3f}"
        yield claim_sign(f"{name}: refining beats voting", difference(m.refined, m.voted), control, COMMAND)
    yield from map(as_check, ranked(figures))


def ranked(figures: Sequence[Figures]) -> Iterator[Claim]:
    """Whether the ranking is that of its formula, worked out by hand."""
    agreed = sum(order(figures, gamma) == closed_form(figures, gamma) for gamma in GAMMAS)
    text = "the ranking is that of the closed form for gamma from 0 to 4"
    shares = f"{agreed} of {len(GAMMAS)}"
    yield Claim(text, agreed == len(GAMMAS), shares, None, "pairs compared by their crossing points", COMMAND)
    most, smallest = max(figures, key=lambda f: f.refined), min(figures, key=lambda f: f.memory)
    free = ranking(figures, Weights(gamma=0))[0][0]
    text = "gamma 0 picks the model that is best after refinement"
    accuracies = "accuracies " + ", ".join(f"{f.model} {f.refined:.3f}" for f in figures)
    yield Claim(text, free.refined == most.refined, free.model, None, accuracies, COMMAND)
    takes_over = crossing(figures, smallest)
    control = "memory " + ", ".join(f"{f.model} {f.memory / 1e6:.1f} MB" for f in figures)
    if takes_over is None:
        yield Claim("a large gamma picks the smallest", None, "it solves nothing", None, control, COMMAND)
        return
    dear = ranking(figures, Weights(gamma=takes_over + 0.01))[0][0]
    text = f"a large gamma picks the smallest, here from {takes_over:.2f} on"
    yield Claim(text, dear is smallest, dear.model, None, control, COMMAND)


# The ranking, by hand


def order(figures: Sequence[Figures], gamma: float) -> list[str]:
    return [f.model for f, _ in ranking(figures, Weights(gamma=gamma))]


def closed_form(figures: Sequence[Figures], gamma: float) -> list[str]:
    """i is before j where S_i > S_j (C_i / C_j)^gamma, S = P + dR: a model's place is the number of those before it."""
    behind = {f.model: 0 for f in figures}
    for a, b in combinations(figures, 2):
        ahead = a.refined - b.refined * (a.memory / b.memory) ** gamma
        behind[(b if ahead > 0 or (ahead == 0 and a.memory < b.memory) else a).model] += 1
    return sorted(behind, key=behind.__getitem__)


def crossing(figures: Sequence[Figures], smallest: Figures) -> float | None:
    """The gamma from which on the smallest model is the first: the largest of ln(S_j / S_i) / ln(C_j / C_i), or 0.

    None if it solves nothing, and is never the first.
    """
    if not smallest.refined:
        return None
    better = [f for f in figures if f.refined > smallest.refined]
    return max(
        (math.log(f.refined / smallest.refined) / math.log(f.memory / smallest.memory) for f in better), default=0.0
    )


# What a model shows


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model showed, and which problems it solved, one `ByProblem` a seed."""

    figures: Figures
    first: list[ByProblem]  # by its first answers
    refined: list[ByProblem]  # by its refined answers
    voted: list[ByProblem]  # by the majority of plain answers of as many tokens


def measure(name: str, folder: Path, problems: list[Problem], seeds: Sequence[int]) -> Measured:
    """Refine every problem's answer with the model in `folder`, once a seed."""
    node = compose(["method=perfics", "model=tiny"], needs=False).solver
    solver, heat = bind(node, "generate"), node["temperature"]
    engine, check = shipped(folder), grader(arithmetic.check)
    first, refined, voted = list[ByProblem](), list[ByProblem](), list[ByProblem]()
    tokens, seconds = list[float](), list[float]()
    for seed in seeds:
        answers = timed(solver, engine, problems, check, seed=seed, max_tokens=48)
        seconds.append(answers.seconds / len(problems))
        tokens.append(float(np.mean([t[max(t)].tokens for t in traces(answers.groups, last)])))
        samples = plain(engine, problems, check, tokens[-1], seed=seed, temperature=heat, max_tokens=48)
        first.append(solved([group[:1] for group in answers.groups], last))
        refined.append(solved(answers.groups, last))
        voted.append(solved(samples, vote))
    spent = float(np.mean(tokens)), float(np.mean(seconds))
    figures = Figures(name, overall(first), overall(refined), engine.memory, *spent)
    engine.close()
    return Measured(figures, first, refined, voted)


def wins(measured: Mapping[str, Measured]) -> Table:
    """How often a model's answer is better than the largest one's first answer; ties, which are most, count half."""
    *_, (rival, reference) = measured.items()

    def rate(runs: Sequence[ByProblem]) -> str:
        pairs = zip(runs, reference.first, strict=True)
        return f"{100 * np.mean([[0.5 + (a[p] - b[p]) / 2 for p in a] for a, b in pairs]):.1f}"

    return arms_table(
        f"Win rate against first answers of {rival}, %",
        measured,
        {"first answers": lambda m: rate(m.first), "refined": lambda m: rate(m.refined)},
        "model",
    )
