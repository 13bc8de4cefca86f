"""Does a chain of verify and refine converge as the theory says, and when is a vote over chains worth its tokens?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import yaml
from rich.table import Table
from scipy.stats import binomtest

from selfimprove.config import CONF
from selfimprove.datasets.arithmetic import load
from selfimprove.generate.critique import Critique
from selfimprove.methods.dser import generate, right_after, stationary, vote_right
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.report.curve import curve, final
from selfimprove.report.statistics import mean_over_problems, paired_difference
from selfimprove.studies import Claim, Lab, Result, advantage, claim_above, gain
from selfimprove.studies.solving import at_tokens, attempts, plain, right, solve, traces
from selfimprove.types import Attempt, Problem
from selfimprove.verify import Outcome, arithmetic
from selfimprove.verify.answers import stage, vote

COMMAND = "selfimprove study dser"
RATES = (0.05, 0.1, 0.2, 0.3, 0.4)
HORIZON = 10  # iterations, of the paper's window too
VOTERS = 15


def study(lab: Lab) -> Iterator[Claim]:
    yield from closed_forms(lab)
    yield from early_stop(lab)
    yield from tiny(lab)
    yield from training(lab)


def critique(name: str) -> Critique:
    """A choice of conf/critique/."""
    return Critique(**yaml.safe_load((CONF / "critique" / f"{name}.yaml").read_text(encoding="utf-8")))


# Chains of set probabilities


def scripted(
    problems: int, chains: int, iterations: int, seed: int = 0, start: float = 0.5, **rates: float
) -> list[list[Attempt]]:
    """The chains of a policy whose refinements improve and degrade at set rates; wrong answers are one value."""
    asked = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(problems)]
    gold = {str(p.prompt): "7" for p in asked}
    engine = ScriptedEngine(gold, start, **rates)  # type: ignore[arg-type]
    solver = partial(generate, critique=critique("default"), chains=chains, iterations=iterations, temperature=1.0)
    return attempts(asked, solve(solver, engine, asked, seed=seed), stated)


def stated(text: str, problem: Problem) -> Outcome:
    """The check of scripted answers."""
    said = text.removeprefix(ANSWER)
    return Outcome("correct" if said == problem.gold else "wrong", float(said == problem.gold), said)


def table_of(groups: Sequence[Sequence[Attempt]], chains: int) -> np.ndarray:
    """Which solutions are right, (problems, stages, chains)."""
    return np.array([right(group) for group in groups]).reshape(len(groups), -1, chains)


def closed_forms(lab: Lab) -> Iterator[Claim]:
    problems = 20 if lab.quick else 100
    far: list[float] = []
    unlikely: list[float] = []
    wrong_way: list[str] = []
    shown = Table("p_IC", "p_CI", "pi_C", "P_10 formula", "P_10", "vote of 15", "binomial", title="Scripted chains")
    for p_ic in RATES:
        for p_ci in RATES:
            groups = scripted(problems, VOTERS, HORIZON, p_improve=p_ic, p_degrade=p_ci)
            p = right_after(HORIZON, 0.5, p_ic, p_ci)
            chains = table_of(groups, VOTERS)
            found = chains[:, -1].mean()
            far.append(abs(found - p) / np.sqrt(p * (1 - p) / (problems * VOTERS)))
            ballots = [vote(group, window=1) for group in groups]
            solved = [i is not None and right(g)[i] for g, i in zip(groups, ballots, strict=True)]
            expected = vote_right(p, VOTERS)
            unlikely.append(float(binomtest(sum(solved), problems, expected).pvalue))
            if p_ic != p_ci and np.sign(np.mean(solved) - found) != np.sign(p_ic - p_ci):
                wrong_way.append(f"{p_ic}/{p_ci}")
            shown.add_row(
                *(f"{value:.3g}" for value in (p_ic, p_ci)),
                *(f"{value:.3f}" for value in (stationary(p_ic, p_ci), p, found, np.mean(solved), expected)),
            )
    lab.note(shown)
    cells = len(RATES) ** 2
    yield Claim(
        f"the share of right solutions after {HORIZON} iterations is the Markov formula's, within 3 standard errors",
        bool(max(far) <= 3),
        f"{sum(z <= 3 for z in far)} of {cells} cells; the worst is {max(far):.2f} away",
        None,
        f"p_IC, p_CI in {RATES}, {problems * VOTERS} chains each",
        COMMAND,
    )
    yield Claim(
        "and the accuracy of a vote over the chains is the binomial's",
        min(unlikely) * cells > 0.05,
        f"the least likely of {cells} cells has p = {min(unlikely):.3g}",
        None,
        f"exact test, {VOTERS} votes on each of {problems} problems; 0.05 over all cells is {0.05 / cells:.3g} in one",
        COMMAND,
    )
    yield Claim(
        "a vote over chains gains where p_IC > p_CI, and loses where p_IC < p_CI",
        not wrong_way,
        f"{cells - len(RATES) - len(wrong_way)} of {cells - len(RATES)} cells" + ", ".join(["", *wrong_way]),
        None,
        "a single chain",
        COMMAND,
    )


# Stopping at the first verified solution


def stopped(groups: Sequence[Sequence[Attempt]], chains: int) -> np.ndarray:
    """Whether each chain ends right, (problems, chains), if it stops at the first solution that it verified.

    A review is of the solution before it and changes nothing in what the chain does next, so that the chain that stops
    is this one, cut.
    """
    solutions = table_of(groups, chains)
    yes = np.array([[a.trajectory.metadata.get("verified") is True for a in group] for group in groups])
    yes = yes.reshape(len(groups), -1, chains)[:, 1:]  # of the solution at stages 0, 1, ...
    end = np.where(yes.any(axis=1), yes.argmax(axis=1), solutions.shape[1] - 1)
    return np.take_along_axis(solutions, end[:, None], axis=1)[:, 0]


def early_stop(lab: Lab) -> Iterator[Claim]:
    problems, chains = (60, 8) if lab.quick else (300, 16)
    for fpr, better in ((0.6, "goes on"), (0.02, "stops")):
        groups = scripted(problems, chains, HORIZON, start=0.3, p_improve=0.3, p_degrade=0.1, tpr=0.9, fpr=fpr)
        ends = table_of(groups, chains)[:, -1].mean(axis=1)
        cut = stopped(groups, chains).mean(axis=1)
        more = paired_difference(cut, ends) if better == "goes on" else paired_difference(ends, cut)
        yield claim_above(
            f"a chain that {better} is right more often where {fpr:.0%} of wrong solutions are verified",
            more,
            f"stopping at the first verified solution: {cut.mean():.3f}; going on: {ends.mean():.3f}",
            COMMAND,
        )


# The shipped model


def grade(text: str, problem: Problem) -> Outcome:
    return arithmetic.check(text, problem.gold, problem.metadata)


def tiny(lab: Lab) -> Iterator[Claim]:
    from selfimprove.policy.hf import TransformersEngine
    from selfimprove.policy.models import PACKAGED

    size, chains = (40, 4) if lab.quick else (150, 8)
    problems = load(seed=0, train_size=0, dev_size=size, heldout_size=size)
    dev, heldout = problems[:size], problems[size:]
    engine = TransformersEngine(str(PACKAGED / "tiny"), device="cpu", max_batch=128)
    asking = partial(generate, critique=critique("tiny"), temperature=0.6, max_tokens=96)

    once = attempts(dev, solve(partial(asking, chains=chains, iterations=1), engine, dev), grade)
    first = table_of(once, chains)
    before, after = first[:, 0], first[:, 1]
    p_ic, p_ci = float(after[~before].mean()), float((~after[before]).mean())
    groups = attempts(heldout, solve(partial(asking, chains=chains, iterations=HORIZON), engine, heldout), grade)
    shares = table_of(groups, chains)
    said = right_after(HORIZON, float(before.mean()), p_ic, p_ci)
    end = mean_over_problems(shares[:, -1].mean(axis=1))
    yield Claim(
        f"one transition on dev problems predicts a chain's accuracy after {HORIZON} on held-out ones within 5 points",
        abs(end.value - said) <= 0.05,
        end.value,
        (end.low, end.high),
        f"predicted {said:.3f} from p_IC {p_ic:.3f}, p_CI {p_ci:.3f}, start {before.mean():.3f}",
        COMMAND,
    )
    lab.note(per_stage(shares, float(before.mean()), p_ic, p_ci))

    steps = traces(groups, partial(vote, window=HORIZON))
    rows = curve(steps)
    samples = plain(engine, heldout, grade, rows[-1]["tokens"], temperature=0.6, max_tokens=96)
    beside = at_tokens(samples, rows[-1]["tokens"], maj=vote)
    mine = [final(trace) for trace in steps]
    ahead = paired_difference(beside["maj"], mine)
    yield Claim(
        "the vote over chains beats the majority of plain samples of as many tokens",
        None if ahead.low <= 0 <= ahead.high else ahead.value > 0,
        ahead.value,
        (ahead.low, ahead.high),
        f"dser {np.mean(mine):.3f}, majority {np.mean(beside['maj']):.3f}, any of them right "
        f"{np.mean(beside['pass']):.3f}; {rows[-1]['tokens']:.0f} sampled tokens a problem",
        COMMAND,
    )
    cut = [float(value) for value in stopped(groups, chains).mean(axis=1)]
    ends = shares[:, -1].mean(axis=1)
    more = paired_difference(cut, ends)
    wrong, verified = verdicts(groups)
    yield Claim(
        "a chain of the shipped model that goes on is right more often than one that stops when verified",
        None if more.low < 0 < more.high else more.value > 0,
        more.value,
        (more.low, more.high),
        f"stopping {np.mean(cut):.3f}; its verifier passes {verified:.3f} of right and {wrong:.3f} of wrong solutions",
        COMMAND,
    )


def verdicts(groups: Sequence[Sequence[Attempt]]) -> tuple[float, float]:
    """(false, true) positive rates of the reviews, over all iterations; an unreadable review passes nothing."""
    passed: dict[bool, list[bool]] = {False: [], True: []}
    for group in groups:
        known = {(a.trajectory.metadata["chain"], stage(a)): a.verdict.status == "correct" for a in group}
        for a in group:
            if n := stage(a):
                was = known[a.trajectory.metadata["chain"], n - 1]
                passed[was].append(a.trajectory.metadata["verified"] is True)
    return float(np.mean(passed[False])), float(np.mean(passed[True]))


def per_stage(shares: np.ndarray, start: float, p_ic: float, p_ci: float) -> Table:
    shown = Table("iteration", "predicted", "measured", title="The shipped model: share of right solutions")
    for n in range(shares.shape[1]):
        shown.add_row(str(n), f"{right_after(n, start, p_ic, p_ci):.3f}", f"{shares[:, n].mean():.3f}")
    return shown


# What it finds, as training data

CHAINS = ["generate=dser", "generate.chains=2", "generate.iterations=2", "generate.temperature=1.0"]


def training(lab: Lab) -> Iterator[Claim]:
    size = (
        ["dataset.train_size=24", "dataset.heldout_size=24", "rounds=1"]
        if lab.quick
        else ["dataset.train_size=200", "dataset.heldout_size=200", "rounds=2"]
    )
    thought = lab.over_seeds("method=rejection_sampling", *CHAINS, *size)
    n = answers_worth(thought)
    sampled = lab.over_seeds("method=rejection_sampling", f"method.generate.n={n}", *size)
    yield claim_above("training on what the chains found gains", gain(thought), "start", thought[0].command)
    ahead = advantage(thought, sampled)
    spent = [np.mean([r.sampled_tokens for r in runs]) for runs in (thought, sampled)]
    yield Claim(
        "more than training on plain samples of as many tokens",
        None if ahead.low < 0 < ahead.high else ahead.value > 0,
        ahead.value,
        (ahead.low, ahead.high),
        f"n={n} samples, gain {gain(sampled).value:+.3f}; sampled tokens {spent[0]:,.0f} and {spent[1]:,.0f}",
        sampled[0].command,
    )


def answers_worth(results: Sequence[Result]) -> int:
    """How many plain answers a training problem have the tokens that these runs sampled in a round."""
    rounds = [r for result in results for r in result.summary["rounds"]]
    groups = [
        [a.trajectory.sampled_tokens for a in group if not stage(a)]
        for result in results
        for folder in sorted(result.path.glob("rounds/*"))
        for group in result.attempts(folder)
    ]
    per_problem = float(sum(r["tokens"]["sampled"] for r in rounds)) / len(groups)
    return max(1, round(per_problem / float(np.mean([tokens for group in groups for tokens in group]))))
