"""Do two agents that evolve each other make harder questions and better answers, from no gold answer?

Claims of Xia et al. 2025 (arXiv 2511.16043), on chains of arithmetic that are answered by Python programs in the
sandbox. All arms have the same passes. They differ in the term for like questions, in the tool, or in the scaling by
ambiguity. Each has the learning rate that is best on dev after one round, with a seed that no comparison uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.errors import RunError
from selfimprove.generate.programs import chains
from selfimprove.methods.agent0 import proposal
from selfimprove.policy.models import PACKAGED
from selfimprove.report.statistics import Estimate, over_seeds
from selfimprove.studies import Claim, Lab, Result, advantage, difference, gain, measured
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import attempts, solve, solved
from selfimprove.studies.staged import DEV_SEED, GRADE, bounded
from selfimprove.studies.tiny import shipped
from selfimprove.tools.python import python
from selfimprove.types import Trajectory, Verdict
from selfimprove.verify.answers import vote

COMMAND = "selfimprove study agent0"
METHOD, REPEATED, BARE, PLAIN, STILL = (
    "Agent0", "no cluster term", "no tools", "no scaling by ambiguity", "a curriculum agent that does not learn"
)  # fmt: skip
ARMS = {
    METHOD: [],
    REPEATED: ["method.stages.curriculum.verifier.repeated=0"],
    BARE: ["method.stages.ask.verifier.turns=0"],
    PLAIN: ["method.stages.executor.filter.least=1", "method.stages.executor.filter.room=0"],
    STILL: ["~method.stages.curriculum"],
}
QUICK = [
    "method.stages.curriculum.parts=1",
    "method.stages.ask.problems.count=1",
    "method.stages.ask.verifier.n=4",
    "method.stages.executor.parts=1",
    "method.stages.executor.problems.count=4",
    "method.stages.executor.generate.n=4",
]
RATES = (1e-4, 3e-4)
BAND = (0.3, 0.8)
GATE = 0.9  # share of replies that have to be a question of the right form, else the words were not learnt
N = 10  # answers of the policy before, of which the majority is taken
FORM = re.compile(r"Start with \d+\.( (Add|Subtract|Multiply by) \d+\.)* What is the result\?")

Questions = list[tuple[str, float]]  # what the curriculum agent asked for, with s(x)


def study(lab: Lab) -> Iterator[Claim]:
    rounds, heldout = (2, 10) if lab.quick else (3, 100)
    common = ["method=agent0", f"dataset.heldout_size={heldout}", *(QUICK if lab.quick else [])]
    arms = {arm: ARMS[arm] for arm in (METHOD, REPEATED)} if lab.quick else ARMS
    runs = dict[str, list[Result]]()
    for arm, own in arms.items():
        try:
            chosen = RATES[0] if lab.quick else best_rate(lab, arm, [*common, *own])
            runs[arm] = lab.over_seeds(*common, *own, f"rounds={rounds}", f"method.train.learning_rate={chosen}")
        except RunError as problem:  # no question was in the band
            lab.note(f"{arm}: {problem}")
    lab.note(table(runs, rounds))
    yield from claims(lab, runs, rounds)


def best_rate(lab: Lab, arm: str, words: Sequence[str]) -> float:
    """The learning rate with which most of 100 dev problems are answered rightly after one round."""
    found = {}
    for rate in RATES:
        more = ["rounds=1", "dataset.dev_size=100", "eval.side=dev", f"seed={DEV_SEED}"]
        trial = lab.run(*words, *more, f"method.train.learning_rate={rate}")
        found[rate] = float(trial.summary["final"]["accuracy"])
    shown = ", ".join(f"{rate:g}: {100 * value:.1f} %" for rate, value in found.items())
    best = max(found, key=lambda rate: (found[rate], -rate))
    lab.note(f"{arm}: dev accuracy by learning rate: {shown}; chosen {best:g}")
    return best


def claims(lab: Lab, runs: Mapping[str, list[Result]], rounds: int) -> Iterator[Claim]:
    mine, last = runs[METHOD], rounds - 1
    written = float(np.mean(values(mine, 0, formed)))
    found = [stays(mine, rounds)]
    above: list[tuple[str, Estimate, str]] = [
        ("questions grow longer, in words", rise(mine, last), "round 1"),
        ("held-out accuracy rises", gain(mine), "the shipped policy"),
    ]
    if not lab.quick:
        voted = [majority(result, seed) for seed, result in enumerate(mine)]
        above.append((f"and above the majority of {N} answers", difference([r.heldout() for r in mine], voted),
                      "the shipped policy, ten times"))  # fmt: skip
    if STILL in runs:
        grown = over_seeds(lengths(mine, last) - lengths(runs[STILL], last))
        above.append(("questions are longer than those of a curriculum agent that does not learn", grown, STILL))
    if REPEATED in runs:
        kinds = over_seeds(values(mine, last, new) - 2 * values(runs[REPEATED], last, new))
        above.append(("at least twice as many templates with the cluster term", kinds, REPEATED))
    if BARE in runs:
        shares = over_seeds(values(mine, last, share) - values(runs[BARE], last, share))
        above += [("s of new questions is higher with tools", shares, BARE),
                  ("held-out accuracy is higher with tools", advantage(mine, runs[BARE]), BARE)]  # fmt: skip
    if PLAIN in runs:
        above.append(("held-out accuracy is higher with the scaling", advantage(mine, runs[PLAIN]), PLAIN))
    found += [bounded(claim, estimate, 0.0, control, COMMAND) for claim, estimate, control in above]
    for claim in found:
        if written >= GATE:
            yield claim
        else:
            why = f"cannot be tested here: {written:.0%} of replies are a question of the form, of {GATE:.0%} needed"
            yield Claim(claim.claim, None, why, None, claim.control, COMMAND)


def stays(runs: Sequence[Result], rounds: int) -> Claim:
    """The claim that the mean s of new questions is in the band, round by round; shown is the round nearest to an end
    of it, or farthest out."""
    low, high = BAND
    found = [over_seeds(values(runs, number, share)) for number in range(rounds)]
    worst = min(found, key=lambda e: min(e.value - low, high - e.value))
    inside = all(low < e.low and e.high < high for e in found)
    outside = any(e.high < low or e.low > high for e in found)
    said = f"mean s of new questions is between {low} and {high} in every round"
    return measured(said, True if inside else False if outside else None, worst, "", COMMAND)


# What was asked


def asked(result: Result, number: int) -> Questions:
    """The questions of a round's stage `ask`, with s(x); "" for a reply that was cut off."""
    folder = next(result.path.glob(f"rounds/{number:03d}.*_ask"))
    replies = store.read_records(folder / "trajectories.parquet", Trajectory)
    verdicts = store.read_records(folder / "verdicts.parquet", Verdict)
    return [(proposal(t)[0], v.reward) for t, v in zip(replies, verdicts, strict=True)]


