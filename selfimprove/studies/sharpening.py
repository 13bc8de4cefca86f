"""Sharpening's claims: best-of-n by the policy's own probability, its amortisation by SFT, and the regression's optimum
on a policy over six outcomes, solved with the loss that training uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.methods.sharpening import bon, optimum, sharpened, total_variation
from selfimprove.report.metrics import paired_difference
from selfimprove.studies import Claim, Lab, Result, as_check, claim_above, claim_sign, difference, overall, untestable
from selfimprove.studies.arms import arms_table, run_arms
from selfimprove.types import Attempt
from selfimprove.verify.equality import canonical

SIZES = (1, 4, 16, 50)  # N of best-of-N
FORMS = ("logprob", "mean_logprob", "majority")
ITEMS = 60  # the least for a claim about items of one kind
CLEAR = (0.40, 0.20, 0.15, 0.12, 0.08, 0.05)  # the mode is well ahead
TIED = (0.300, 0.295, 0.15, 0.12, 0.085, 0.05)  # it is not


def study(lab: Lab) -> Iterator[Claim]:
    n, train, heldout = (4, 32, 12) if lab.quick else (16, 240, 80)
    size = [f"dataset.train_size={train}", f"dataset.heldout_size={heldout}", f"method.generate.n={n}"]
    arms = run_arms(
        lab,
        ["rounds=1", *size],
        {
            "sharpening (sft)": ["method=sharpening", f"eval.samples={SIZES[-1]}"],
            "sharpening (rlhf)": ["method=sharpening_rlhf", "eval.samples=16"],
            "rejection sampling (gold)": [
                "method=rejection_sampling",
                "eval.samples=16",
                "method.filter.per_problem=1",
            ],
        },
    )
    sft, rlhf, star = arms.values()
    command, most = sft[0].command, SIZES[-1]

    lab.note(_bon_table(sft))
    for value, label in (("logprob", "E log pi_base(y)"), ("correct", "accuracy")):
        scores = {size: [_bon(r, "logprob", value, size) for r in sft] for size in SIZES}
        means = [overall(runs) for runs in scores.values()]
        text = f"{label} of best-of-N rises with N = {SIZES}: {', '.join(f'{mean:.3f}' for mean in means)}"
        claim = claim_above(text, difference(scores[most], scores[1]), "same samples, one of them", command)
        yield claim if all(np.diff(means) >= 0) or not claim.holds else replace(claim, holds=None)

    base, after = ([_sampled(r, folder) for r in sft] for folder in ("base", "last"))
    gap = overall([_bon(r, "logprob", "correct", most) for r in sft]) - overall(base)
    moved = difference(after, base)
    share = f", {100 * moved.value / gap:.0f} % of the way to best-of-{most}" if gap > 0 else ""
    text = f"one SFT round raises the accuracy of samples, no gold answer read{share}"
    yield claim_above(text, moved, "samples of the base", command)
    learned = difference([_sampled(r, "last") for r in rlhf], [_sampled(r, "base") for r in rlhf])
    text = "one round of the RLHF form raises the accuracy of samples"
    yield claim_above(text, learned, "samples of the base", rlhf[0].command)
    lab.note(_forms_table(arms))
    for name, estimate in lab.at_equal_tokens(sft).items():
        interval = f"95 % {estimate.low:.3f} to {estimate.high:.3f}"
        lab.note(f"base policy, {name} at equal sampled tokens: {estimate.value:.3f}, {interval}")
    gold = difference([_sampled(r, "last") for r in star], [_sampled(r, "base") for r in star])
    behind = difference(after, [_sampled(r, "last") for r in star])
    for name, d in (("rejection sampling minus base", gold), ("sharpening (sft) minus rejection sampling", behind)):
        lab.note(f"accuracy of samples, {name}: {d.value:+.3f}, 95 % {d.low:+.3f} to {d.high:+.3f}")
    for right, change in ((True, "right get better"), (False, "wrong get worse")):
        yield _split(sft, right, f"items whose most probable response is {change}", command)
    yield from map(as_check, six_outcomes(most))


def six_outcomes(most: int) -> Iterator[Claim]:
    """The optimum of the RLHF form on a policy over six outcomes; `most` is N of the SFT form beside it."""
    for beta in (0.5, 0.1):
        tv = total_variation(optimum(CLEAR, beta), sharpened(CLEAR, beta))
        text = f"six outcomes, beta {beta}: the minimum of the RLHF form's loss is pi_base^(1 + 1/beta) (TV < .05)"
        yield Claim(text, tv < 0.05, tv, None, "closed form", "selfimprove study sharpening")
    clear, tied = optimum(CLEAR, 0.1)[0], optimum(TIED, 0.1)[0]
    best = 1 - (1 - TIED[0]) ** most
    text = "two modes nearly tied: the RLHF form leaves less than .95 on the first (beta .1)"
    control = f"modes apart: {clear:.2f}; tied, SFT form with N={most}: {best:.2f}"
    yield Claim(text, tied < 0.95 <= min(clear, best), tied, None, control, "selfimprove study sharpening")


# Held-out samples


def _groups(result: Result, folder: str) -> Iterator[list[Attempt]]:
    return result.attempts(result.evaluation(folder), "sampled")


def _sampled(result: Result, folder: str) -> dict[str, float]:
    """Held-out problem id -> share of its samples that are correct."""
    return {g[0].problem.id: _accuracy(g) for g in _groups(result, folder)}


def _accuracy(group: Sequence[Attempt]) -> float:
    return float(np.mean([a.verdict.status == "correct" for a in group]))


def rewards(group: Sequence[Attempt], form: str) -> list[float]:
    """The self-reward of each sample of the policy; a cut-off one is never the best."""
    if form == "majority":
        answers = [canonical(a.verdict.extracted or "") for a in group]
        votes = Counter(answer for answer in answers if answer is not None)
        values = [votes[answer] / len(group) if answer is not None else 0.0 for answer in answers]
    else:
        samples = [a.trajectory.samples[-1] for a in group]
        values = [sum(s.logprobs) / (len(s.logprobs) if form == "mean_logprob" else 1) for s in samples]
    whole = [a.trajectory.samples[-1].finish == "stop" for a in group]
    return [value if ended else -math.inf for value, ended in zip(values, whole, strict=True)]


def _bon(result: Result, form: str, value: str, n: int) -> dict[str, float]:
    """Held-out problem id -> expected log-probability, or correctness, of the base's best of n."""
    best = {}
    for group in _groups(result, "base"):
        if value == "correct":
            values = [float(a.verdict.status == "correct") for a in group]
        else:
            values = [sum(a.trajectory.samples[-1].logprobs) for a in group]
        best[group[0].problem.id] = bon(rewards(group, form), values, n)
    return best


