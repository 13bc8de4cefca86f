"""Does self-correction differ between writing an answer and picking one? A script of known rates, then a tiny model.

The paper's claims (Rahmani et al. 2025, arXiv 2511.09381): picked answers change less than written ones and gain
slowly; written ones gain by the first reviews and lose by later ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter

import numpy as np
from rich.table import Table

from selfimprove.datasets.arithmetic import LETTERS, Form, load
from selfimprove.methods.gen_vs_mc import Space, Turns, flip_rate, generate, turns
from selfimprove.policy import Engine
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.metrics import mean_over_problems
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, as_check, claim_sign, difference, gated, measured
from selfimprove.studies.arms import arms_table
from selfimprove.studies.costs import Answers, Cost, cost, cost_table, timed
from selfimprove.studies.solving import ByProblem, Check, grader
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify.arithmetic import check

COMMAND = "selfimprove study gen_vs_mc"
ROUNDS = 5
GATE = 0.05  # the most replies of a round that may state no answer, else the round says nothing of the paper
REVIEW = (
    "Question: {question}\n{options}\n"
    'Review your previous responses, and give your final answer after "The final answer is: ".'
)
TINY_REVIEW = "Improve this solution."  # as the shipped model has learnt to be asked
RATES: dict[Space, tuple[float, float]] = {"open": (0.15, 0.3), "choice": (0.04, 0.08)}  # of the script: C->I, I->C
FORMS: dict[Space, Form] = {"open": "solve", "choice": "choice"}

Arm = Sequence[Answers]  # one space, an element a seed


def study(lab: Lab) -> Iterator[Claim]:
    for space in FORMS:
        yield from map(as_check, scripted(space, 60 if lab.quick else 300))
    engine, size = shipped(), 40 if lab.quick else 120
    arms: dict[str, Arm] = {}
    for space in FORMS:
        arms[space] = [ask(engine, space, items(space, size), seed, TINY_REVIEW) for seed in lab.seeds]
        lab.note(rounds_table(space, arms[space]))
    lab.note(rates_table(arms))
    costs: dict[str, Cost] = {s: cost(engine, arms[s], grade(s), max_tokens=96) for s in FORMS}
    last = {space: float(mean(arm, "accuracy")[-1]) for space, arm in arms.items()}
    lab.note(cost_table(costs, last, "last answer", "space"))
    yield from between_spaces(arms["open"], arms["choice"])
    yield from along_rounds(arms["open"], arms["choice"])


def each(arm: Arm, figure: Callable[[Turns], np.ndarray]) -> list[ByProblem]:
    """A figure that has one value a problem."""
    values = [zip(answers.groups, figure(turns(answers.groups)), strict=True) for answers in arm]
    return [{group[0].problem.id: float(value) for group, value in found} for found in values]


def gain(arm: Arm, before: int, after: int) -> Estimate:
    """How much accuracy rises from one round to another."""
    return difference(each(arm, lambda t: t.right[:, after]), each(arm, lambda t: t.right[:, before]))


def mean(arm: Arm, figure: str) -> np.ndarray:
    """A figure of `Turns`, mean over seeds."""
    return np.asarray(np.mean([getattr(turns(answers.groups), figure) for answers in arm], axis=0))


def silent(arm: Arm, stage: int) -> float:
    """The share of a round's replies that state no answer."""
    return float(np.mean([[a is None for a in turns(answers.groups).answers[:, stage]] for answers in arm]))


def where_said(claim: Claim, arms: Iterable[Arm], stage: int) -> Iterator[Claim]:
    """A claim about a round, which cannot be tested if too many replies of an arm state no answer."""
    share = max(silent(arm, stage) for arm in arms)
    return gated([claim], share <= GATE, f"{share:.0%} of round {stage}'s replies state no answer, {GATE:.0%} may")


def between_spaces(written: Arm, picked: Arm) -> Iterator[Claim]:
    """What is claimed of picked answers beside written ones."""
    for figure, above, stage, text in (
        ("flipped", False, ROUNDS, "picked answers turn from right to wrong or back less often than written ones"),
        ("flipped_first", False, 1, "the same of the first review alone, which is what the model has learnt"),
        ("inertia", True, ROUNDS, "picked answers are more often the same as in the round before"),
    ):
        gap = difference(each(picked, attrgetter(figure)), each(written, attrgetter(figure)))
        yield from where_said(claim_sign(text, gap, "space=open", COMMAND, above), [written, picked], stage)