def values(runs: Sequence[Result], number: int, of: Callable[[Questions], list[float]]) -> np.ndarray:
    """A figure of each question of a round, shape (seeds, questions)."""
    return np.array([of(asked(result, number)) for result in runs], float)


def share(questions: Questions) -> list[float]:
    return [s for _, s in questions]


def formed(questions: Questions) -> list[float]:
    """Whether each question has the form that the executor knows."""
    return [float(FORM.fullmatch(text) is not None) for text, _ in questions]


def new(questions: Questions) -> list[float]:
    """Whether each question is the first with its template, which is the question without its numbers."""
    templates = [re.sub(r"\d+", "#", text) for text, _ in questions]
    return [float(template not in templates[:i]) for i, template in enumerate(templates)]


def lengths(runs: Sequence[Result], number: int) -> np.ndarray:
    return values(runs, number, lambda questions: [float(len(text.split())) for text, _ in questions])


def rise(runs: Sequence[Result], last: int) -> Estimate:
    """How many more words a question of the last round has than one of the first."""
    return over_seeds(lengths(runs, last) - lengths(runs, 0))


def majority(result: Result, seed: int) -> dict[str, float]:
    """Which held-out problems the majority of N answers of the shipped policy solves, at temperature 1."""
    problems = [group[0].problem for group in result.attempts(result.evaluation("base"))]
    tool = python(chars=200)
    solver = partial(chains, n=N, rounds=4, tools={"python": tool}, temperature=1.0)
    try:
        found = solve(solver, shipped(str(PACKAGED / "coder")), problems, seed=seed, max_tokens=160)
    finally:
        tool.close()
    return solved(attempts(problems, found, GRADE), vote)


def table(runs: Mapping[str, list[Result]], rounds: int) -> Table:
    def programs(result: Result, number: int) -> float:
        found = [
            len(trajectory.samples) - 1
            for folder in result.path.glob(f"rounds/{number:03d}.*_executor*")
            for trajectory in store.read_records(folder / "trajectories.parquet", Trajectory)
        ]
        return float(np.mean(found))

    def mean(of: Callable[[Questions], list[float]]) -> Callable[[tuple[int, list[Result]]], str]:
        return lambda row: f"{values(row[1], row[0], of).mean():.2f}"

    def heldout(row: tuple[int, list[Result]]) -> str:
        number, results = row
        return f"{100 * np.mean([r.summary['rounds'][number]['evaluation']['accuracy'] for r in results]):.1f} %"

    rows = {f"{arm}, round {i + 1}": (i, results) for arm, results in runs.items() for i in range(rounds)}
    before = np.mean([r.summary["base"]["accuracy"] for r in runs[METHOD]])
    return arms_table(
        f"New questions and held-out accuracy, means over seeds; the shipped policy: {100 * before:.1f} %",
        rows,
        {
            "s": mean(share),
            "of the form": mean(formed),
            "templates a question": mean(new),
            "words": lambda row: f"{lengths(row[1], row[0]).mean():.1f}",
            "programs an answer": lambda row: f"{np.mean([programs(r, row[0]) for r in row[1]]):.2f}",
            "held-out": heldout,
        },
    )
