"""Sharpening's claims: best-of-n by the policy's own probability, its amortisation by SFT, and the regression's optimum
on a policy over six outcomes, solved with the loss that training uses."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from selfimprove.methods.sharpening import bon
from selfimprove.report.metrics import paired_difference
from selfimprove.studies import Claim, Lab, Result, claim_above, difference
from selfimprove.train.residual import squared_residual
from selfimprove.types import Attempt
from selfimprove.verify.equality import canonical

FORMS = ("logprob", "mean_logprob", "majority")
CLEAR = (0.40, 0.20, 0.15, 0.12, 0.08, 0.05)  # the mode is well ahead
TIED = (0.300, 0.295, 0.15, 0.12, 0.085, 0.05)  # it is not


def study(lab: Lab) -> Iterator[Claim]:
    sizes = (1, 4, 16, 50)
    n, train, heldout = (4, 32, 12) if lab.quick else (16, 240, 80)
    shared = [
        "rounds=1",
        f"dataset.train_size={train}",
        f"dataset.heldout_size={heldout}",
        f"method.generate.n={n}",
    ]
    sft = lab.over_seeds("method=sharpening", *shared, f"eval.samples={sizes[-1]}")
    rlhf = lab.over_seeds("method=sharpening_rlhf", *shared, "eval.samples=16")
    star = lab.over_seeds("method=rejection_sampling", *shared, "eval.samples=16", "method.filter.per_problem=1")
    command, control = sft[0].command, "same samples, one of them"

    lab.note(_bon_table(sft, sizes))
    most = sizes[-1]
    for value in ("logprob", "correct"):
        table = {size: [_bon(r, "logprob", value, size) for r in sft] for size in sizes}
        means = [np.mean([np.mean(list(v.values())) for v in table[size]]) for size in sizes]
        steps = ", ".join(f"{mean:.3f}" for mean in means)
        label = "E log pi_base(y)" if value == "logprob" else "accuracy"
        rise = difference(table[most], table[1])
        claim = claim_above(f"{label} of best-of-N rises with N = {sizes}: {steps}", rise, control, command)
        yield (
            claim
            if all(np.diff(means) >= 0) or not claim.holds
            else Claim(claim.claim, None, claim.value, claim.interval, claim.control, claim.command)
        )

    base = [_sampled(r, "base") for r in sft]
    after = [_sampled(r, "last") for r in sft]
    gap = _overall([_bon(r, "logprob", "correct", most) for r in sft]) - _overall(base)
    moved = difference(after, base)
    share = f", {100 * moved.value / gap:.0f} % of the way to best-of-{most}" if gap > 0 else ""
    text = f"one SFT round raises the accuracy of samples, no gold answer read{share}"
    yield claim_above(text, moved, "samples of the base", command)
    learned = difference([_sampled(r, "last") for r in rlhf], [_sampled(r, "base") for r in rlhf])
    text = "one round of the RLHF form raises the accuracy of samples"
    yield claim_above(text, learned, "samples of the base", rlhf[0].command)
    gold = difference([_sampled(r, "last") for r in star], [_sampled(r, "base") for r in star])
    lab.note(_forms_table({"sharpening (sft)": sft, "sharpening (rlhf)": rlhf, "rejection sampling (gold)": star}))
    for name, estimate in lab.at_equal_tokens(sft).items():
        ends = f"95 % {estimate.low:.3f} to {estimate.high:.3f}"
        lab.note(f"base policy, {name} at equal sampled tokens: {estimate.value:.3f}, {ends}")
    behind = difference(after, [_sampled(r, "last") for r in star])
    for name, d in (("rejection sampling minus base", gold), ("sharpening (sft) minus rejection sampling", behind)):
        lab.note(f"accuracy of samples, {name}: {d.value:+.3f}, 95 % {d.low:+.3f} to {d.high:+.3f}")

    for right in (True, False):
        claimed = "better" if right else "worse"
        text = f"items whose most probable response is {'right' if right else 'wrong'} get {claimed}"
        yield _split(sft, right, text, command)

    for beta in (0.5, 0.1):
        tv = total_variation(optimum(CLEAR, beta), sharpened(CLEAR, beta))
        text = f"six outcomes, beta {beta}: the minimum of the RLHF form's loss is pi_base^(1 + 1/beta) (TV < .05)"
        yield Claim(text, tv < 0.05, tv, None, "closed form", "selfimprove study sharpening")
    clear, tied = optimum(CLEAR, 0.1)[0], optimum(TIED, 0.1)[0]
    best = 1 - (1 - TIED[0]) ** most
    text = "two modes nearly tied: the RLHF form leaves less than .95 on the first (beta .1)"
    other = f"modes apart: {clear:.2f}; tied, SFT form with N={most}: {best:.2f}"
    yield Claim(text, tied < 0.95 <= min(clear, best), tied, None, other, "selfimprove study sharpening")


# Held-out samples


def _groups(result: Result, folder: str) -> Iterator[list[Attempt]]:
    return result.attempts(result.evaluation(folder), "sampled")


def _sampled(result: Result, folder: str) -> dict[str, float]:
    """Held-out problem id -> share of its samples that are correct."""
    return {g[0].problem.id: _accuracy(g) for g in _groups(result, folder)}


def _accuracy(group: Sequence[Attempt]) -> float:
    return float(np.mean([a.verdict.status == "correct" for a in group]))


def _overall(runs: Sequence[dict[str, float]]) -> float:
    return float(np.mean([np.mean(list(run.values())) for run in runs]))


def rewards(group: Sequence[Attempt], form: str) -> list[float]:
    """The self-reward of each sample of the policy; a cut-off one is never the best."""
    if form == "majority":
        said = [canonical(a.verdict.extracted or "") for a in group]
        votes = Counter(answer for answer in said if answer is not None)
        found = [votes[answer] / len(group) if answer is not None else 0.0 for answer in said]
    else:
        samples = [a.trajectory.samples[-1] for a in group]
        found = [sum(s.logprobs) / (len(s.logprobs) if form == "mean_logprob" else 1) for s in samples]
    whole = [a.trajectory.samples[-1].finish == "stop" for a in group]
    return [reward if ended else -math.inf for reward, ended in zip(found, whole, strict=True)]


def _bon(result: Result, form: str, value: str, n: int) -> dict[str, float]:
    """Held-out problem id -> expected log-probability, or correctness, of the base's best of n."""
    found = {}
    for group in _groups(result, "base"):
        if value == "correct":
            values = [float(a.verdict.status == "correct") for a in group]
        else:
            values = [sum(a.trajectory.samples[-1].logprobs) for a in group]
        found[group[0].problem.id] = bon(rewards(group, form), values, n)
    return found