def along_rounds(written: Arm, picked: Arm) -> Iterator[Claim]:
    """What is claimed of how accuracy goes from round to round."""
    for space, arm in (("open", written), ("choice", picked)):
        stop = int(mean(arm, "accuracy").argmax())
        top = gain(arm, 0, stop)
        where = f"{space}: the top of the curve, after which to stop, is round {stop}"
        ends = (top.low, top.high) if stop else None
        yield Claim(f"{where}; its gain, on the problems it was chosen by", None, top.value, ends, "round 0", COMMAND)
    for text, arm, before, after, above in (
        ("written answers gain by the first review", written, 0, 1, True),
        ("and lose by later ones", written, 1, ROUNDS, False),
        ("picked answers gain over all rounds", picked, 0, ROUNDS, True),
    ):
        control = f"round {before}, with round {after}"
        line = claim_sign(text, gain(arm, before, after), control, COMMAND, above)
        yield from where_said(line, [arm], after)


def items(space: Space, size: int) -> list[Problem]:
    """The same held-out chains of two to four steps in either space."""
    return load(form=FORMS[space], levels=[2, 3, 4], train_size=0, heldout_size=size, seed=0)


def ask(engine: Engine, space: Space, problems: Sequence[Problem], seed: int, review: str) -> Answers:
    """The method's answers in one space."""
    margin = "The answer is " if space == "choice" else None
    solver = partial(generate, space=space, rounds=ROUNDS, ask="{question}", review=review, margin=margin)
    solver = partial(solver, top_p=0.95, top_k=50)
    return timed(solver, engine, problems, grade(space), seed=seed, max_tokens=96)


def grade(space: Space) -> Check:
    return grader(check, form=FORMS[space])


# Known rates


def scripted(space: Space, size: int) -> Iterator[Claim]:
    """Whether the measured flips are those that the scripted policy was given."""
    problems = items(space, size)
    golds = {p.prompt if isinstance(p.prompt, str) else p.prompt[-1]["content"]: str(p.gold) for p in problems}
    lost, mended = RATES[space]
    values = {t: [x for x in LETTERS if x != gold] for t, gold in golds.items()} if space == "choice" else 5
    engine = ScriptedEngine(golds, 0.5, p_degrade=lost, p_improve=mended, wrong_values=values)
    transitions = turns(ask(engine, space, problems, 0, REVIEW).groups).transitions
    for name, rate, (flips, stays) in (("C->I", lost, transitions[0][::-1]), ("I->C", mended, transitions[1])):
        tried = int(flips + stays)
        half = 2 * math.sqrt(rate * (1 - rate) / tried)
        share = Estimate(float(flips / tried), rate - half, rate + half, tried)
        text = f"{space}, scripted: {name} is measured within two standard errors of the true {rate}"
        control = f"the rate the policy was given, {tried} rounds that could flip"
        yield measured(text, share.low <= share.value <= share.high, share, control, COMMAND)


# Tables


def rounds_table(space: str, arm: Arm) -> Table:
    """What the answers of each round are like."""
    accuracy = [mean_over_problems(right) for right in mean(arm, "right").T]

    def margin(k: int) -> str:
        replies = [group[k].trajectory.metadata for a in arm for group in a.groups if k < len(group)]
        margins = [metadata["margin"] for metadata in replies if metadata.get("margin") is not None]
        return f"{np.mean(margins):.2f}" if margins else ""

    return arms_table(
        f"{space}: means over seeds",
        {str(k): k for k in range(ROUNDS + 1)},
        {
            "accuracy": lambda k: f"{accuracy[k].value:.3f}",
            "95 %": lambda k: f"[{accuracy[k].low:.3f}, {accuracy[k].high:.3f}]",
            "cumulative": lambda k: f"{mean(arm, 'cumulative')[k]:.3f}",
            "drift": lambda k: f"{mean(arm, 'drift')[k]:.3f}",
            "no answer": lambda k: f"{silent(arm, k):.3f}",
            "margin, nats": margin,
        },
        "round",
    )


def rates_table(arms: Mapping[str, Arm]) -> Table:
    """How often answers turn into each other, over all rounds and seeds."""

    def rate(arm: Arm, was: bool) -> str:
        share = flip_rate([turns(answers.groups) for answers in arm], was)
        return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]" if share else "none"

    return arms_table(
        "All rounds, all seeds",
        arms,
        {
            "C->I": lambda arm: rate(arm, True),
            "I->C": lambda arm: rate(arm, False),
            "flips": lambda arm: f"{mean(arm, 'flipped').mean():.3f}",
            "inertia": lambda arm: f"{mean(arm, 'inertia').mean():.3f}",
            "stop after": lambda arm: str(mean(arm, "accuracy").argmax()),
            "full windows": lambda arm: f"{np.mean([len(group) <= ROUNDS for a in arm for group in a.groups]):.2f}",
        },
        "space",
    )
