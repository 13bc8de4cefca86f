"""NIW-Meta: a prior over the weights of a net, learnt from episodes, so that a new episode needs few examples.

A Hierarchical Bayesian Model for Deep Few-Shot Meta Learning (Kim and Hospedales 2023, arXiv 2306.09702). An episode is
a problem. It has a support, with targets, and a query to predict.

    model      (mu, Sigma) ~ NIW,   theta_i ~ N(mu, Sigma) for episode i
               q(mu, Sigma) = NIW(m0, V0, l0, n0),   q(theta_i) = N(m_i, V_i);   Sigma, V0 and V_i are diagonal
    generate   for a new episode: the prior N(m0, V0 / (n0 + d + 2)), the mode of q(mu, Sigma); q = N(m, V) by a few
               gradient steps on  E_q[loss_i] + alpha KL(q, prior);  predictions are means over draws of theta from q
    verify     the query: minus the squared error, or the share of right classes
    filter     all episodes
    train      for each episode, on support and query:
                   a few SGLD steps from m0; of the iterates the mean m~ and the precision A~ (at most ai_max)
                   V_i = (A~ + n0 V0^-1)^-1          m_i = V_i (A~ m~ + n0 V0^-1 m0)
               and one step of (m0, V0), through these two closed forms but not through SGLD, on
                   E_q[loss_i] + alpha/2 [tr(n0 V0^-1 V_i) + (m_i - m0)' n0 V0^-1 (m_i - m0) - log|V_i| + log|V0|]

alpha is a temperature; 1 is exact Bayes. SGLD's noise has the same temperature: for a loss with curvature A the
iterates have the precision A~ = A / alpha. If loss_i is the quadratic around m~ with this curvature, m_i and V_i
minimise the bound. n0 = d + 2 is constant. The net has m = m0 and log_v = log(V0 / n0).

*Wrong when* episodes have only the form of the net in common: then a prior cannot help. Also wrong when a few steps
from m0 do not reach weights that fit an episode: then the quadratic describes the loss at the wrong place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from selfimprove.policy import Policy
from selfimprove.scores import Scores
from selfimprove.train import TrainContext
from selfimprove.types import (
    Attempt,
    Batch,
    Count,
    Epochs,
    Example,
    NonNegative,
    Positive,
    Problem,
    Rate,
    Samples,
    Trajectory,
)

if TYPE_CHECKING:
    import torch

    from selfimprove.policy.episodes import Points, Prior

Steps = Annotated[int, Ge(0)]


# A new episode


@dataclass(frozen=True)
class Posterior:
    """Draws of weights for episodes, by variational inference on their supports.

    q starts at m0 with the smallest variance that training can give an episode: that of A~ = `ai_max`.
    """

    steps: int
    rate: float
    alpha: float
    ai_max: float
    draws: int

    def __call__(self, net: Prior, points: Points, seeds: Sequence[int]) -> torch.Tensor:
        """theta ~ q, shape (draws, b, d). The draws of each episode come from its own seed."""
        import torch

        from selfimprove.policy.episodes import normal

        d = len(net.m)
        prior_m, prior_v = net.m.detach(), (net.log_v.detach() + math.log((d + 2) / (2 * d + 4))).exp()
        eps = normal(list(seeds), (self.steps + self.draws) * d, prior_m).reshape(len(seeds), -1, d).transpose(0, 1)
        m = prior_m.repeat(len(seeds), 1).requires_grad_()
        least = -(self.ai_max + 1 / prior_v).log()
        s = (least / 2).repeat(len(seeds), 1).requires_grad_()  # log standard deviation
        for step in range(self.steps):
            v = (2 * s).exp()
            kl = 0.5 * (v / prior_v + (m - prior_m) ** 2 / prior_v - 2 * s).sum(-1)
            objective = (net.loss(m + s.exp() * eps[step], points) + self.alpha * kl).sum()
            grad_m, grad_s = torch.autograd.grad(objective, (m, s))
            m = (m - self.rate * clipped(grad_m)).detach().requires_grad_()
            s = (s - self.rate * clipped(grad_s)).detach().requires_grad_()
        draws: torch.Tensor = m + s.exp() * eps[self.steps :]
        return draws


@dataclass(frozen=True)
class Descent:
    """The control: gradient descent from m, as in MAML. It gives one "draw" of weights."""

    steps: int
    rate: float

    def __call__(self, net: Prior, points: Points, seeds: Sequence[int]) -> torch.Tensor:
        theta = net.m.detach().repeat(len(points.x), 1).requires_grad_()
        return descended(net, theta, points, self.steps, self.rate, graph=False)[None]


def descended(net: Prior, theta: torch.Tensor, points: Points, steps: int, rate: float, *, graph: bool) -> torch.Tensor:
    """Weights (b, d) after gradient descent on the supports; with `graph`, a differentiable function of `theta`."""
    import torch

    for _ in range(steps):
        (grad,) = torch.autograd.grad(net.loss(theta, points).sum(), theta, create_graph=graph)
        theta = theta - rate * clipped(grad)
    return theta


def clipped(grad: torch.Tensor, most: float = 10.0) -> torch.Tensor:
    """Gradients (b, d), with a norm of at most `most` for each episode."""
    import torch

    return grad * torch.clamp(most / grad.norm(dim=-1, keepdim=True).clamp(min=1e-12), max=1.0)


async def inferred(
    problem: Problem,
    policy: Policy,
    *,
    steps: Steps,
    learning_rate: Positive,
    alpha: NonNegative,
    ai_max: NonNegative,
    samples: Samples,
) -> list[Trajectory]:
    """One trajectory: the predictions for the query, with weights inferred from the support."""
    return await _answered(problem, policy, Posterior(steps, learning_rate, alpha, ai_max, samples))


async def descent(problem: Problem, policy: Policy, *, steps: Steps, learning_rate: Positive) -> list[Trajectory]:
    """One trajectory: the predictions for the query, with weights from gradient descent from m0."""
    return await _answered(problem, policy, Descent(steps, learning_rate))


async def _answered(problem: Problem, policy: Policy, hook: Any) -> list[Trajectory]:
    """A trajectory whose text has a line for each query point: the means of its outputs, then their variances."""
    (sample,) = await policy.sample(problem.prompt, hook=hook)
    assert problem.array is not None
    assert sample.array is not None
    points, width = problem.array.shape[0], len(sample.array) // problem.array.shape[0]
    rows = [sample.array[i * width : (i + 1) * width] for i in range(points)]
    support = problem.array.data[problem.array.shape[1] - 1 :: problem.array.shape[1]]
    asked = [row for row, known in zip(rows, support, strict=True) if not known]
    sample.text = "\n".join(" ".join(f"{value:.6g}" for value in row) for row in asked)
    return [Trajectory(problem.id, [sample])]


# Learning the prior


def whole(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """An example for each episode: its array with the targets of the query filled in."""
    for attempt, *_ in groups:
        array, targets = attempt.problem.array, iter(attempt.problem.metadata["targets"])
        assert array is not None
        columns, data = array.shape[1], list(array.data)
        outputs = len(attempt.problem.metadata["targets"][0])
        for end in range(columns, len(data) + 1, columns):
            if not data[end - 1]:
                data[end - 1 - outputs : end - 1] = next(targets)
        metadata = {"input": {"shape": list(array.shape), "data": data}}
        yield Example(attempt.problem.id, [attempt.trajectory.id], [], [], metadata=metadata)


def meta(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    steps: Count,
    step_size: Positive,
    alpha: NonNegative,
    ai_max: Positive,
    burnin: Steps,
    epochs: Epochs,
    learning_rate: Rate,
    batch_size: Batch,
) -> dict[str, float]:
    """Learn m0 and V0. `steps`, `step_size` and `burnin` are those of SGLD. Returns the figures of `own.fit`."""

    def loss(net: Prior, points: Points, shown: Points) -> torch.Tensor:
        mean, precision = quadratic(net, points, steps, step_size, alpha, burnin, ai_max)
        m, v = closed_form(mean, precision, net.m, net.log_v)
        return objective(net, points, m, v, alpha).mean()

    return _learn(rows, context, loss, epochs, learning_rate, batch_size)


def maml(
    rows: Sequence[Example],
    context: TrainContext,
    *,
    steps: Steps,
    step_size: Positive,
    epochs: Epochs,
    learning_rate: Rate,
    batch_size: Batch,
) -> dict[str, float]:
    """The control: MAML (Finn et al. 2017, arXiv 1703.03400). It learns m by the query's loss after `steps` of gradient
    descent on the support, with the gradient through these steps. With 0 steps it learns one net for all episodes."""

    def loss(net: Prior, points: Points, shown: Points) -> torch.Tensor:
        theta = descended(net, net.m.expand(len(points.x), -1), shown, steps, step_size, graph=True)
        asked = points._replace(counts=1 - shown.counts)
        return net.loss(theta, asked).mean()

    return _learn(rows, context, loss, epochs, learning_rate, batch_size)


def _learn(
    rows: Sequence[Example],
    context: TrainContext,
    loss: Any,
    epochs: float,
    learning_rate: float,
    batch_size: int,
) -> dict[str, float]:
    """Train the net on batches of episodes by loss(net, points, support). Returns the figures of `own.fit`."""
    import torch

    from selfimprove.policy import nets
    from selfimprove.train import own

    net: Any = own.start(context)
    episodes = own.inputs(rows, context.device)

    def of_batch(batch: list[int]) -> torch.Tensor:
        shown = net.read(episodes[batch])
        return loss(net, shown._replace(counts=torch.ones_like(shown.counts)), shown)  # type: ignore[no-any-return]

    found = own.fit(
        net, own.batches(len(rows), epochs, batch_size, context.seed), of_batch, context, learning_rate=learning_rate
    )
    nets.save(net, context.out)
    return found


def quadratic(
    net: Prior, points: Points, steps: int, step_size: float, alpha: float, burnin: int, ai_max: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """m~ and A~ of each episode, both (b, d), from SGLD: theta' = theta - e grad + sqrt(2 e alpha) noise. No gradient
    goes through them."""
    import torch

    theta, iterates = net.m.detach().repeat(len(points.x), 1).requires_grad_(), []
    for _ in range(steps):
        (grad,) = torch.autograd.grad(net.loss(theta, points).sum(), theta)
        noise = math.sqrt(2 * step_size * alpha) * torch.randn_like(theta)
        theta = (theta - step_size * clipped(grad) + noise).detach().requires_grad_()
        iterates.append(theta.detach())
    kept = torch.stack(iterates[burnin:])
    return kept.mean(0), (1 / kept.var(0, unbiased=False).clamp(min=1e-12)).clamp(max=ai_max)


def closed_form(
    mean: torch.Tensor, precision: torch.Tensor, m0: torch.Tensor, log_v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """m_i and V_i, (b, d), from m~, A~ and the prior; `log_v` = log(V0 / n0)."""
    prior = (-log_v).exp()  # n0 V0^-1
    v = 1 / (precision + prior)
    return v * (precision * mean + prior * m0), v


def objective(net: Prior, points: Points, m: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    """The bound of each episode, shape (b,), in nats, up to a constant: E_q[loss] by one draw of theta, plus alpha
    times the KL from the prior."""
    import torch

    theta = m + v.sqrt() * torch.randn_like(m)
    return net.loss(theta, points) + alpha * penalty(m, v, net.m, net.log_v)


def penalty(m: torch.Tensor, v: torch.Tensor, m0: torch.Tensor, log_v: torch.Tensor) -> torch.Tensor:
    """1/2 [tr(n0 V0^-1 V) + (m - m0)' n0 V0^-1 (m - m0) - log|V| + log|V0 / n0|], shape (b,)."""
    return 0.5 * ((v + (m - m0) ** 2) * (-log_v).exp() - v.log() + log_v).sum(-1)


def figures(rounds: Sequence[Scores]) -> dict[str, float]:
    """`coverage`: the share of query targets inside the 95 % interval of the prediction. Only for regression."""
    found = [float(answer) for answer in rounds[-1].answers if answer is not None]
    return {"coverage": sum(found) / len(found)} if found else {}
