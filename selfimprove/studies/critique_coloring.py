"""Does criticism help on graph colouring, and what it says? A script of known rates, then a tiny model trained for it.

The paper's claims (Stechly et al. 2023, arXiv 2310.12397): a model that criticises its own colourings ends below its
first answers; with a sound verifier it does better, whatever the verifier says, and no better than plain samples of
which the verifier picks a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove import seeds
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.critique_coloring import Critic, Feedback, critic_alone, generate, self_critique
from selfimprove.policy import Engine
from selfimprove.policy.scripted import VERIFY, YES
from selfimprove.report.metrics import mean_over_problems
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Claim, Lab, as_check, claim_sign, claim_within, difference, measured, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.costs import Answers, cost, cost_table, timed
from selfimprove.studies.made import colourer
from selfimprove.studies.made.colourer import ACCEPT, LONGEST, REFUSE, RETRY
from selfimprove.studies.solving import ByProblem, grader, solve, solved
from selfimprove.studies.tiny import shipped
from selfimprove.types import Message, Problem, Trajectory
from selfimprove.verify.answers import best, last
from selfimprove.verify.colouring import check

COMMAND = "selfimprove study critique_coloring"
ROUNDS = 15
TEMPERATURE = 0.7
ARMS: dict[str, tuple[Critic, Feedback]] = {
    "direct": ("none", "pass"),
    "self-critique": ("self", "pass"),
    "verifier, pass/fail": ("verifier", "pass"),
    "verifier, first error": ("verifier", "first"),
    "verifier, all errors": ("verifier", "all"),
    "verifier, misleading": ("verifier", "misleading"),
}
VERIFIED = [name for name, (critic, _) in ARMS.items() if critic == "verifier"]
CONTROL = "samples, verifier picks"
VERIFY_PROMPT: list[Message] = [{"role": "user", "content": f"{{question}}\n{{solution}}\n{VERIFY}"}]
P, ACCEPT_RIGHT, ACCEPT_WRONG = 0.16, 0.02, 0.05  # of the script: GPT-4's first answers, and about its critic

graded = grader(check)


@dataclass(frozen=True)
class Arm(Answers):
    """One way of answering, one seed."""

    picks: bool  # whether a verifier says which answer is right; else the last one counts

    def success(self, rounds: int = ROUNDS) -> ByProblem:
        """Problem -> 1.0 if it is solved after so many rounds of criticism, success@k."""
        return solved([group[: rounds + 1] for group in self.groups], best if self.picks else last)

    @property
    def seen(self) -> float:
        """Share of problems with a right answer anywhere."""
        return overall([solved(self.groups, best)])

    @property
    def rejected(self) -> float:
        """Share of problems that had a right answer and did not end with one."""
        return self.seen - overall([self.success()])


def study(lab: Lab) -> Iterator[Claim]:
    yield from map(as_check, scripted(lab, copies=10 if lab.quick else 60))
    documents = 200 if lab.quick else colourer.DOCUMENTS
    made = colourer.make(lab.folder / "colourer", documents)  # made once; remove it to have it made again
    yield from trained(lab, shipped(made, max_length=colourer.WINDOW), size=3 if lab.quick else 60)


def run(
    engine: Engine, problems: Sequence[Problem], name: str, seed: int, accepted: str, longest: int = LONGEST
) -> Arm:
    """One arm; `accepted` is what the self-critic says of an answer that it accepts, `longest` a sample's limit."""
    # Each arm draws for itself: with shared seeds the script's arms would be alike by construction.
    options: dict[str, Any] = {"seed": seeds.derive(seed, name), "max_tokens": longest}
    if name == CONTROL:
        samples = partial(best_of_n, n=ROUNDS + 1, temperature=TEMPERATURE)
        answers = timed(samples, engine, problems, graded, **options)
    else:
        critic, feedback = ARMS[name]
        solver = partial(generate, critic=critic, feedback=feedback, rounds=ROUNDS, **talk(accepted))
        answers = timed(solver, engine, problems, graded, asks=True, **options)
    return Arm(answers.groups, answers.seconds, picks=name == CONTROL or name in VERIFIED)


def talk(accepted: str) -> dict[str, Any]:
    """How the method's solver is spoken to."""
    return {"verify": VERIFY_PROMPT, "accept": accepted, "refuse": REFUSE, "retry": RETRY, "temperature": TEMPERATURE}


# The script: a policy that draws every answer afresh


