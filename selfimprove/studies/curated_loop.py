"""Curated self-consumption: the theory's predictions on an exact model, a flow over the plane, and text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.datasets.draws import mixture, mixture_log_density, zipf
from selfimprove.policy.categorical import probabilities
from selfimprove.report.statistics import accuracy, difference, over_seeds
from selfimprove.studies import Claim, Lab, Result, gain
from selfimprove.types import Verdict

K = 4
EXACT = "experiment=curated_categorical"
PLANE = "experiment=curated_points"
TEXT = ("method=curated_loop", "verifier=lines")
SIGMAS = 3.0


def study(lab: Lab) -> Iterator[Claim]:
    yield from exact(lab)
    yield from plane(lab)
    yield from text(lab)


def settled(lab: Lab, holds: bool) -> bool | None:
    """What the small form does not show is left open: its rounds and problems are too few."""
    return None if lab.quick and not holds else holds


# The exact model


def curated(p: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """The distribution of the pick of k independent draws from p, each picked in proportion to its weight: all ways the
    other k - 1 can fall are summed over. Shapes (outcomes,)."""
    others = reduce(np.add.outer, [weights] * (k - 1), np.zeros(()))
    chance = reduce(np.multiply.outer, [p] * (k - 1), np.ones(()))
    return np.array([k * p[i] * weights[i] * (chance / (weights[i] + others)).sum() for i in range(len(p))])


def mixed(p: np.ndarray, weights: np.ndarray, k: int, lam: float | None, real: np.ndarray) -> np.ndarray:
    """p_{t+1} from p_t = p for a learner that fits exactly."""
    picks = curated(p, weights, k)
    return picks if lam is None else (real + lam * picks) / (1 + lam)


def simulated(weights: np.ndarray, k: int, lam: float | None, rounds: int, n: int, loops: int) -> np.ndarray:
    """p_0 ... p_T of loops without a model, shape (loops, rounds + 1, outcomes): each fits n draws a round, as the
    theory distributes them; n = 0 is the limit of many draws, the closed form."""
    rng = np.random.default_rng(0)
    start, found = zipf(), []
    for _ in range(loops):
        path = [start]
        real = rng.choice(len(start), n, p=start)  # as in a run, the same real draws in all rounds
        for _ in range(rounds):
            if n == 0:
                path.append(mixed(path[-1], weights, k, lam, start))
                continue
            draws = rng.choice(len(start), n, p=(picks := curated(path[-1], weights, k)) / picks.sum())
            if lam is not None:
                draws = np.where(rng.random(n) < 1 / (1 + lam), real, draws)
            path.append(np.bincount(draws, minlength=len(start)) / n)
        found.append(path)
    return np.array(found)


def chance(observed: Sequence[float], loops: Sequence[float]) -> float:
    """How often the largest of as many simulated values, drawn at random, is at least the largest observed one."""
    drawn = np.random.default_rng(0).choice(loops, (10_000, len(observed)))
    return float((drawn.max(1) >= max(observed)).mean())


def tables(result: Result) -> np.ndarray:
    """p_0 ... p_T of a run, shape (T + 1, outcomes)."""
    folders = sorted(result.path.glob("rounds/*/policy"))
    return np.array([zipf(), *(probabilities(folder) for folder in folders)])


def margins(path: np.ndarray, weights: np.ndarray, k: int, n: int) -> np.ndarray:
    """(E_{t+1} - E_t - (k-1)/k Var_t / w_max) / sigma of each round, sigma being the noise of fitting n draws."""
    mean = path @ weights
    variance = path @ weights**2 - mean**2
    drift = mean[1:] - mean[:-1] - (k - 1) / k * variance[:-1] / weights.max()
    after = np.array([curated(p, weights, k) for p in path[:-1]])
    noise = np.sqrt(np.maximum(after @ weights**2 - (after @ weights) ** 2, 0) / n)
    return np.asarray(drift / np.maximum(noise, 1e-12))


def entropy(p: np.ndarray) -> float:
    """In nats."""
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def divergence(real: np.ndarray, p: np.ndarray, n: int) -> float:
    """KL(real || p) in nats of a table fitted to n draws; an outcome that none fell on counts as half a draw."""
    return float((real * np.log(real / np.maximum(p, 0.5 / n))).sum())


def exact(lab: Lab) -> Iterator[Claim]:
    n, rounds = (300, 4) if lab.quick else (1000, 16)
    loops = 50 if lab.quick else 600
    size = [EXACT, f"dataset.train_size={n}", "dataset.heldout_size=100", f"rounds={rounds}"]
    free = lab.over_seeds(*size)
    one = lab.over_seeds(*size, "method.generate.n=1")
    dealt = lab.over_seeds(*size, "control=shuffled_verdicts")
    half = lab.over_seeds(*size, "method.filter.lam=1")
    weights = np.exp(free_rewards(free[0]))

    unpicked = simulated(weights, 1, None, rounds, n, loops) @ weights
    for name, runs, lam in (("no real data", free, None), ("half real data", half, 1.0)):
        limit = simulated(weights, K, lam, rounds, 0, 1)[0] @ weights
        loose = simulated(weights, K, lam, rounds, n, loops)
        sigma = (loose @ weights).std(0)[1:]
        z = [np.abs(((tables(r) @ weights - limit)[1:]) / sigma) for r in runs]
        p = chance([run.max() for run in z], np.abs(((loose @ weights - limit)[:, 1:]) / sigma).max(1))
        yield Claim(
            f"exact, {name}: E(e^r) follows the K-candidate closed form within 3 sigma in all rounds of all seeds",
            bool(np.max(z) < SIGMAS),
            f"largest |z| {np.max(z):.2f}, above 3 in {(np.array(z) > 3).sum()} of {np.size(z)} rounds; "
            f"chance p = {p:.3f}",
            None,
            f"closed form; sigma and p from {loops} simulated loops of {n} draws",
            runs[0].command,
        )
        if lam is None:
            least = np.array([margins(tables(r), weights, K, n) for r in runs])
            p = chance([-run.min() for run in least], [-margins(path, weights, K, n).min() for path in loose])
            yield Claim(
                "exact: E_{t+1} >= E_t + (K-1)/K Var_t / e^r_max every round, up to 3 sigma of the fit's noise",
                bool(least.min() > -SIGMAS),
                f"holds outright in {(least >= 0).sum()} of {least.size} rounds; "
                f"least margin {least.min():.2f} sigma, chance p = {p:.3f}",
                None,
                "the inequality; simulated loops, of which it is a theorem up to that noise",
                runs[0].command,
            )
    last = np.array([tables(r)[-1] for r in free])
    best = weights.argmax()
    mass = accuracy(np.repeat([True, False], [round(last[:, best].mean() * n), n - round(last[:, best].mean() * n)]))
    yield Claim(
        "exact, no real data: over 99 % of the mass ends on the best outcome and the entropy below 0.1 nats",
        settled(lab, bool(last[:, best].min() > 0.99 and max(map(entropy, last)) < 0.1)),
        f"mass {mass.value:.4f}, entropy {max(map(entropy, last)):.3f} from {entropy(zipf()):.2f} nats",
        (mass.low, mass.high),
        "start",
        free[0].command,
    )
    for name, runs in (("K = 1", one), ("picks dealt at random", dealt)):
        moved = np.array([tables(r)[-1] @ weights for r in runs]).mean() - zipf() @ weights
        drift = unpicked[:, -1].std() / math.sqrt(len(runs))
        interval = (moved - 1.96 * drift, moved + 1.96 * drift)
        yield Claim(
            f"exact, {name}: E(e^r) is flat but for drift",
            bool(abs(moved) < SIGMAS * drift),
            float(moved),
            (float(interval[0]), float(interval[1])),
            "start; interval of the drift of simulated loops",
            runs[0].command,
        )
    real = zipf()
    ends = np.array([tables(r) for r in half])
    risen = (ends[:, -1] @ weights) - real @ weights
    yield Claim(
        "exact, half real data: E(e^r) ends above the start",
        bool(risen.min() > 0),
        float(risen.mean()),
        spread(risen),
        "start",
        half[0].command,
    )
    worst = max(divergence(real, p, n) for run in ends for p in run)
    yield Claim(
        "exact, half real data: KL(data || p_t) stays below log(1 + lambda)",
        worst < math.log(2),
        worst,
        None,
        f"log 2 = {math.log(2):.3f}; without real data it ends at {divergence(real, last[0], n):.2f}",
        half[0].command,
    )
    late = np.array([[entropy(p) for p in run[len(run) // 2 :]] for run in ends])
    yield Claim(
        "exact, half real data: the entropy varies by less than 0.1 nats over the second half of the rounds",
        bool(np.ptp(late, axis=1).max() < 0.1),
        float(np.ptp(late, axis=1).max()),
        None,
        f"entropy at the end {late[:, -1].mean():.2f} nats, at the start {entropy(real):.2f}",
        half[0].command,
    )
    lab.note(
        curves("Exact model: E(e^r) and entropy (seed 0)", weights, {"K = 4": free, "half real": half, "K = 1": one})
    )


def free_rewards(result: Result) -> np.ndarray:
    from selfimprove import config

    return np.array(config.read(result.path / "config.yaml").dataset.verifier["rewards"], dtype=float)


def spread(values: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """A 95 % interval of the mean over seeds, by Student's t; None for one seed."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def curves(title: str, weights: np.ndarray, runs: dict[str, list[Result]]) -> Table:
    table = Table("round", *(f"{name}: {what}" for name in runs for what in ("E(e^r)", "entropy")), title=title)
    paths = [tables(results[0]) for results in runs.values()]
    for t in range(len(paths[0])):
        cells = (f"{value:.3f}" for path in paths for value in (path[t] @ weights, entropy(path[t])))
        table.add_row(str(t), *cells)
    return table


