"""Does feedback from the scores find more than as many samples without it? On a policy whose chances are known exactly,
and on the shipped model; and does a policy learn more from what the feedback found?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.datasets.arithmetic import load
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.report.statistics import Estimate, difference
from selfimprove.studies import (
    Claim,
    Lab,
    advantage,
    as_check,
    claim_above,
    claim_sign,
    claim_within,
    gain,
    measured,
    overall,
    signed,
)
from selfimprove.studies.arms import arms_table, learning_table
from selfimprove.studies.costs import tokens_of
from selfimprove.studies.feedback import (
    AFTER,
    GRADED,
    ITERATIONS,
    SPARSE,
    TEMPERATURE,
    N,
    by_score,
    chance,
    distance,
    feedback,
    flipped,
    margin,
    neighbours,
    scored,
    toy,
)
from selfimprove.studies.solving import Check, Groups, attempts, by_stage, grader, plain, solve, solved
from selfimprove.studies.tiny import shipped
from selfimprove.verify import arithmetic
from selfimprove.verify.answers import best

COMMAND = "selfimprove study iad"
FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4)  # p_flip
CALLS = f"best-of-{N * ITERATIONS}"
MARGIN = 0.05  # two arms within it are as good as each other

samples = partial(best_of_n, n=N * ITERATIONS, temperature=TEMPERATURE)


def study(lab: Lab) -> Iterator[Claim]:
    yield from map(as_check, scripted(lab))
    yield from tiny(lab)
    yield from trained(lab)


# The policy whose chances are known


def scripted(lab: Lab) -> Iterator[Claim]:
    problems, engine = toy(200 if lab.quick else 1200)
    solver = feedback(["model=other", "model.path=none"])

    def run(seed: int, check: Check = distance, **options: object) -> Groups:
        return attempts(problems, solve(partial(solver, **options), engine, problems, seed=seed, check=check), distance)

    bon = attempts(problems, solve(samples, engine, problems, seed=9), distance)
    real = run(0)
    shown, base = solved(real, best), solved(bon, best)

    exact = chance(AFTER, GRADED)
    share = difference([shown], [dict.fromkeys(shown, 0.0)])
    text = f"scripted policy: solved with feedback, {exact:.3f} by the closed form"
    yield measured(text, share.low <= exact <= share.high, share, "closed form", COMMAND)
    control = f"{CALLS}, the same calls; by the closed form {margin():+.3f}"
    yield claim_above("scripted policy: more than best-of-n", difference([shown], [base]), control, COMMAND)
    nothing = difference([solved(run(1, donors=neighbours(real)), best)], [base])
    text = "scripted policy: with another problem's feedback, as best-of-n"
    yield measured(text, not nothing.apart, nothing, "best-of-n", COMMAND)

    exactly, true = [margin(p_flip=p) for p in FLIPS], [margin(p_flip=p, oracle=True) for p in FLIPS]
    table = Table("p_flip", "measured", "exact", "exact, answer by the true scores", title="Scripted: IAD - best-of-n")
    for p_flip, both, feedback_alone in zip(FLIPS, exactly, true, strict=True):
        noisy = run(2, flipped(distance, p_flip, 2))
        gap = difference([solved(noisy, by_score)], [solved(scored(bon, flipped(distance, p_flip, 3)), by_score)])
        table.add_row(f"{p_flip}", signed(gap), f"{both:+.3f}", f"{feedback_alone:+.3f}")
    lab.note(table)
    for text, margins, control in (
        (
            f"scripted policy: the margin shrinks steadily as scores are flipped with p = {FLIPS}",
            exactly,
            "closed form; best-of-n has the same verifier",
        ),
        ("and as they are in the feedback alone", true, "closed form; both answer by the true scores"),
    ):
        text = f"{text}: {', '.join(f'{value:+.3f}' for value in margins)}"
        yield Claim(text, all(np.diff(margins) < 0), margins[-1] - margins[0], None, control, COMMAND)
    less = margin(SPARSE)
    text = f"scripted policy: the margin is smaller where a verifier only tells right from wrong: {less:+.3f}"
    yield Claim(text, less < margin(), less - margin(), None, f"graded scores, {margin():+.3f}", COMMAND)


# The shipped model

lines = grader(arithmetic.check, partial=True)  # 1 for a right answer, else the share of lines that are right
zero_one = grader(arithmetic.check)


def tiny(lab: Lab) -> Iterator[Claim]:
    problems = load(seed=0, train_size=0, heldout_size=20 if lab.quick else 200)
    engine, solver = shipped(max_batch=256), feedback(["model=tiny"])

    def run(seed: int, check: Check = lines, **options: object) -> Groups:
        return attempts(problems, solve(partial(solver, **options), engine, problems, seed=seed, check=check), lines)

    real = [run(seed) for seed in lab.seeds]
    tokens = float(np.mean([tokens_of([groups]) for groups in real]))
    arms = {
        "feedback": real,
        "random scores": [run(seed, blind=True) for seed in lab.seeds],
        "another problem's": [run(s, donors=neighbours(groups)) for s, groups in zip(lab.seeds, real, strict=True)],
        "right or wrong only": [run(seed, check=zero_one) for seed in lab.seeds],
        CALLS: [attempts(problems, solve(samples, engine, problems, seed=seed), lines) for seed in lab.seeds],
        "best-of-n, equal tokens": [
            plain(engine, problems, lines, tokens, seed=seed, temperature=TEMPERATURE) for seed in lab.seeds
        ],
    }
    right = {name: [solved(groups, best) for groups in runs] for name, runs in arms.items()}
    lab.note(_table(arms))
    for name, control in (
        (CALLS, "the same number of calls"),
        ("best-of-n, equal tokens", f"{tokens:.0f} sampled tokens a problem"),
        ("random scores", "a candidate chosen at random is shown as the best"),
    ):
        text = f"shipped model: feedback finds more than {name}"
        yield claim_above(text, difference(right["feedback"], right[name]), control, COMMAND)
    blind = difference(right["random scores"], right[CALLS])
    text = f"shipped model: with random scores, as best-of-n within {100 * MARGIN:.0f} points"
    yield claim_within(text, blind, MARGIN, "the same number of calls", COMMAND)

    gaps = [_noisy(lab, run, arms[CALLS], p_flip) for p_flip in FLIPS[::2]]
    values = [gap.value for gap in gaps]
    text = (
        f"shipped model: the margin shrinks as scores are flipped with p = {FLIPS[::2]}: {', '.join(map(signed, gaps))}"
    )
    control = "best-of-n, the same calls and verifier; yes or no needs intervals that are apart"
    falls = all(np.diff(values) < 0) and gaps[0].low > gaps[-1].high
    holds = True if falls else False if gaps[0].high < gaps[-1].low else None
    yield Claim(text, holds, values[-1] - values[0], None, control, COMMAND)


def _noisy(lab: Lab, run: Callable[..., Groups], plainly: Sequence[Groups], p_flip: float) -> Estimate:
    """How much more the method solves than plain samples, both by scores that are flipped with `p_flip`."""
    method = [run(seed, flipped(lines, p_flip, seed)) for seed in lab.seeds]
    control = [scored(g, flipped(lines, p_flip, seed + 100)) for seed, g in zip(lab.seeds, plainly, strict=True)]
    return difference([solved(groups, by_score) for groups in method], [solved(groups, by_score) for groups in control])


def _table(arms: Mapping[str, Sequence[Groups]]) -> Table:
    def along(runs: Sequence[Groups]) -> str:
        stages = by_stage(runs, best)
        return ", ".join(f"{100 * value:.1f}" for value in stages) if len(stages) > 1 else ""

    return arms_table(
        "Shipped model, held out",
        arms,
        {
            "solved, %": lambda runs: f"{100 * overall([solved(groups, best) for groups in runs]):.1f}",
            "after each iteration, %": along,
            "tokens a problem": lambda runs: f"{tokens_of(runs):.0f}",
        },
    )


# Training on what was found


def trained(lab: Lab) -> Iterator[Claim]:
    train, heldout, rounds = (20, 20, 1) if lab.quick else (150, 200, 2)
    size = [f"dataset.train_size={train}", f"dataset.heldout_size={heldout}"]
    graded = ["verifier=arithmetic", "verifier.partial=true"]
    method, rounds_word = "method=rejection_sampling", f"rounds={rounds}"
    fed = lab.over_seeds(method, "generate=iad", "generate.temperature=1.0", *graded, *size, rounds_word)
    plainly = lab.over_seeds(method, "method.generate.n=14", *size, rounds_word)
    lab.note(
        learning_table({"generate=iad": fed, "14 plain samples": plainly}, "Held out, means over seeds", "generate")
    )
    yield claim_above("training on what the feedback found raises accuracy", gain(fed), "start", fed[0].command)
    control = f"plain samples, about as many tokens: {gain(plainly).value:+.3f} over the start"
    text = "more than training on plain samples does"
    yield claim_sign(text, advantage(fed, plainly), control, plainly[0].command)
