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
from selfimprove.methods.dser import generate, review_rates, right_after, solutions_of, stationary, stopped, vote_right
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.curve import curve, final
from selfimprove.report.statistics import mean_over_problems, paired_difference
from selfimprove.studies import Claim, Lab, Result, advantage, as_check, claim_above, claim_sign, gain
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import Groups, at_tokens, attempts, grader, plain, solve, solved, traces
from selfimprove.studies.staged import between
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify import arithmetic
from selfimprove.verify.answers import stage, vote
from selfimprove.verify.text import exact

COMMAND = "selfimprove study dser"
RATES = (0.05, 0.1, 0.2, 0.3, 0.4)
HORIZON = 10  # iterations, of the paper's window too
VOTERS = 15
MARGIN = 0.05  # of an accuracy that is as predicted


def study(lab: Lab) -> Iterator[Claim]:
    yield from map(as_check, closed_forms(lab))
    yield from map(as_check, early_stop(lab))
    yield from tiny(lab)
    yield from training(lab)


def critique(name: str) -> Critique:
    """A choice of conf/critique/."""
    return Critique(**yaml.safe_load((CONF / "critique" / f"{name}.yaml").read_text(encoding="utf-8")))


# Chains of set probabilities


def scripted(count: int, chains: int, iterations: int, seed: int = 0, start: float = 0.5, **rates: float) -> Groups:
    """The chains of a policy whose refinements improve and degrade at set rates; wrong answers are one value."""
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(count)]
    engine = ScriptedEngine({str(p.prompt): "7" for p in problems}, start, **rates)  # type: ignore[arg-type]
    solver = partial(generate, critique=critique("default"), chains=chains, iterations=iterations, temperature=1.0)
    return attempts(problems, solve(solver, engine, problems, seed=seed), grader(exact))


def closed_forms(lab: Lab) -> Iterator[Claim]:
    problems = 8 if lab.quick else 100
    far: list[float] = []
    unlikely: list[float] = []
    wrong_way: list[str] = []
    shown = Table("p_IC", "p_CI", "pi_C", "P_10 formula", "P_10", "vote of 15", "binomial", title="Scripted chains")
    for p_ic in RATES:
        for p_ci in RATES:
            groups = scripted(problems, VOTERS, HORIZON, p_improve=p_ic, p_degrade=p_ci)
            p = right_after(HORIZON, 0.5, p_ic, p_ci)
            share = solutions_of(groups, VOTERS)[:, -1].mean()
            far.append(abs(share - p) / np.sqrt(p * (1 - p) / (problems * VOTERS)))
            votes = list(solved(groups, partial(vote, window=1)).values())
            expected = vote_right(p, VOTERS)
            unlikely.append(float(binomtest(int(sum(votes)), problems, expected).pvalue))
            if p_ic != p_ci and np.sign(np.mean(votes) - share) != np.sign(p_ic - p_ci):
                wrong_way.append(f"{p_ic}/{p_ci}")
            figures = (stationary(p_ic, p_ci), p, share, np.mean(votes), expected)
            shown.add_row(f"{p_ic:.3g}", f"{p_ci:.3g}", *(f"{figure:.3f}" for figure in figures))
    lab.note(shown)
    cells = len(RATES) ** 2
    uneven = cells - len(RATES)
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
    text = "a vote over chains gains where p_IC > p_CI, and loses where p_IC < p_CI"
    value = ", ".join([f"{uneven - len(wrong_way)} of {uneven} cells", *wrong_way])
    yield Claim(text, not wrong_way, value, None, "a single chain", COMMAND)


def early_stop(lab: Lab) -> Iterator[Claim]:
    problems, chains = (40, 6) if lab.quick else (300, 16)
    for fpr, better in ((0.6, "goes on"), (0.02, "stops")):
        groups = scripted(problems, chains, HORIZON, start=0.3, p_improve=0.3, p_degrade=0.1, tpr=0.9, fpr=fpr)
        ends = solutions_of(groups, chains)[:, -1].mean(axis=1)
        cut = stopped(groups, chains).mean(axis=1)
        before, after = (cut, ends) if better == "goes on" else (ends, cut)
        text = f"a chain that {better} is right more often where {fpr:.0%} of wrong solutions are verified"
        control = f"stopping at the first verified solution: {cut.mean():.3f}; going on: {ends.mean():.3f}"
        yield claim_above(text, paired_difference(before=before, after=after), control, COMMAND)