# The flow


def plane(lab: Lab) -> Iterator[Claim]:
    n, rounds = (300, 2) if lab.quick else (1000, 8)
    size = [PLANE, f"dataset.train_size={n}", "dataset.heldout_size=400", f"rounds={rounds}"]
    free = lab.over_seeds(*size)
    one = lab.over_seeds(*size, "method.generate.n=1")
    half = lab.over_seeds(*size, "method.filter.lam=1")

    rose = np.array([heldout_weight(r, "last") - heldout_weight(r, "base") for r in free])
    flat = np.array([heldout_weight(r, "last") - heldout_weight(r, "base") for r in one])
    part = np.array([heldout_weight(r, "last") - heldout_weight(r, "base") for r in half])
    for name, change, runs in (
        ("K = 4 above K = 1", rose - flat, free),
        ("half real data above K = 1", part - flat, half),
    ):
        e = over_seeds(change)
        yield Claim(
            f"flow: E(e^r) of held-out draws rises, {name}",
            bool(e.low > 0),
            e.value,
            (e.low, e.high),
            f"K = 1, which moved by {over_seeds(flat).value:+.3f}",
            runs[0].command,
        )
    e = over_seeds(flat)
    yield Claim("flow, K = 1: E(e^r) is flat", e.low <= 0 <= e.high, e.value, (e.low, e.high), "start", one[0].command)
    least = np.array([flow_margins(r) for r in free])
    yield Claim(
        "flow: the inequality holds every round, up to 3 sigma of the draws' noise",
        bool(least.min() > -SIGMAS),
        f"least margin {least.min():.2f} sigma; outright in {(least >= 0).sum()} of {least.size} rounds",
        None,
        "the inequality, whose learner fits exactly: this one does not",
        free[0].command,
    )
    near = np.array([plane_divergence(last_policy(r)) for r in half])
    far = np.array([plane_divergence(last_policy(r)) for r in free])
    base = plane_divergence(base_policy())
    yield Claim(
        "flow, half real data: KL(data || p_T) is at most log(1 + lambda) above the start's",
        bool(near.max() < base + math.log(2)),
        float(near.mean()),
        spread(near),
        f"start {base:.2f}; without real data {far.mean():.2f}",
        half[0].command,
    )


