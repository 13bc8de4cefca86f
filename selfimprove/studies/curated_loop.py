"""Curated self-consumption: the theory's predictions on an exact model, a flow over the plane, and text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from selfimprove import config
from selfimprove.datasets.draws import zipf
from selfimprove.methods.curated_loop import divergence, entropy, margins, simulated
from selfimprove.report.statistics import Estimate, accuracy, difference, over_seeds
from selfimprove.studies import Claim, Lab, Result, as_check, claim_above, claim_within, draws, gain, overall
from selfimprove.studies.arms import arms_table, run_arms
from selfimprove.studies.staged import below

K = 4
EXACT = "experiment=curated_categorical"
PLANE = "experiment=curated_points"
ARMS = {"K = 4": (), "half real": ("method.filter.lam=1",), "K = 1": ("method.generate.n=1",)}
ALPHA = 0.01  # a line about many rounds holds if its one Monte-Carlo p-value is at least this
FLAT = 0.1  # "flat": a change of less than this part of what picking changes
SIGMAS = 3.0  # of the flow's rounds, for which there is no exact loop to draw a p-value from


def study(lab: Lab) -> Iterator[Claim]:
    yield from exact(lab)
    yield from plane(lab)
    yield from text(lab)


# The exact model


def exact(lab: Lab) -> Iterator[Claim]:
    n, rounds = (300, 4) if lab.quick else (1000, 16)
    size = [EXACT, f"dataset.train_size={n}", "dataset.heldout_size=100", f"rounds={rounds}"]
    arms = run_arms(lab, size, {**ARMS, "dealt": ("control=shuffled_verdicts",)})
    weights = np.exp(np.array(config.read(arms["K = 4"][0].path / "config.yaml").dataset.verifier["rewards"], float))
    yield from map(as_check, followed(lab, arms, weights, rounds, n))
    yield from flat(lab, arms, weights, rounds, n)
    yield from converged(lab, arms, weights, n)

    columns: dict[str, Callable[[int], str]] = {}
    for name in ARMS:
        path = draws.paths(arms[name])[0]
        columns[f"{name}: E(e^r)"] = lambda t, path=path: f"{path[t] @ weights:.3f}"  # type: ignore[misc]
        columns[f"{name}: entropy"] = lambda t, path=path: f"{entropy(path[t]):.3f}"  # type: ignore[misc]
    rows = {str(t): t for t in range(rounds + 1)}
    lab.note(arms_table("Exact model: E(e^r) and entropy (seed 0)", rows, columns, "round"))


def followed(lab: Lab, arms: dict[str, list[Result]], weights: np.ndarray, rounds: int, n: int) -> Iterator[Claim]:
    """Whether runs move as the closed form says, up to the noise of fitting n draws."""
    loops = 50 if lab.quick else 600
    for name, arm, lam in (("no real data", "K = 4", None), ("half real data", "half real", 1.0)):
        runs = arms[arm]
        limit = simulated(zipf(), weights, K, lam, rounds, 0, 1)[0] @ weights
        loose = simulated(zipf(), weights, K, lam, rounds, n, loops)
        sigma = (loose @ weights).std(0)[1:]
        z = np.abs((draws.paths(runs) @ weights - limit)[:, 1:] / sigma)
        p = draws.chance(z.max(1), np.abs((loose @ weights - limit)[:, 1:] / sigma).max(1))
        yield Claim(
            f"exact, {name}: E(e^r) follows the K-candidate closed form in all rounds of all seeds",
            p >= ALPHA,
            f"largest |z| {z.max():.2f}, above 3 in {(z > 3).sum()} of {z.size} rounds; chance p = {p:.3f}",
            None,
            f"closed form; sigma and one p, at least {ALPHA}, from {loops} simulated loops of {n} draws",
            runs[0].command,
        )
        if lam is None:
            least = np.array([margins(path, weights, K, n) for path in draws.paths(runs)])
            p = draws.chance(-least.min(1), [-margins(path, weights, K, n).min() for path in loose])
            yield Claim(
                "exact: E_{t+1} >= E_t + (K-1)/K Var_t / e^r_max every round, up to the fit's noise",
                p >= ALPHA,
                f"holds outright in {(least >= 0).sum()} of {least.size} rounds; "
                f"least margin {least.min():.2f} sigma, chance p = {p:.3f}",
                None,
                f"the inequality, a theorem up to that noise; one p, at least {ALPHA}, from simulated loops",
                runs[0].command,
            )


def flat(lab: Lab, arms: dict[str, list[Result]], weights: np.ndarray, rounds: int, n: int) -> Iterator[Claim]:
    """Whether nothing moves, except by drift, if nobody picks."""
    start = zipf() @ weights
    picked = float((draws.paths(arms["half real"])[:, -1] @ weights).mean() - start)
    unpicked = simulated(zipf(), weights, 1, None, rounds, n, 50 if lab.quick else 600) @ weights
    for name, arm in (("K = 1", "K = 1"), ("picks dealt at random", "dealt")):
        runs = arms[arm]
        moved = float((draws.paths(runs)[:, -1] @ weights).mean() - start)
        drift = float(unpicked[:, -1].std()) / math.sqrt(len(runs))
        change = Estimate(moved, moved - 1.96 * drift, moved + 1.96 * drift, n)
        text = f"exact, {name}: E(e^r) changes by less than {FLAT} of its rise with half real data"
        control = f"start; interval of the drift of simulated loops; that rise is {picked:+.2f}"
        yield claim_within(text, change, FLAT * abs(picked), control, runs[0].command)


def converged(lab: Lab, arms: dict[str, list[Result]], weights: np.ndarray, n: int) -> Iterator[Claim]:
    """Where the loop ends: on the best outcome without real data, near the data with some."""
    free, half = arms["K = 4"], arms["half real"]
    real, last = zipf(), draws.paths(free)[:, -1]
    best = last[:, weights.argmax()]
    mass = accuracy(np.arange(n) < round(best.mean() * n))
    widest = max(map(entropy, last))
    holds = bool(best.min() > 0.99 and widest < 0.1)
    yield Claim(
        "exact, no real data: over 99 % of the mass ends on the best outcome and the entropy below 0.1 nats",
        None if lab.quick and not holds else holds,  # the rounds of the small form are too few to say no
        f"mass {mass.value:.4f}, entropy {widest:.3f} from {entropy(real):.2f} nats",
        (mass.low, mass.high),
        "start",
        free[0].command,
    )
    ends, command = draws.paths(half), half[0].command
    risen = (ends[:, -1] @ weights) - real @ weights
    text = "exact, half real data: E(e^r) ends above the start"
    yield draws.claim_mean(text, bool(risen.min() > 0), risen, "start", command)
    worst = max(divergence(real, p, n) for run in ends for p in run)
    text = "exact, half real data: KL(data || p_t) stays below log(1 + lambda)"
    control = f"log 2 = {math.log(2):.3f}; without real data it ends at {divergence(real, last[0], n):.2f}"
    yield Claim(text, worst < math.log(2), worst, None, control, command)
    late = np.array([[entropy(p) for p in run[len(run) // 2 :]] for run in ends])
    wide = float(np.ptp(late, axis=1).max())
    text = "exact, half real data: the entropy varies by less than 0.1 nats over the second half of the rounds"
    control = f"entropy at the end {late[:, -1].mean():.2f} nats, at the start {entropy(real):.2f}"
    yield Claim(text, wide < 0.1, wide, None, control, command)


# The flow


def plane(lab: Lab) -> Iterator[Claim]:
    n, rounds = (300, 2) if lab.quick else (1000, 8)
    size = [PLANE, f"dataset.train_size={n}", "dataset.heldout_size=400", f"rounds={rounds}"]
    free, half, one = run_arms(lab, size, ARMS).values()

    rose, part, still = (draws.weight_gains(runs) for runs in (free, half, one))
    control = f"K = 1, which moved by {over_seeds(still).value:+.3f}"
    for name, change, runs in (("K = 4", rose - still, free), ("half real data", part - still, half)):
        text = f"flow: E(e^r) of held-out draws rises, {name} above K = 1"
        yield claim_above(text, over_seeds(change), control, runs[0].command)
    picked = over_seeds(rose - still).value
    text = f"flow, K = 1: E(e^r) changes by less than {FLAT} of what K = 4 adds"
    yield claim_within(text, over_seeds(still), FLAT * abs(picked), f"start; K = 4 adds {picked:+.3f}", one[0].command)
    least = np.array([draws.flow_margins(r, K) for r in free])
    yield Claim(
        "flow: the inequality holds every round, up to 3 sigma of the draws' noise",
        bool(least.min() > -SIGMAS),
        f"least margin {least.min():.2f} sigma; outright in {(least >= 0).sum()} of {least.size} rounds",
        None,
        "the inequality, whose learner fits exactly: this one does not",
        free[0].command,
    )
    near, far, base = draws.plane_divergences(half), draws.plane_divergences(free), draws.base_divergence()
    text = "flow, half real data: KL(data || p_T) is at most log(1 + lambda) above the start's"
    control = f"start {base:.2f}; without real data {far.mean():.2f}"
    yield draws.claim_mean(text, bool(near.max() < base + math.log(2)), near, control, half[0].command)


# Text


def text(lab: Lab) -> Iterator[Claim]:
    train, heldout, rounds = (24, 20, 1) if lab.quick else (200, 150, 2)
    size = [f"dataset.train_size={train}", f"dataset.heldout_size={heldout}", f"rounds={rounds}"]
    curator = ["method=curated_loop", "verifier=lines"]
    arms = {
        "curated_loop": curator,
        "curated_loop, K = 1": [*curator, "method.generate.n=1"],
        "rejection_sampling": ["method=rejection_sampling"],
    }
    free, one, rejection = runs = [lab.over_seeds(*words, *size) for words in arms.values()]
    for control, others in (("K = 1", one), ("rejection_sampling", rejection)):
        fewer = difference([lines(r, "last") for r in others], [lines(r, "last") for r in free])
        claim = f"text: the curator who likes few lines gets fewer than {control}, lines an answer"
        yield claim_above(claim, fewer, control, free[0].command)
    change = gain(free)
    claim = "text: what the curator does not look at is not improved (held-out accuracy)"
    yield below(claim, change, 0.0, "start", free[0].command)
    table = arms_table(
        "Text: greedy held-out answers, means over seeds",
        {"start": (free, "base"), **{name: (results, "last") for name, results in zip(arms, runs, strict=True)}},
        {
            "lines an answer": lambda arm: f"{overall([lines(r, arm[1]) for r in arm[0]]):.2f}",
            "accuracy": lambda arm: f"{overall([r.heldout(arm[1]) for r in arm[0]]):.3f}",
        },
        "",
    )
    for name, figure in lab.at_equal_tokens(free).items():
        table.add_row(f"start, {name}, at equal tokens", "", f"{figure.value:.3f}")
    lab.note(table)


def lines(result: Result, folder: str) -> dict[str, float]:
    """Held-out problem id -> lines of its greedy answer."""
    answers = {g[0].problem.id: g[0].trajectory.text for g in result.attempts(result.evaluation(folder))}
    return {name: float(sum(bool(line.strip()) for line in answer.splitlines())) for name, answer in answers.items()}