# The shipped model


def tiny(lab: Lab) -> Iterator[Claim]:
    size, chains = (24, 3) if lab.quick else (150, 8)
    problems = load(seed=0, train_size=0, dev_size=size, heldout_size=size)
    dev, heldout = problems[:size], problems[size:]
    engine, grade = shipped(max_batch=128), grader(arithmetic.check)
    ask = partial(generate, critique=critique("tiny"), temperature=0.6, max_tokens=96)

    once = attempts(dev, solve(partial(ask, chains=chains, iterations=1), engine, dev), grade)
    before, after = solutions_of(once, chains).transpose(1, 0, 2)
    start, p_ic, p_ci = float(before.mean()), float(after[~before].mean()), float((~after[before]).mean())
    groups = attempts(heldout, solve(partial(ask, chains=chains, iterations=HORIZON), engine, heldout), grade)
    shares = solutions_of(groups, chains)
    predicted = right_after(HORIZON, start, p_ic, p_ci)
    ends = shares[:, -1].mean(axis=1)
    end = mean_over_problems(ends)
    text = (
        f"one transition on dev problems predicts a chain's accuracy after {HORIZON} on held-out ones within 5 points"
    )
    control = f"predicted {predicted:.3f} from p_IC {p_ic:.3f}, p_CI {p_ci:.3f}, start {start:.3f}"
    yield between(text, end, predicted - MARGIN, predicted + MARGIN, control, COMMAND)
    columns = {
        "predicted": lambda n: f"{right_after(n, start, p_ic, p_ci):.3f}",
        "measured": lambda n: f"{shares[:, n].mean():.3f}",
    }
    rows = {str(n): n for n in range(shares.shape[1])}
    lab.note(arms_table("The shipped model: share of right solutions", rows, columns, "iteration"))

    steps = traces(groups, partial(vote, window=HORIZON))
    tokens = curve(steps)[-1]["tokens"]
    samples = plain(engine, heldout, grade, tokens, temperature=0.6, max_tokens=96)
    beside = at_tokens(samples, tokens, maj=vote)
    voted = [final(trace) for trace in steps]
    control = (
        f"dser {np.mean(voted):.3f}, majority {np.mean(beside['maj']):.3f}, any of them right "
        f"{np.mean(beside['pass']):.3f}; {tokens:.0f} sampled tokens a problem"
    )
    ahead = paired_difference(before=beside["maj"], after=voted)
    yield claim_sign(
        "the vote over chains beats the majority of plain samples of as many tokens", ahead, control, COMMAND
    )
    cut = [float(value) for value in stopped(groups, chains).mean(axis=1)]
    wrong, verified = review_rates(groups)
    text = "a chain of the shipped model that goes on is right more often than one that stops when verified"
    control = (
        f"stopping {np.mean(cut):.3f}; its verifier passes {verified:.3f} of right and {wrong:.3f} of wrong solutions"
    )
    yield claim_sign(text, paired_difference(before=cut, after=ends), control, COMMAND)


# What it finds, as training data


def training(lab: Lab) -> Iterator[Claim]:
    train, heldout, rounds = (24, 24, 1) if lab.quick else (200, 200, 2)
    size = [f"dataset.train_size={train}", f"dataset.heldout_size={heldout}", f"rounds={rounds}"]
    chains = ["generate=dser", "generate.chains=2", "generate.iterations=2", "generate.temperature=1.0"]
    thought = lab.over_seeds("method=rejection_sampling", *chains, *size)
    n = answers_worth(thought)
    sampled = lab.over_seeds("method=rejection_sampling", f"method.generate.n={n}", *size)
    yield claim_above("training on what the chains found gains", gain(thought), "start", thought[0].command)
    spent = [np.mean([r.sampled_tokens for r in runs]) for runs in (thought, sampled)]
    text = "more than training on plain samples of as many tokens"
    control = f"n={n} samples, gain {gain(sampled).value:+.3f}; sampled tokens {spent[0]:,.0f} and {spent[1]:,.0f}"
    yield claim_sign(text, advantage(thought, sampled), control, sampled[0].command)


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