def heldout_weight(result: Result, folder: str) -> np.ndarray:
    """e^r of each held-out draw, by the data set's reward, shape (draws,)."""
    path = result.evaluation(folder)
    return np.array([math.exp(v.reward) for v in store.read_records(path / "verdicts.parquet", Verdict)])


def flow_margins(result: Result) -> np.ndarray:
    """As `margins`, from the K n draws that open each round; e^r_max = 1."""
    drawn = []
    for path in sorted(result.path.glob("rounds/*/verdicts.parquet")):
        drawn.append(np.array([math.exp(v.reward) for v in store.read_records(path, Verdict)]))
    mean, variance = np.array([w.mean() for w in drawn]), np.array([w.var() for w in drawn])
    size = len(drawn[0])
    noise = np.sqrt(variance[1:] / size + variance[:-1] / size + variance[1:] * K / size)  # both means, and the fit's
    return np.asarray((mean[1:] - mean[:-1] - (K - 1) / K * variance[:-1]) / noise)


def plane_divergence(folder: Path) -> float:
    """KL(data || flow) in nats, from 20,000 real points."""
    import torch

    from selfimprove.policy.flow import load

    rng = np.random.default_rng(1)
    real = np.array([mixture(rng) for _ in range(20_000)])
    with torch.inference_mode():
        fitted = load(folder).log_density(torch.tensor(real, dtype=torch.float32)).double().numpy()
    return float((mixture_log_density(real) - fitted).mean())


