"""Does self-correction differ between writing an answer and picking one? A script of known rates, then a tiny model.

The paper's claims (Rahmani et al. 2025, arXiv 2511.09381): picked answers change less than written ones and gain
slowly; written ones gain by the first reviews and lose by later ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.datasets.arithmetic import LETTERS, Form, load
from selfimprove.methods.gen_vs_mc import Space, Turns, generate, turns
from selfimprove.policy import Engine
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.metrics import mean_over_problems
from selfimprove.report.statistics import Estimate, ratio
from selfimprove.studies import Claim, Lab, difference
from selfimprove.studies.solving import Check, at_tokens, attempts, plain, solve
from selfimprove.types import Attempt, Problem
from selfimprove.verify.answers import vote
from selfimprove.verify.arithmetic import check

COMMAND = "selfimprove study gen_vs_mc"
ROUNDS = 5
REVIEW = (
    "Question: {question}\n{options}\n"
    'Review your previous responses, and give your final answer after "The final answer is: ".'
)
TINY_REVIEW = "Improve this solution."  # as the shipped model has learnt to be asked
RATES: dict[Space, tuple[float, float]] = {"open": (0.15, 0.3), "choice": (0.04, 0.08)}  # of the script: C->I, I->C
FORMS: dict[Space, Form] = {"open": "solve", "choice": "choice"}


@dataclass(frozen=True)
class Arm:
    """One space, one seed."""

    groups: list[list[Attempt]]  # each problem's answers, in order, with verdicts
    seconds: float

    @property
    def turns(self) -> Turns:
        return turns(self.groups)


def study(lab: Lab) -> Iterator[Claim]:
    for space in FORMS:
        yield from scripted(space, 60 if lab.quick else 300)

    from selfimprove.policy.hf import TransformersEngine
    from selfimprove.policy.models import PACKAGED

    engine = TransformersEngine(str(PACKAGED / "tiny"), device="cpu", max_batch=64)
    size = 40 if lab.quick else 120
    arms = {space: [tiny(engine, space, size, seed) for seed in lab.seeds] for space in FORMS}
    for space in FORMS:
        lab.note(rounds_table(space, arms[space]))
    lab.note(rates_table(arms))
    lab.note(cost_table(engine, arms))

    def by_problem(space: Space, figure: str) -> list[dict[str, float]]:
        return [
            dict(zip((group[0].problem.id for group in arm.groups), getattr(arm.turns, figure), strict=True))
            for arm in arms[space]
        ]

    for figure, less, claim in (
        ("flipped", True, "picked answers turn from right to wrong or back less often than written ones"),
        ("flipped_first", True, "the same of the first review alone, which is what the model has learnt"),
        ("inertia", False, "picked answers are more often the same as in the round before"),
    ):
        gap = difference(by_problem("choice", figure), by_problem("open", figure))
        holds = gap.high < 0 if less else gap.low > 0
        yield Claim(claim, holds if gap.apart else None, gap.value, (gap.low, gap.high), "space=open", COMMAND)
    for space in FORMS:
        curve = np.mean([arm.turns.accuracy for arm in arms[space]], axis=0)
        stop = int(curve.argmax())
        gained = difference(right_after(arms[space], stop), right_after(arms[space], 0))
        yield Claim(
            f"{space}: the top of the curve, after which to stop, is round {stop}; its gain, on the problems it was "
            "chosen by",
            None,
            gained.value,
            (gained.low, gained.high) if stop else None,
            "round 0",
            COMMAND,
        )
    changes: tuple[tuple[str, Space, int, int, bool], ...] = (
        ("written answers gain by the first review", "open", 0, 1, True),
        ("and lose by later ones", "open", 1, ROUNDS, False),
        ("picked answers gain over all rounds", "choice", 0, ROUNDS, True),
    )
    for claim, space, before, after, gains in changes:
        found = difference(right_after(arms[space], after), right_after(arms[space], before))
        holds = found.low > 0 if gains else found.high < 0
        interval, control = (found.low, found.high), f"round {before}, with round {after}"
        yield Claim(claim, holds if found.apart else None, found.value, interval, control, COMMAND)


# Known rates


def scripted(space: Space, size: int) -> Iterator[Claim]:
    """Whether the measured flips are those that the scripted policy was given."""
    problems = items(space, size)
    golds = {text(p): str(p.gold) for p in problems}
    lost, mended = RATES[space]
    letters = {t: [letter for letter in LETTERS if letter != gold] for t, gold in golds.items()}
    engine = ScriptedEngine(
        golds, 0.5, p_degrade=lost, p_improve=mended, wrong_values=letters if space == "choice" else 5
    )
    measured = asked(engine, space, problems, 0, REVIEW).turns.transitions
    for (name, rate), (there, stay) in zip(
        {"C->I": lost, "I->C": mended}.items(), (measured[0][::-1], measured[1]), strict=True
    ):
        tried = int(there + stay)
        sigma = math.sqrt(rate * (1 - rate) / tried)
        share = float(there / tried)
        yield Claim(
            f"{space}, scripted: {name} is measured within two standard errors of the true {rate}",
            abs(share - rate) <= 2 * sigma,
            share,
            (rate - 2 * sigma, rate + 2 * sigma),
            f"the rate the policy was given, {tried} rounds that could flip",
            COMMAND,
        )


# The shipped model


def tiny(engine: Engine, space: Space, size: int, seed: int) -> Arm:
    return asked(engine, space, items(space, size), seed, TINY_REVIEW)


def items(space: Space, size: int) -> list[Problem]:
    """The same held-out chains of two to four steps in either space."""
    return load(form=FORMS[space], levels=[2, 3, 4], train_size=0, heldout_size=size, seed=0)


def asked(engine: Engine, space: Space, problems: Sequence[Problem], seed: int, review: str) -> Arm:
    began = time.monotonic()
    solver = partial(
        generate,
        space=space,
        rounds=ROUNDS,
        ask="{question}",
        review=review,
        top_p=0.95,
        top_k=50,
        margin="The answer is " if space == "choice" else None,
    )
    found = solve(solver, engine, problems, seed=seed, max_tokens=96)
    return Arm(attempts(problems, found, grade(space)), time.monotonic() - began)


def grade(space: Space) -> Check:
    return lambda said, problem: check(said, problem.gold, problem.metadata, form=FORMS[space])


def text(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]


def right_after(arms: Sequence[Arm], stage: int) -> list[dict[str, float]]:
    return [
        {group[0].problem.id: float(right[stage]) for group, right in zip(arm.groups, arm.turns.right, strict=True)}
        for arm in arms
    ]


# Tables


def rounds_table(space: Space, arms: Sequence[Arm]) -> Table:
    shown = Table(
        "round",
        "accuracy",
        "95 %",
        "cumulative",
        "drift",
        "no answer",
        "margin, nats",
        title=f"{space}: means over seeds",
    )
    seen = [arm.turns for arm in arms]
    for k in range(ROUNDS + 1):
        right = mean_over_problems(np.mean([t.right[:, k] for t in seen], axis=0))
        margins = [
            margin
            for arm in arms
            for group in arm.groups
            if k < len(group) and (margin := group[k].trajectory.metadata.get("margin")) is not None
        ]
        shown.add_row(
            str(k),
            f"{right.value:.3f}",
            f"[{right.low:.3f}, {right.high:.3f}]",
            f"{np.mean([t.cumulative[k] for t in seen]):.3f}",
            f"{np.mean([t.drift[k] for t in seen]):.3f}",
            f"{np.mean([t.answers[:, k] == None for t in seen]):.3f}",  # noqa: E711 -- element by element
            f"{np.mean(margins):.2f}" if margins else "",
        )
    return shown


def rates_table(arms: dict[Space, list[Arm]]) -> Table:
    shown = Table(
        "space", "C->I", "I->C", "flips", "inertia", "stop after", "full windows", title="All rounds, all seeds"
    )
    for space, each in arms.items():
        seen = [arm.turns for arm in each]
        lost, mended = (flip_rate(seen, was) for was in (True, False))
        short = np.mean([len(group) <= ROUNDS for arm in each for group in arm.groups])
        shown.add_row(
            space,
            said(lost),
            said(mended),
            f"{np.mean([t.flipped for t in seen]):.3f}",
            f"{np.mean([t.inertia for t in seen]):.3f}",
            str(int(np.mean([t.accuracy for t in seen], axis=0).argmax())),
            f"{short:.2f}",
        )
    return shown


def flip_rate(seen: Sequence[Turns], was: bool) -> Estimate | None:
    """Of answers that were right (or wrong), the share that flips by the next round; interval over problems."""
    before = np.stack([t.right[:, :-1] == was for t in seen])  # (seeds, problems, rounds)
    after = np.stack([t.right[:, 1:] != was for t in seen])
    could, did = before.sum(axis=(0, 2)), (before & after).sum(axis=(0, 2))
    return ratio(did[could > 0], could[could > 0]) if could.any() else None


def said(estimate: Estimate | None) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate else "none"


def cost_table(engine: Engine, arms: dict[Space, list[Arm]]) -> Table:
    shown = Table(
        "space", "tokens", "prompt tokens", "calls", "seconds", "last answer", "maj@k", "pass@k",
        title="A problem's cost, means; beside plain samples at as many sampled tokens",
    )  # fmt: skip
    for space, each in arms.items():
        first = each[0]
        problems = [group[0].problem for group in first.groups]
        whole = [group[-1].trajectory for arm in each for group in arm.groups]  # of the last answer: all that led to it
        tokens = float(np.mean([t.sampled_tokens for t in whole]))
        beside = at_tokens(plain(engine, problems, grade(space), tokens, max_tokens=96), tokens, maj=vote)
        shown.add_row(
            space,
            f"{tokens:.0f}",
            f"{np.mean([t.prompt_tokens for t in whole]):.0f}",
            f"{np.mean([len(t.samples) for t in whole]):.1f}",
            f"{np.mean([arm.seconds for arm in each]) / len(problems):.2f}",
            f"{np.mean([arm.turns.accuracy[-1] for arm in each]):.3f}",
            f"{np.mean(beside['maj']):.3f}",
            f"{np.mean(beside['pass']):.3f}",
        )
    return shown
