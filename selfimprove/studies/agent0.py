"""Do two agents that evolve each other make harder questions and better answers, from no gold answer?

Claims of Xia et al. 2025 (arXiv 2511.16043), on chains of arithmetic that are answered by Python programs in the
sandbox. All arms have the same passes. They differ in the term for like questions, in the tool, or in the scaling by
ambiguity. Each has the learning rate that is best on dev after one round, with a seed that no comparison uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.datasets.calculations import read
from selfimprove.errors import RunError
from selfimprove.generate.programs import chains
from selfimprove.methods.agent0 import proposal
from selfimprove.policy.models import PACKAGED
from selfimprove.report.statistics import Estimate, over_seeds
from selfimprove.studies import Claim, Lab, Result, advantage, difference, gain, gated, measured
from selfimprove.studies.arms import RATE, Round, arms_table, each_round, evaluated
from selfimprove.studies.solving import solved
from selfimprove.studies.staged import DEV_SEED, answers_of, best_rate, bounded, heldout_problems, pass_folder, percent
from selfimprove.tools.python import python
from selfimprove.types import Problem, Trajectory, Verdict
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
Of = Callable[[Questions], list[float]]  # a figure of each question


def study(lab: Lab) -> Iterator[Claim]:
    rounds, heldout = (2, 10) if lab.quick else (3, 100)
    common = ["method=agent0", f"dataset.heldout_size={heldout}", *(QUICK if lab.quick else [])]
    arms = {arm: ARMS[arm] for arm in (METHOD, REPEATED)} if lab.quick else ARMS
    runs = dict[str, list[Result]]()
    for arm, own in arms.items():
        try:
            tried = RATES[:1] if lab.quick else RATES
            chosen = best_rate(lab, arm, tried, partial(on_dev, lab, [*common, *own]), "accuracy", percent)
            runs[arm] = lab.over_seeds(*common, *own, f"rounds={rounds}", f"{RATE}={chosen}")
        except RunError as problem:  # no question was in the band
            lab.note(f"{arm}: {problem}")
    lab.note(table(runs))
    yield from claims(lab, runs, rounds)


def on_dev(lab: Lab, words: Sequence[str], rate: float) -> float:
    """The share of 100 dev problems that are answered rightly after one round."""
    more = ["rounds=1", "dataset.dev_size=100", "eval.side=dev", f"seed={DEV_SEED}"]
    return float(lab.run(*words, *more, f"{RATE}={rate}").summary["final"]["accuracy"])


def claims(lab: Lab, runs: Mapping[str, list[Result]], rounds: int) -> Iterator[Claim]:
    mine, last = runs[METHOD], rounds - 1
    above = [("questions grow longer, in words", over(mine, last, length, mine, 0), "round 1"),
             ("held-out accuracy rises", gain(mine), "the shipped policy")]  # fmt: skip
    if not lab.quick:
        voted = [majority(result, seed) for seed, result in enumerate(mine)]
        more = difference([r.heldout() for r in mine], voted)
        above.append((f"and above the majority of {N} answers", more, "the shipped policy, ten times"))
    if STILL in runs:
        above.append(("questions are longer", over(mine, last, length, runs[STILL], last), STILL))
    if REPEATED in runs:
        kinds = over_seeds(values(mine, last, new) - 2 * values(runs[REPEATED], last, new))
        above.append(("at least twice as many templates with the cluster term", kinds, REPEATED))
    if BARE in runs:
        above += [("s of new questions is higher with tools", over(mine, last, share, runs[BARE], last), BARE),
                  ("held-out accuracy is higher with tools", advantage(mine, runs[BARE]), BARE)]  # fmt: skip
    if PLAIN in runs:
        above.append(("held-out accuracy is higher with the scaling", advantage(mine, runs[PLAIN]), PLAIN))
    found = [stays(mine, rounds), *(bounded(claim, e, 0.0, control, COMMAND) for claim, e, control in above)]
    written = float(np.mean(values(mine, 0, formed)))
    why = f"{written:.0%} of replies are a question of the form, of {GATE:.0%} needed"
    yield from gated(found, written >= GATE, why)


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
    folder = pass_folder(result, "ask", number)
    replies = store.read_records(folder / "trajectories.parquet", Trajectory)
    verdicts = store.read_records(folder / "verdicts.parquet", Verdict)
    return [(proposal(t)[0], v.reward) for t, v in zip(replies, verdicts, strict=True)]


def values(runs: Sequence[Result], number: int, of: Of) -> np.ndarray:
    """A figure of each question of a round, shape (seeds, questions)."""
    return np.array([of(asked(result, number)) for result in runs], float)


def over(runs: Sequence[Result], number: int, of: Of, others: Sequence[Result], then: int) -> Estimate:
    """How much higher a figure is than that of other runs, or of another round."""
    return over_seeds(values(runs, number, of) - values(others, then, of))


def share(questions: Questions) -> list[float]:
    return [s for _, s in questions]


def length(questions: Questions) -> list[float]:
    return [float(len(text.split())) for text, _ in questions]


def formed(questions: Questions) -> list[float]:
    """Whether each question has the form that the executor knows."""
    return [float(FORM.fullmatch(text) is not None) for text, _ in questions]


def new(questions: Questions) -> list[float]:
    """Whether each question is the first with its template, which is the question without its numbers."""
    templates = [re.sub(r"\d+", "#", text) for text, _ in questions]
    return [float(template not in templates[:i]) for i, template in enumerate(templates)]


def right(result: Result, number: int) -> float:
    """The share of a round's made problems whose label is the true answer; a text of another form has none."""
    file = pass_folder(result, "ask", number) / "made.parquet"
    made = [problem.metadata for problem in store.read_records(file, Problem)]
    true = [FORM.fullmatch(m["question"]) and str(read(m["question"]).answer) == m["label"] for m in made]
    return float(np.mean([bool(value) for value in true]))


def programs(result: Result, number: int) -> float:
    """Programs an answer, of the executor's answers that a round learns from."""
    folders = result.path.glob(f"rounds/{number:03d}.*_executor*")
    found = [t for folder in folders for t in store.read_records(folder / "trajectories.parquet", Trajectory)]
    return float(np.mean([len(trajectory.samples) - 1 for trajectory in found]))


def majority(result: Result, seed: int) -> dict[str, float]:
    """Which held-out problems the majority of N answers of the shipped policy solves, at temperature 1."""
    with closing(python(chars=200)) as tool:
        solver = partial(chains, n=N, rounds=4, tools={"python": tool}, temperature=1.0)
        return solved(answers_of(PACKAGED / "coder", heldout_problems(result), solver, seed, max_tokens=160), vote)


def table(runs: Mapping[str, list[Result]]) -> Table:
    def mean(of: Of) -> Callable[[Round], str]:
        return lambda row: f"{values(row[1], row[0], of).mean():.2f}"

    before = np.mean([r.summary["base"]["accuracy"] for r in runs[METHOD]])
    return arms_table(
        f"New questions and held-out accuracy, means over seeds; the shipped policy: {100 * before:.1f} %",
        each_round(runs),
        {
            "s": mean(share),
            "of the form": mean(formed),
            "templates a question": mean(new),
            "words": mean(length),
            "labels right": lambda row: f"{np.mean([right(r, row[0]) for r in row[1]]):.2f}",
            "programs an answer": lambda row: f"{np.mean([programs(r, row[0]) for r in row[1]]):.2f}",
            "held-out": lambda row: percent(evaluated(row, "accuracy")),
        },
    )
