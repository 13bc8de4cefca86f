"""What is measured of runs whose policies are tables of probabilities, or flows over the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from selfimprove import store
from selfimprove.datasets.draws import mixture, mixture_log_density, zipf
from selfimprove.policy.categorical import probabilities
from selfimprove.policy.models import resolve
from selfimprove.report.statistics import student
from selfimprove.studies import Claim, Result
from selfimprove.types import Verdict


def tables(result: Result) -> np.ndarray:
    """p_0 ... p_T of a run, shape (T + 1, outcomes)."""
    folders = sorted(result.path.glob("rounds/*/policy"))
    return np.array([zipf(), *(probabilities(folder) for folder in folders)])


def paths(results: Sequence[Result]) -> np.ndarray:
    """The same of several runs, shape (runs, T + 1, outcomes)."""
    return np.array([tables(result) for result in results])


def weight_gains(results: Sequence[Result]) -> np.ndarray:
    """How much e^r of the held-out draws changed from the base policy to the last one, shape (runs, draws)."""
    return np.array([heldout_weight(r, "last") - heldout_weight(r, "base") for r in results])


def heldout_weight(result: Result, folder: str) -> np.ndarray:
    """e^r of each held-out draw, by the data set's reward, shape (draws,)."""
    path = result.evaluation(folder)
    return np.array([math.exp(v.reward) for v in store.read_records(path / "verdicts.parquet", Verdict)])


def flow_margins(result: Result, k: int) -> np.ndarray:
    """(E_{t+1} - E_t - (k-1)/k Var_t / w_max) / sigma of each round, from the k n draws that open it; w_max = 1."""
    files = sorted(result.path.glob("rounds/*/verdicts.parquet"))
    weights = [np.array([math.exp(v.reward) for v in store.read_records(path, Verdict)]) for path in files]
    mean, variance = np.array([w.mean() for w in weights]), np.array([w.var() for w in weights])
    size = len(weights[0])
    noise = np.sqrt(variance[1:] / size + variance[:-1] / size + variance[1:] * k / size)  # both means, and the fit's
    return np.asarray((mean[1:] - mean[:-1] - (k - 1) / k * variance[:-1]) / noise)


def plane_divergences(results: Sequence[Result]) -> np.ndarray:
    """KL(data || flow) in nats of the last policies of some runs, (runs,)."""
    return np.array([divergence(max(r.path.glob("rounds/*/policy"), key=lambda p: p.parent.name)) for r in results])


def base_divergence() -> float:
    """The same of the flow that the runs start from."""
    return divergence(Path(resolve("points", "package")))


def divergence(folder: Path) -> float:
    """KL(data || flow) in nats, from 20,000 real points."""
    import torch

    from selfimprove.policy.flow import load

    rng = np.random.default_rng(1)
    real = np.array([mixture(rng) for _ in range(20_000)])
    with torch.inference_mode():
        fitted = load(folder).log_density(torch.tensor(real, dtype=torch.float32)).double().numpy()
    return float((mixture_log_density(real) - fitted).mean())


def chance(observed: Sequence[float] | np.ndarray, loops: Sequence[float] | np.ndarray) -> float:
    """How often the largest of as many simulated values, drawn at random, is at least the largest observed one."""
    drawn = np.random.default_rng(0).choice(loops, (10_000, len(observed)))
    return float((drawn.max(1) >= max(observed)).mean())


def spread(values: np.ndarray) -> tuple[float, float] | None:
    """A 95 % interval of the mean over seeds, by Student's t; None for one seed."""
    if len(values) < 2:
        return None
    half = student(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def claim_mean(claim: str, holds: bool | None, values: np.ndarray, control: str, command: str) -> Claim:
    """A claim about a figure of each seed, with its mean and the interval of that."""
    return Claim(claim, holds, float(np.mean(values)), spread(values), control, command)
