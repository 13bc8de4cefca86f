"""Does a policy learn to verify what its programs print, and do rounds of correction make its answers better?

Claims of Gao et al. 2024 (arXiv 2410.10735), on chains of arithmetic that are answered by Python programs in the
sandbox. The arms learn from the same scripted teacher: with a verification behind each output, without one (the verdict
alone), and right programs alone, in a single round. Each arm has the learning rate with which phase 1 is best on dev
problems. One more arm learns from the teacher alone, in as many optimizer steps as phase 2 of the method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.methods.cosc import by_round, chains
from selfimprove.report.curve import samples_of
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, Result, difference, gated, overall
from selfimprove.studies.arms import RATE, arms_table, rate_of, rows_of, run_arms, tuned
from selfimprove.studies.solving import ByProblem, Groups, Solver, estimated, solved
from selfimprove.studies.staged import (
    answered,
    answers_of,
    bounded,
    chosen_rates,
    heldout_attempts,
    heldout_problems,
    minus,
    percent_of,
    policy_of,
)
from selfimprove.tools.python import Python, python
from selfimprove.verify.answers import last, vote

COMMAND = "selfimprove study cosc"
SINGLE = [
    "method.stages.seed.generate.rounds=1",
    "method.stages.self.generate.rounds=1",
    "method.evaluate.rounds=1",
    "method.tools.teacher.bugs=[0]",
    "method.tools.teacher.checks=false",
]
OWN, NO_CHECK, ALONE, STEPS = "cosc", "no verification", "single round", "phase 1, as many steps"
ARMS = {OWN: [], NO_CHECK: ["method.tools.teacher.checks=false"], ALONE: SINGLE}
LEVELS = (5, 6)  # where the coder answers about seven of ten dev problems
RATES = (1e-3, 3e-3)
EPOCHS = 6
MAX_TOKENS = 160
GATE = 0.9  # share of outputs that have to be followed by a verdict, else the policy has not learnt the form

Arms = Mapping[str, Sequence[Result]]
Scores = Mapping[str, Sequence[ByProblem]]
Bounded = tuple[str, Estimate, float, str]  # a claim, its figure, the bound that the figure has to exceed, the control


def study(lab: Lab) -> Iterator[Claim]:
    with closing(python(chars=200)) as tool:
        yield from claims(lab, tool)


def claims(lab: Lab, tool: Python) -> Iterator[Claim]:
    solver: Solver = partial(
        by_round, rounds=3, answer="The answer is {output}.", rejects="Verdict: incorrect", tools={"python": tool}
    )
    runs, epochs = trained(lab, solver)
    final = {arm: [answered(r) for r in found] for arm, found in runs.items()}
    responses = [heldout_attempts(r) for r in runs[OWN]]
    phase_1 = [after_phase_1(r, solver) for r in runs[OWN]]
    lab.note(table(runs, overall(phase_1)))
    found = list(rounds_and_phases(runs, responses, final, phase_1, epochs))
    if not lab.quick:
        found += other_arms(runs, final, tool)
    lines = [bounded(*line, COMMAND) for line in found]
    said = [rejected is not None for groups in responses for _, _, rejected in outputs(groups)]
    written = float(np.mean(said)) if said else 0.0
    why = f"{written:.0%} of outputs are followed by a verdict, of {GATE:.0%} needed"
    yield from gated(lines, written >= GATE, why)


def trained(lab: Lab, solver: Solver) -> tuple[Arms, int]:
    """The finished runs of each arm, and how many epochs the arm of phase 1 alone takes for as many steps."""
    taught, train, dev, heldout = (60, 20, 20, 30) if lab.quick else (500, 150, 200, 250)
    phase_1 = ["method=cosc", "rounds=1", f"dataset.levels={list(LEVELS)}"]
    phase_1 += [f"dataset.train_size={max(taught, train)}", f"method.stages.seed.problems.count={taught}"]
    some = "+method.stages.self.problems"
    phase_2 = [f"{some}._target_=selfimprove.datasets.passes.drawn", f"{some}.count={train}"]
    arms = {OWN: ARMS[OWN]} if lab.quick else ARMS
    alone = [*phase_1, "~method.stages.self"]
    once = {arm: [word for word in own if "stages.self" not in word] for arm, own in arms.items()}
    epochs_1 = f"method.train.epochs={EPOCHS}"
    rates = RATES[:1] if lab.quick else RATES
    chosen = chosen_rates(lab, [*alone, epochs_1], once, rates, solver, last, dev, LEVELS)
    size = f"dataset.heldout_size={heldout}"
    runs = run_arms(lab, [*phase_1, *phase_2, epochs_1, size], tuned(arms, chosen))
    epochs = round(EPOCHS * rows_of(runs[OWN]) / taught)
    longer = [f"{RATE}={chosen[OWN]}", size, f"method.train.epochs={epochs}"]
    return {**runs, STEPS: lab.over_seeds(*alone, *longer)}, epochs


def after_phase_1(result: Result, solver: Solver) -> ByProblem:
    """Which held-out problems the policy solves after phase 1 of a run."""
    path = result.path / "rounds/000.0_seed/policy"
    return solved(answers_of(path, heldout_problems(result), solver, max_tokens=MAX_TOKENS), last)


def rounds_and_phases(
    runs: Arms, responses: Sequence[Groups], final: Scores, phase_1: Sequence[ByProblem], epochs: int
) -> Iterator[Bounded]:
    """What is claimed of a response's rounds and of the method's phases."""
    first = [at_round(r, 1) for r in runs[OWN]]
    text = "answers are right more often than what the first program prints"
    yield text, difference(final[OWN], first), 0.0, "first programs of the same responses"
    text = "wrong outputs are called incorrect more often than right ones, by at least .4"
    yield text, estimated(gap, responses), 0.4, "right outputs"
    yield "phase 2 answers better than phase 1", difference(final[OWN], phase_1), 0.0, "the policy after phase 1"
    control = f"{epochs} epochs of the teacher's rows"
    yield "and better than phase 1 in as many steps", difference(final[OWN], final[STEPS]), 0.0, control


def other_arms(runs: Arms, final: Scores, tool: Python) -> Iterator[Bounded]:
    """What is claimed against policies that learnt no verification, or a single round."""
    gains = {
        arm: [minus(f, at_round(r, 1)) for f, r in zip(final[arm], runs[arm], strict=True)] for arm in (OWN, NO_CHECK)
    }
    text = "rounds gain more with a verification than without"
    yield text, difference(gains[OWN], gains[NO_CHECK]), 0.0, "the verdict alone, as many rows"
    text = "answers are better than by learning right programs alone"
    yield text, difference(final[OWN], final[ALONE]), 0.0, "a single round, which costs less"
    n = max(3, round(tokens(runs[OWN]) / tokens(runs[ALONE])))
    single = [solved(sampled(r, n, tool, seed), vote) for seed, r in enumerate(runs[ALONE])]
    text = f"answers are better than the majority of {n} single rounds"
    yield text, difference(final[OWN], single), 0.0, "a single round, as many tokens or more"


def outputs(groups: Groups) -> list[tuple[int, bool, bool | None]]:
    """Of each output: the place of its problem, whether it is right, and whether it was rejected."""
    return [
        (i, a.verdict.status == "correct", a.trajectory.metadata["rejected"])
        for i, group in enumerate(groups)
        for a in group
        if a.trajectory.samples[-1].role == "tool"
    ]


def gap(groups: Groups, weights: np.ndarray) -> float:
    """P(rejected | a wrong output) - P(rejected | a right one), over the outputs of all rounds."""
    shares = []
    for is_right in (False, True):
        kind = [(weights[i], bool(rejected)) for i, right, rejected in outputs(groups) if right == is_right]
        total = sum(weight for weight, _ in kind)
        shares.append(sum(weight for weight, rejected in kind if rejected) / total if total else 0.0)
    return float(shares[0] - shares[1])


def tokens(results: Sequence[Result]) -> float:
    """Tokens that the policy writes for a held-out problem, mean."""
    groups = [group for r in results for group in heldout_attempts(r)]
    samples = [s for group in groups for s in samples_of(a.trajectory for a in group) if s.role == "policy"]
    return sum(len(s.completion_ids) for s in samples) / len(groups)


def sampled(result: Result, n: int, tool: Python, seed: int) -> Groups:
    """n single rounds to each held-out problem, at temperature 1."""
    solver = partial(chains, n=n, rounds=1, tools={"python": tool}, temperature=1.0)
    return answers_of(policy_of(result), heldout_problems(result), solver, seed, MAX_TOKENS)


def table(runs: Arms, phase_1: float) -> Table:
    def rejected(results: Sequence[Result]) -> str:
        found = [o for r in results for o in outputs(heldout_attempts(r))]
        kinds = [[bool(rejected) for _, right, rejected in found if right == kind] for kind in (False, True)]
        return ", ".join(f"{np.mean(kind):.3f}" if kind else "none" for kind in kinds)

    base = overall([answered(r, "base") for r in next(iter(runs.values()))])
    return arms_table(
        f"Held-out, means over seeds; the coder before: {100 * base:.1f} %, after phase 1: {100 * phase_1:.1f} %",
        runs,
        {
            "first program": percent_of(partial(at_round, number=1)),
            "second": percent_of(partial(at_round, number=2)),
            "answer": percent_of(answered),
            "called incorrect: wrong, right": rejected,
            "rows": lambda rs: f"{rows_of(rs):.0f}",
            "tokens": lambda rs: f"{tokens(rs):.0f}",
            "learning rate": lambda rs: f"{rate_of(rs[0]):g}",
        },
    )


def at_round(result: Result, number: int) -> ByProblem:
    """What the program of a round prints; if there is none, that of the round before, or the answer."""
    found: ByProblem = {}
    for group in heldout_attempts(result):
        ran = [a for a in group if a.trajectory.metadata["stage"] <= number] or group[:1]
        found[group[0].problem.id] = float(ran[-1].verdict.status == "correct")
    return found
