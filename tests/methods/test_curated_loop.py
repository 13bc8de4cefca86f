"""The curated loop: its filter, its closed form, the policies that are no language models, and the loop itself."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from selfimprove.datasets import draws
from selfimprove.errors import ConfigError, RunError
from selfimprove.methods.curated_loop import curate, curated, margins, mixed
from selfimprove.policy import Policy, categorical, flow
from selfimprove.policy.draws import DrawsEngine
from selfimprove.policy.models import PACKAGED
from selfimprove.studies import Lab
from selfimprove.studies.curated_loop import EXACT, PLANE, exact
from selfimprove.studies.draws import heldout_weight, tables
from selfimprove.train import TrainContext, refit
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict, from_rows, to_table
from selfimprove.verify import reward


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def groups(count, rewards, metadata=None):
    for i in range(count):
        problem = Problem(f"p{i}", "", metadata=metadata or {})
        yield [
            Attempt(
                problem,
                Trajectory(problem.id, [Sample([], [k], [0.0], str(k), "stop", k)], id=f"{problem.id}/{k}"),
                Verdict(f"{problem.id}/{k}", "wrong", value),
            )
            for k, value in enumerate(rewards)
        ]


def test_the_curator_picks_in_proportion_to_the_exponential_of_the_reward():
    count, rewards = 4000, [1000.0, 1001.0, 1002.0]  # their exponentials overflow
    picks = Counter(e.completion_ids[0] for e in curate(groups(count, rewards), lam=None, seed=0))
    share = np.exp([-2, -1, 0]) / np.exp([-2, -1, 0]).sum()
    for k, p in enumerate(share):
        assert abs(picks[k] / count - p) < 4 * np.sqrt(p * (1 - p) / count)


def test_real_data_has_the_share_that_lambda_says():
    real = {"real": {"completion_ids": [9]}}
    examples = list(curate(groups(4000, [0.0, 0.0], real), lam=0.5, seed=0))
    share = sum(e.completion_ids == [9] for e in examples) / 4000
    assert abs(share - 2 / 3) < 4 * np.sqrt(2 / 9 / 4000)
    assert all(bool(e.trajectory_ids) == (e.completion_ids != [9]) for e in examples)
    with pytest.raises(RunError, match="has no real draw; use lam=null"):
        list(curate(groups(20, [0.0]), lam=0.5, seed=0))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_closed_form_is_what_picking_gives(k):
    p, w = np.array([0.5, 0.3, 0.2]), np.array([1.0, 2.0, 5.0])
    byhand = np.zeros(3)
    for drawn in itertools.product(range(3), repeat=k):
        for i in drawn:
            byhand[i] += p[list(drawn)].prod() * w[i] / w[list(drawn)].sum()
    assert curated(p, w, k) == pytest.approx(byhand, abs=1e-12)
    if k == 1:
        assert byhand == pytest.approx(p)


def test_the_inequality_is_a_theorem_and_bites():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, w, k = rng.dirichlet(np.ones(6)), np.exp(rng.normal(size=6) * 2), int(rng.integers(1, 5))
        after = curated(p, w, k)
        assert after.sum() == pytest.approx(1)
        assert margins(np.array([p, after]), w, k, 1)[0] >= -1e-9
    assert margins(np.array([after, p]), w, 4, 1)[0] < 0, "backwards it does not hold"
    p, w = np.array([0.5, 0.5]), np.array([1.0, 1.0 + 1e-6])  # where rewards are alike it is an equality
    assert margins(np.array([p, curated(p, w, 4)]), w, 4, 1)[0] == pytest.approx(0, abs=1e-5)
    assert mixed(p, w, 1, 1.0, np.array([1.0, 0.0])) == pytest.approx([0.75, 0.25])


# Policies


def sampled(engine, count, seed=0):
    policy = Policy(engine, seed, max_tokens=1)
    problems = [Problem(f"p{i}", "draw") for i in range(count)]

    async def every(chosen):
        return await asyncio.gather(*(policy.for_problem(p).sample(p.prompt, 2) for p in chosen))

    whole, part = asyncio.run(every(problems)), asyncio.run(every(problems[:3]))
    assert [s.text for group in whole[:3] for s in group] == [s.text for group in part for s in group]
    return list(itertools.chain.from_iterable(whole))


def test_a_table_of_probabilities_draws_what_it_says(tmp_path):
    table = np.array([0.6, 0.0, 0.4])
    categorical.save(table, tmp_path)
    found = sampled(DrawsEngine(categorical.read, str(tmp_path)), 1000)
    shares = np.bincount([s.completion_ids[0] for s in found], minlength=3) / len(found)
    assert shares[1] == 0
    assert abs(shares[0] - 0.6) < 4 * np.sqrt(0.24 / len(found))
    assert {s.text: round(float(np.exp(s.logprobs[0])), 6) for s in found} == {"0": 0.6, "2": 0.4}
    with pytest.raises(ConfigError, match="no table of probabilities"):
        DrawsEngine(categorical.read, str(tmp_path / "nowhere"))


def test_the_packaged_policies_are_the_real_data():
    assert categorical.probabilities(PACKAGED / "categorical") == pytest.approx(draws.zipf())
    model = flow.load(PACKAGED / "points")
    axis = torch.linspace(-6, 6, 400)
    grid = torch.cartesian_prod(axis, axis)
    with torch.inference_mode():
        density = model.log_density(grid).double().exp()
    assert float(density.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=0.02), "it is a density"
    found = sampled(DrawsEngine(flow.read, str(PACKAGED / "points")), 500)
    points = np.array([s.array for s in found])
    assert np.mean(np.abs(np.hypot(*points.T) - draws.RADIUS) < 4 * draws.SPREAD) > 0.9
    assert all(s.completion_ids == [] and s.logprobs == [] for s in found)
    assert np.exp(draws.mixture_log_density(grid.numpy())).sum() * (12 / 399) ** 2 == pytest.approx(1, abs=1e-3)


def context(start, out):
    return TrainContext(str(start), str(start), out, 0, "cpu", "float32", 32, False, None, lambda record: None)


def test_refits_are_of_maximum_likelihood(tmp_path):
    rows = [Example("p", [], [], [k]) for k in (3, 3, 7, 3)]
    refit.categorical(rows, context(PACKAGED / "categorical", tmp_path / "table"))
    table = categorical.probabilities(tmp_path / "table")
    assert (table[3], table[7], table.sum(), len(table)) == (0.75, 0.25, 1.0, 20)

    points = np.random.default_rng(0).normal((1, -1), 0.3, size=(500, 2))
    rows = [Example("p", [], [], [], array=list(point)) for point in points]
    start = PACKAGED / "points"
    refit.flow(rows, context(start, tmp_path / "flow"), epochs=20, learning_rate=3e-3, batch_size=100)
    with torch.inference_mode():
        before, after = (
            flow.load(f).log_density(torch.tensor(points).float()).mean() for f in (start, tmp_path / "flow")
        )
    best = -1 - np.log(2 * np.pi * 0.09)
    assert after > before + 1
    assert best - 0.5 < after < best + 0.2


def test_arrays_are_kept_in_the_run_folder():
    trajectory = Trajectory("p", [Sample([], [], [], "1 2", "stop", 5, array=[1.25, 2.0])], id="r/p/0")
    example = Example("p", [], [], [], array=[0.1, -3.0])
    for record in (trajectory, example):
        assert from_rows(to_table([record], type(record)).to_pylist(), type(record)) == [record]


def test_rewards_of_outputs():
    assert reward.category("2", None, {}, rewards=[0, 1, 5.5]).reward == 5.5
    assert reward.category("1", None, {}, rewards=[0, 1, 5.5]).status == "wrong"
    near = reward.near("3 4", None, {}, centre=(0, 0), radius=1, gamma=0.5)
    assert (near.status, near.reward) == ("wrong", -2)
    assert reward.near("0.6 0", None, {}, centre=(0, 0), radius=1, gamma=0.5).status == "correct"
    assert reward.lines("a\n\nb\n", None, {}, gamma=2).reward == -4
    assert reward.lines("a\nb\nc", None, {}, gamma=2).status == "wrong"
    assert reward.lines(" \n", None, {}, gamma=2).reward == -200


# The loop


@pytest.mark.slow
def test_the_exact_model_follows_the_theory(tmp_path):
    claims = list(exact(Lab(quick=True, folder=tmp_path, note=lambda table: None)))
    failed = [claim.claim for claim in claims if claim.holds is False]
    assert not failed
    flat = [claim for claim in claims if "changes by less than" in claim.claim]  # four rounds are too few to be sure
    assert len(flat) == 2
    assert sum(claim.holds is True for claim in claims if claim not in flat) >= 5
    assert [claim.check for claim in claims] == [True] * 3 + [False] * (len(claims) - 3)


def test_a_flow_goes_to_where_the_curator_wants_it_and_the_run_is_the_seeds(tmp_path):
    size = [PLANE, "dataset.train_size=200", "dataset.heldout_size=300", "rounds=2", "verify.workers=1"]
    lab = Lab(quick=True, folder=tmp_path)
    first = lab.run(*size, "method.filter.lam=2")
    assert heldout_weight(first, "last").mean() > heldout_weight(first, "base").mean() + 0.03
    again = Lab(quick=True, folder=tmp_path / "again").run(*size, "method.filter.lam=2")
    for name in ("trajectories", "examples"):
        one, other = (sorted(r.path.glob(f"rounds/001/{name}.parquet"))[0].read_bytes() for r in (first, again))
        assert one == other


def test_a_table_run_is_written_and_read_back(tmp_path):
    run = Lab(quick=True, folder=tmp_path).run(
        EXACT, "dataset.train_size=100", "dataset.heldout_size=50", "rounds=1", "verify.workers=1"
    )
    path = tables(run)
    assert path.shape == (2, draws.OUTCOMES)
    assert path[1] * 100 == pytest.approx(np.round(path[1] * 100))
    assert (Path(run.path) / "rounds" / "000" / "policy" / categorical.WEIGHTS).exists()
    assert run.summary["base"]["n"] == 50
