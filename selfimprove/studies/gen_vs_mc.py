"""Does self-correction differ between writing an answer and picking one? A script of known rates, then a tiny model.

The paper's claims (Rahmani et al. 2025, arXiv 2511.09381): picked answers change less than written ones and gain
slowly; written ones gain by the first reviews and lose by later ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.datasets.arithmetic import LETTERS, Form, load
from selfimprove.methods.gen_vs_mc import Space, Turns, flip_rate, generate, turns
from selfimprove.policy import Engine
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.metrics import mean_over_problems
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, as_check, claim_sign, difference, measured, untestable
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import Answers, ByProblem, Check, Cost, cost, cost_table, grader, timed
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


@dataclass(frozen=True)
class Arm(Answers):
    """One space, one seed."""

    @property
    def turns(self) -> Turns:
        return turns(self.groups)

    def right(self, stage: int) -> ByProblem:
        """Whether each problem's answer of a round is right."""
        rows = zip(self.groups, self.turns.right, strict=True)
        return {group[0].problem.id: float(right[stage]) for group, right in rows}

    def each(self, figure: str) -> ByProblem:
        """A figure of `Turns` that has one value a problem."""
        rows = zip(self.groups, getattr(self.turns, figure), strict=True)
        return {group[0].problem.id: value for group, value in rows}


def study(lab: Lab) -> Iterator[Claim]:
    for space in FORMS:
        yield from map(as_check, scripted(space, 60 if lab.quick else 300))
    engine, size = shipped(), 40 if lab.quick else 120
    arms: dict[str, list[Arm]] = {}
    for space in FORMS:
        problems = items(space, size)
        arms[space] = [ask(engine, space, problems, seed, TINY_REVIEW) for seed in lab.seeds]
    for space in FORMS:
        lab.note(rounds_table(space, arms[space]))
    lab.note(rates_table(arms))
    costs: dict[str, Cost] = {s: cost(engine, arms[s], grade(s), max_tokens=96) for s in FORMS}
    last: dict[str, float] = {space: float(np.mean([a.turns.accuracy[-1] for a in arm])) for space, arm in arms.items()}
    lab.note(cost_table(costs, last, "last answer", "space"))

    yield from between_spaces(arms)
    yield from along_rounds(arms)


def silent(arms: Mapping[str, Sequence[Arm]], spaces: Sequence[str], stage: int) -> str:
    """Why a claim about a round cannot be tested, "" if it can: too many of its replies state no answer."""
    share = max(float(np.mean([[a is None for a in arm.turns.answers[:, stage]] for arm in arms[s]])) for s in spaces)
    return f"{share:.0%} of round {stage}'s replies state no answer, {GATE:.0%} may" if share > GATE else ""


def between_spaces(arms: Mapping[str, Sequence[Arm]]) -> Iterator[Claim]:
    """What is claimed of picked answers beside written ones."""
    for figure, above, stage, text in (
        ("flipped", False, ROUNDS, "picked answers turn from right to wrong or back less often than written ones"),
        ("flipped_first", False, 1, "the same of the first review alone, which is what the model has learnt"),
        ("inertia", True, ROUNDS, "picked answers are more often the same as in the round before"),
    ):
        gap = difference([a.each(figure) for a in arms["choice"]], [a.each(figure) for a in arms["open"]])
        if why := silent(arms, list(FORMS), stage):
            yield untestable(text, why, "space=open", COMMAND)
        else:
            yield claim_sign(text, gap, "space=open", COMMAND, above)


def along_rounds(arms: Mapping[str, Sequence[Arm]]) -> Iterator[Claim]:
    """What is claimed of how accuracy goes from round to round."""

    def gain(space: Space, before: int, after: int) -> Estimate:
        return difference([a.right(after) for a in arms[space]], [a.right(before) for a in arms[space]])

    for space in FORMS:
        stop = int(np.mean([arm.turns.accuracy for arm in arms[space]], axis=0).argmax())
        top = gain(space, 0, stop)
        text = (
            f"{space}: the top of the curve, after which to stop, is round {stop}; its gain, on the problems it was "
            "chosen by"
        )
        yield Claim(text, None, top.value, (top.low, top.high) if stop else None, "round 0", COMMAND)
    changes: tuple[tuple[str, Space, int, int, bool], ...] = (
        ("written answers gain by the first review", "open", 0, 1, True),
        ("and lose by later ones", "open", 1, ROUNDS, False),
        ("picked answers gain over all rounds", "choice", 0, ROUNDS, True),
    )
    for text, space, before, after, above in changes:
        control = f"round {before}, with round {after}"
        if why := silent(arms, [space], after):
            yield untestable(text, why, control, COMMAND)
        else:
            yield claim_sign(text, gain(space, before, after), control, COMMAND, above)