def scripted(lab: Lab, copies: int) -> Iterator[Claim]:
    """Every arm against its closed form, of a policy whose answers are independent whatever it is told."""
    problems, engine = colourer.script(copies, P, ACCEPT_RIGHT, ACCEPT_WRONG)
    arms = {name: [run(engine, problems, name, 0, YES)] for name in (*ARMS, CONTROL)}
    rates = f"its critic accepts {ACCEPT_RIGHT} of right and {ACCEPT_WRONG} of wrong answers"
    lab.note(success_table(f"Script: right with p = {P}, {rates}", arms))
    truth = {"direct": P, "self-critique": self_critique(P, ACCEPT_RIGHT, ACCEPT_WRONG, ROUNDS)}
    for name, (arm,) in arms.items():
        expected = truth.get(name, 1 - (1 - P) ** (ROUNDS + 1))
        share = mean_over_problems(list(arm.success().values()))
        text = f"scripted: {name}: success@{ROUNDS} is the closed form's {expected:.3f}"
        yield measured(text, share.low <= expected <= share.high, share, "closed form", COMMAND)
    for name in VERIFIED:
        change = gap(arms, name, CONTROL)
        text = f"scripted: {name} is no better than independent samples"
        yield measured(text, not change.apart, change, CONTROL, COMMAND)
    for text, name, other in (
        ("scripted: self-critique ends below the first answers", "self-critique", "direct"),
        ("scripted: the first answers are below a sound verifier", "direct", VERIFIED[0]),
    ):
        yield claim_sign(text, gap(arms, name, other), "the other", COMMAND, above=False)


def gap(arms: Mapping[str, Sequence[Arm]], name: str, other: str) -> Estimate:
    """How much more of the problems one arm solves than another."""
    return difference([a.success() for a in arms[name]], [a.success() for a in arms[other]])


# A tiny model


def trained(lab: Lab, engine: Engine, size: int) -> Iterator[Claim]:
    """The same arms with a model that learnt to colour, to criticise, and to mend what it is told."""
    problems = colourer.graphs(size)
    longest = 24 if lab.quick else LONGEST  # the quick model has not learnt to end its answers
    one = partial(run, engine, problems, accepted=ACCEPT, longest=longest)
    arms = {name: [one(name, seed) for seed in lab.seeds] for name in (*ARMS, CONTROL)}
    lab.note(success_table("A model of a million parameters, means over seeds", arms))
    sampling = {"temperature": TEMPERATURE, "max_tokens": longest}
    # The last critique of a self-critic that accepts is in no trajectory and is not counted.
    costs = {n: cost(engine, arm, graded, separate=n == CONTROL, **sampling) for n, arm in arms.items()}
    lab.note(cost_table(costs, {n: overall([a.success() for a in arm]) for n, arm in arms.items()}, "success"))
    alone = partial(critic_alone, verify=VERIFY_PROMPT, accept=ACCEPT, temperature=TEMPERATURE)
    critics = [solve(alone, engine, problems, seed=seed, max_tokens=longest) for seed in lab.seeds]
    lab.note(critic_table([pair for replies in critics for pair in zip(problems, replies, strict=True)]))

    first = VERIFIED[0]
    for text, name, other, above in (
        ("trained: self-critique ends below the first answers", "self-critique", "direct", False),
        ("trained: a sound verifier is above the first answers", first, "direct", True),
    ):
        yield claim_sign(text, gap(arms, name, other), other, COMMAND, above)
    for name in VERIFIED[1:]:
        text = f"trained: {name}: what is said makes no difference of more than 0.1"
        yield claim_within(text, gap(arms, name, first), 0.1, first, COMMAND)
    for name in VERIFIED:
        text = f"trained: {name} is no better than independent samples"
        yield claim_sign(text, gap(arms, name, CONTROL), CONTROL, COMMAND, above=False)


# Tables


def success_table(title: str, arms: Mapping[str, Sequence[Arm]]) -> Table:
    def success(rounds: int, arm: Sequence[Arm]) -> str:
        return f"{overall([a.success(rounds) for a in arm]):.3f}"

    columns: dict[str, Callable[[Sequence[Arm]], str]]
    columns = {f"success@{k}": partial(success, k) for k in (0, 1, 3, 7, ROUNDS)}
    columns["seen"] = lambda arm: f"{np.mean([a.seen for a in arm]):.3f}"
    columns["rejected"] = lambda arm: f"{np.mean([a.rejected for a in arm]):.3f}"
    return arms_table(title, arms, columns)


def critic_table(replies: Sequence[tuple[Problem, list[Trajectory]]]) -> Table:
    """What the critic accepts of each kind of colouring, by whether it is right; and the edges it makes up."""
    columns = ("right", "accepted, right (TPR)", "accepted, wrong (FPR)", "edges named", "made up")
    table = Table("colourings", *columns, title="The critic alone")
    rows = [(graded(t.metadata["colouring"], p).status == "correct", t.metadata) for p, ts in replies for t in ts]
    for kind in (*dict.fromkeys(m["kind"] for _, m in rows), "all"):
        of_kind = [(right, m) for right, m in rows if kind in (m["kind"], "all")]
        accepted = {was: [m["accepted"] for right, m in of_kind if right is was] for was in (True, False)}
        named = sum(m["named"] for _, m in of_kind)
        table.add_row(
            kind,
            f"{len(accepted[True])} of {len(of_kind)}",
            *(f"{np.mean(values):.3f}" if values else "" for values in accepted.values()),
            str(named),
            f"{sum(m['hallucinated'] for _, m in of_kind) / named:.3f}" if named else "",
        )
    return table
