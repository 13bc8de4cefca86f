"""NIW-Meta: its closed form against a minimiser, the net against torch's, what a draw depends on, and the loop."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from selfimprove import store
from selfimprove.datasets import episodes
from selfimprove.methods import niw_meta
from selfimprove.policy import Policy, nets
from selfimprove.policy.draws import DrawsEngine
from selfimprove.policy.episodes import Prior
from selfimprove.studies import Lab
from selfimprove.studies.niw_meta import held
from selfimprove.types import Attempt, Verdict
from selfimprove.verify.episodes import classification, regression

SMALL = ["method=niw_meta", "rounds=1", "dataset.train_size=8", "dataset.heldout_size=3", "method.train.epochs=1"]
SMALL += ["verify.workers=1"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Prior(inputs=1, outputs=1, hidden=5)


def batch(count, net):
    found = episodes.sine(shots=5, queries=10, noise=0.1, train_size=count, heldout_size=1, seed=0)[:count]
    return found, net.read(torch.tensor([p.array.data for p in found]).reshape(count, 15, 3))


def test_the_closed_form_minimises_the_bound_of_a_quadratic_loss():
    rng = torch.Generator().manual_seed(0)
    mean, m0, log_v = (torch.randn(4, generator=rng, dtype=torch.float64) for _ in range(3))
    precision = torch.rand(4, generator=rng, dtype=torch.float64) * 5
    m, log_s = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([m, log_s], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14)

    def bound():
        optimizer.zero_grad()
        v = log_s.exp()
        expected = 0.5 * (precision * ((m - mean) ** 2 + v)).sum()  # E_q of 1/2 (theta - m~)' A~ (theta - m~)
        value = expected + niw_meta.penalty(m, v, m0, log_v)
        value.backward()
        return value

    optimizer.step(bound)
    found_m, found_v = niw_meta.closed_form(mean, precision, m0, log_v)
    assert found_m.numpy() == pytest.approx(m.detach().numpy(), abs=1e-5)
    assert found_v.numpy() == pytest.approx(log_s.detach().exp().numpy(), abs=1e-5)


def test_the_penalty_is_the_kl_between_two_normals():
    m, v, m0, log_v = torch.tensor([0.3]), torch.tensor([0.5]), torch.tensor([-0.2]), torch.tensor([0.7])
    q, prior = torch.distributions.Normal(m, v.sqrt()), torch.distributions.Normal(m0, (log_v / 2).exp())
    kl = torch.distributions.kl_divergence(q, prior)
    assert float(niw_meta.penalty(m, v, m0, log_v)) - 0.5 == pytest.approx(float(kl), abs=1e-6)


def test_a_net_of_flat_weights_is_torchs(net):
    same = torch.nn.Sequential(
        torch.nn.Linear(1, 5), torch.nn.ReLU(), torch.nn.Linear(5, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)
    )
    flat = []
    for layer in same[::2]:
        flat += [layer.weight.T.flatten(), layer.bias]
    x = torch.randn(2, 7, 1)
    assert torch.allclose(net(torch.cat(flat).expand(2, -1), x), same(x), atol=1e-6)


def test_a_loss_counts_the_support_alone(net):
    _, points = batch(2, net)
    theta = net.m.expand(2, -1)
    errors = (net(theta, points.x[:, :5]) - points.y[:, :5]) ** 2 / (2 * net.noise**2)
    assert torch.allclose(net.loss(theta, points), errors.sum((1, 2)))


def test_sgld_without_noise_is_gradient_descent(net):
    _, points = batch(2, net)
    mean, precision = niw_meta.quadratic(net, points, 3, 0.01, alpha=0, burnin=2, ai_max=7.0)
    last = niw_meta.descended(net, net.m.detach().repeat(2, 1).requires_grad_(), points, 3, 0.01, graph=False)
    assert torch.allclose(mean, last, atol=1e-6)
    assert precision.max() == 7.0


def test_draws_depend_on_an_episodes_own_support_and_seed(net, tmp_path):
    nets.save(net, tmp_path)
    problems, _ = batch(4, net)
    policy = Policy(DrawsEngine(nets.read, str(tmp_path)), 0, max_tokens=1)

    async def answers(chosen):
        asked = (
            niw_meta.inferred(p, policy.for_problem(p), steps=3, learning_rate=0.01, alpha=1e-6, ai_max=1e3, samples=2)
            for p in chosen
        )
        return [found[0].text for found in await asyncio.gather(*asked)]

    together, alone = asyncio.run(answers(problems)), asyncio.run(answers(problems[2:3]))
    assert together[2] == alone[0]
    assert len(set(together)) == 4
    assert np.array([line.split() for line in together[0].splitlines()], float).shape == (10, 2)


def test_an_episode_of_another_kind_is_refused(net, tmp_path):
    nets.save(net, tmp_path)
    (problem,) = episodes.glyphs(ways=2, shots=1, queries=1, train_size=1, heldout_size=1, seed=0)[:1]
    policy = Policy(DrawsEngine(nets.read, str(tmp_path)), 0, max_tokens=1).for_problem(problem)
    with pytest.raises(ValueError, match="episodes of 1 inputs and 1 outputs, and this one has 198 in all"):
        asyncio.run(niw_meta.descent(problem, policy, steps=1, learning_rate=0.1))


def test_the_reward_is_the_querys():
    found = regression("1 0.25\n2 0.25", None, {"targets": [[1.5], [4.0]]})
    assert found.reward == pytest.approx(-(0.25 + 4) / 2)
    assert float(found.extracted) == 0.5, "1.5 is inside of 1 +- .98, 4 is outside of 2 +- .98"
    assert regression("1 2", None, {"targets": [[1.0], [1.0]]}).status == "unparseable"
    metadata = {"targets": [[1.0, 0], [0, 1]]}
    assert classification("0.9 0.1 0 0\n0.6 0.4 0 0", None, metadata).reward == 0.5
    assert classification("a", None, metadata).reward == 0.0


def test_an_example_shows_the_query_too():
    (problem,) = episodes.sine(shots=2, queries=1, noise=0, train_size=1, heldout_size=1, seed=0)[:1]
    trajectory = asyncio.run(_untouched(problem))
    (example,) = niw_meta.whole([[Attempt(problem, trajectory, Verdict("t", "correct", 0))]])
    rows = np.array(example.metadata["input"]["data"]).reshape(3, 3)
    assert rows[2, 1] == problem.metadata["targets"][0][0]
    assert rows[:2].flatten().tolist() == list(problem.array.data[:6])
    assert rows[:, 2].tolist() == [1, 1, 0]


async def _untouched(problem):
    from selfimprove.types import Trajectory

    return Trajectory(problem.id, [], id="t")


def test_memory_of_a_meta_step_does_not_grow_with_inner_steps():
    few, many = (held("niw", steps) for steps in (1, 4))
    assert few == many
    assert held("maml", 4) > 2 * held("maml", 1)


def test_a_run_and_its_control(tmp_path):
    lab = Lab(quick=True, folder=tmp_path)
    result = lab.run(*SMALL)
    assert 0 <= store.read_json(result.path / "rounds/000/metrics.json")["evaluate/coverage"] <= 1
    assert nets.load(result.path / "rounds/000/policy").m.isfinite().all()