def _bon_table(results: Sequence[Result], sizes: Sequence[int]) -> Table:
    greedy = 100 * _overall([r.heldout("base") for r in results])
    table = Table(
        "self-reward", "figure", *(f"N={n}" for n in sizes), title=f"best-of-N, base policy; greedy: {greedy:.1f}"
    )
    for form in FORMS:
        accuracy = [100 * _overall([_bon(r, form, "correct", n) for r in results]) for n in sizes]
        log_p = [_overall([_bon(r, form, "logprob", n) for r in results]) for n in sizes]
        table.add_row(form, "accuracy, %", *(f"{value:.1f}" for value in accuracy))
        table.add_row("", "E log pi_base(y)", *(f"{value:.2f}" for value in log_p))
    return table


def _forms_table(arms: dict[str, list[Result]]) -> Table:
    table = Table(
        "arm", "samples: base", "after", "greedy: base", "after", title="held-out accuracy, %, means over seeds"
    )
    for arm, results in arms.items():
        sampled = [_overall([_sampled(r, folder) for r in results]) for folder in ("base", "last")]
        greedy = [_overall([r.heldout(folder) for r in results]) for folder in ("base", "last")]
        table.add_row(arm, *(f"{100 * value:.1f}" for value in (*sampled, *greedy)))
    return table


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
    if not changes:
        return Claim(text, None, "no such item", None, "the same items before", command)
    values = [float(np.mean(change)) for change in changes.values()]
    change = paired_difference([0.0] * len(values), values)
    holds = change.low > 0 if right else change.high < 0
    claim, interval = f"{text} ({change.n} items)", (change.low, change.high)
    return Claim(claim, holds, change.value, interval, "the same items before", command)


# Six outcomes


def sharpened(base: Sequence[float], beta: float) -> list[float]:
    """pi_base^(1 + 1/beta), normalised."""
    powers = [p ** (1 + 1 / beta) for p in base]
    return [power / sum(powers) for power in powers]


def optimum(base: Sequence[float], beta: float) -> list[float]:
    """The softmax policy that minimises the expected loss of the RLHF form over pairs of `base`, with r = log base."""
    import torch

    p = torch.tensor(base, dtype=torch.float64)
    logits = p.log().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        ratio, reward = logits.log_softmax(0) - p.log(), p.log()
        each = squared_residual(ratio[:, None], ratio[None], reward[:, None] - reward[None], beta)
        total: torch.Tensor = (p[:, None] * p[None] * each).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found: list[float] = logits.detach().softmax(0).tolist()
    return found


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2