def items(space: Space, size: int) -> list[Problem]:
    """The same held-out chains of two to four steps in either space."""
    return load(form=FORMS[space], levels=[2, 3, 4], train_size=0, heldout_size=size, seed=0)


def ask(engine: Engine, space: Space, problems: Sequence[Problem], seed: int, review: str) -> Arm:
    """The method's answers in one space."""
    margin = "The answer is " if space == "choice" else None
    solver = partial(generate, space=space, rounds=ROUNDS, ask="{question}", review=review, margin=margin)
    solver = partial(solver, top_p=0.95, top_k=50)
    answers = timed(solver, engine, problems, grade(space), seed=seed, max_tokens=96)
    return Arm(answers.groups, answers.seconds)


def grade(space: Space) -> Check:
    return grader(check, form=FORMS[space])


# Known rates


def scripted(space: Space, size: int) -> Iterator[Claim]:
    """Whether the measured flips are those that the scripted policy was given."""
    problems = items(space, size)
    golds = {p.prompt if isinstance(p.prompt, str) else p.prompt[-1]["content"]: str(p.gold) for p in problems}
    lost, mended = RATES[space]
    letters = {t: [letter for letter in LETTERS if letter != gold] for t, gold in golds.items()}
    values = letters if space == "choice" else 5
    engine = ScriptedEngine(golds, 0.5, p_degrade=lost, p_improve=mended, wrong_values=values)
    transitions = ask(engine, space, problems, 0, REVIEW).turns.transitions
    for name, rate, (flips, stays) in (("C->I", lost, transitions[0][::-1]), ("I->C", mended, transitions[1])):
        tried = int(flips + stays)
        half = 2 * math.sqrt(rate * (1 - rate) / tried)
        share = Estimate(float(flips / tried), rate - half, rate + half, tried)
        text = f"{space}, scripted: {name} is measured within two standard errors of the true {rate}"
        control = f"the rate the policy was given, {tried} rounds that could flip"
        yield measured(text, share.low <= share.value <= share.high, share, control, COMMAND)


# Tables


def rounds_table(space: Space, arms: Sequence[Arm]) -> Table:
    """What the answers of each round are like."""
    all_turns = [arm.turns for arm in arms]

    def accuracy(k: int) -> Estimate:
        return mean_over_problems(np.mean([t.right[:, k] for t in all_turns], axis=0))

    def margin(k: int) -> str:
        replies = [group[k].trajectory.metadata for arm in arms for group in arm.groups if k < len(group)]
        margins = [metadata["margin"] for metadata in replies if metadata.get("margin") is not None]
        return f"{np.mean(margins):.2f}" if margins else ""

    return arms_table(
        f"{space}: means over seeds",
        {str(k): k for k in range(ROUNDS + 1)},
        {
            "accuracy": lambda k: f"{accuracy(k).value:.3f}",
            "95 %": lambda k: f"[{accuracy(k).low:.3f}, {accuracy(k).high:.3f}]",
            "cumulative": lambda k: f"{np.mean([t.cumulative[k] for t in all_turns]):.3f}",
            "drift": lambda k: f"{np.mean([t.drift[k] for t in all_turns]):.3f}",
            "no answer": lambda k: f"{np.mean([[a is None for a in t.answers[:, k]] for t in all_turns]):.3f}",
            "margin, nats": margin,
        },
        "round",
    )


def rates_table(arms: Mapping[str, Sequence[Arm]]) -> Table:
    """How often answers turn into each other, over all rounds and seeds."""

    def rate(arm: Sequence[Arm], was: bool) -> str:
        share = flip_rate([a.turns for a in arm], was)
        return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]" if share else "none"

    return arms_table(
        "All rounds, all seeds",
        arms,
        {
            "C->I": lambda arm: rate(arm, True),
            "I->C": lambda arm: rate(arm, False),
            "flips": lambda arm: f"{np.mean([a.turns.flipped for a in arm]):.3f}",
            "inertia": lambda arm: f"{np.mean([a.turns.inertia for a in arm]):.3f}",
            "stop after": lambda arm: str(int(np.mean([a.turns.accuracy for a in arm], axis=0).argmax())),
            "full windows": lambda arm: f"{np.mean([len(group) <= ROUNDS for a in arm for group in a.groups]):.2f}",
        },
        "space",
    )