def last_policy(result: Result) -> Path:
    return max(result.path.glob("rounds/*/policy"), key=lambda path: path.parent.name)


def base_policy() -> Path:
    from selfimprove.policy.models import resolve

    return Path(resolve("points", "package"))


# Text


def text(lab: Lab) -> Iterator[Claim]:
    size = (
        ["dataset.train_size=24", "dataset.heldout_size=20", "rounds=1"]
        if lab.quick
        else ["dataset.train_size=200", "dataset.heldout_size=150", "rounds=2"]
    )
    free = lab.over_seeds(*TEXT, *size)
    one = lab.over_seeds(*TEXT, *size, "method.generate.n=1")
    rejection = lab.over_seeds("method=rejection_sampling", *size)
    for control, runs in (("K = 1", one), ("rejection_sampling", rejection)):
        fewer = difference([written(r, "last") for r in runs], [written(r, "last") for r in free])
        yield Claim(
            f"text: the curator who likes few lines gets fewer than {control}, lines an answer",
            settled(lab, fewer.low > 0),
            fewer.value,
            (fewer.low, fewer.high),
            control,
            free[0].command,
        )
    changed = gain(free)
    yield Claim(
        "text: what the curator does not look at is not improved (held-out accuracy)",
        changed.low <= 0,
        changed.value,
        (changed.low, changed.high),
        "start",
        free[0].command,
    )
    table = Table("", "lines an answer", "accuracy", title="Text: greedy held-out answers, means over seeds")
    for name, runs, folder in (
        ("start", free, "base"),
        ("curated_loop", free, "last"),
        ("curated_loop, K = 1", one, "last"),
        ("rejection_sampling", rejection, "last"),
    ):
        count = np.mean([list(written(r, folder).values()) for r in runs])
        right = np.mean([list(r.heldout(folder).values()) for r in runs])
        table.add_row(name, f"{count:.2f}", f"{right:.3f}")
    for name, figure in lab.at_equal_tokens(free).items():
        table.add_row(f"start, {name}, at equal tokens", "", f"{figure.value:.3f}")
    lab.note(table)


def written(result: Result, folder: str) -> dict[str, float]:
    """Held-out problem id -> lines of its greedy answer."""
    path = result.evaluation(folder)
    return {
        g[0].problem.id: float(sum(bool(line.strip()) for line in g[0].trajectory.text.splitlines()))
        for g in result.attempts(path)
    }