def _bon_table(results: Sequence[Result]) -> Table:
    greedy = 100 * overall([r.heldout("base") for r in results])
    columns = (f"N={n}" for n in SIZES)
    table = Table("self-reward", "figure", *columns, title=f"best-of-N, base policy; greedy: {greedy:.1f}")
    for form in FORMS:
        accuracy = [100 * overall([_bon(r, form, "correct", n) for r in results]) for n in SIZES]
        log_p = [overall([_bon(r, form, "logprob", n) for r in results]) for n in SIZES]
        table.add_row(form, "accuracy, %", *(f"{value:.1f}" for value in accuracy))
        table.add_row("", "E log pi_base(y)", *(f"{value:.2f}" for value in log_p))
    return table


def _forms_table(arms: Mapping[str, Sequence[Result]]) -> Table:
    def sampled(folder: str, runs: Sequence[Result]) -> str:
        return f"{100 * overall([_sampled(r, folder) for r in runs]):.1f}"

    def greedy(folder: str, runs: Sequence[Result]) -> str:
        return f"{100 * overall([r.heldout(folder) for r in runs]):.1f}"

    columns = {"samples: base": partial(sampled, "base"), "samples: after": partial(sampled, "last")}
    columns |= {"greedy: base": partial(greedy, "base"), "greedy: after": partial(greedy, "last")}
    return arms_table("held-out accuracy, %, means over seeds", arms, columns)


def _split(results: Sequence[Result], right: bool, text: str, command: str) -> Claim:
    """The change of sample accuracy on the items whose mode is right, or wrong.

    The mode is the most probable of one half of the base's samples, and the accuracy before that of the other half, so
    that the split does not choose what it compares.
    """
    changes: dict[str, list[float]] = {}  # problem -> one a seed
    for result in results:
        after = _sampled(result, "last")
        for group in _groups(result, "base"):
            half = len(group) // 2
            mode = max(zip(rewards(group[:half], "logprob"), group[:half], strict=True), key=lambda pair: pair[0])[1]
            if (mode.verdict.status == "correct") == right:
                name = group[0].problem.id
                changes.setdefault(name, []).append(after[name] - _accuracy(group[half:]))
    control = "the same items before"
    if len(changes) < ITEMS:
        return untestable(text, f"{len(changes)} such items of the {ITEMS} needed", control, command)
    values = [float(np.mean(change)) for change in changes.values()]
    change = paired_difference(before=[0.0] * len(values), after=values)
    return claim_sign(f"{text} ({change.n} items)", change, control, command, above=right)
