"""Does a prior over weights, learnt through closed forms, let few examples suffice?

Claims of Kim and Hospedales 2023 (arXiv 2306.09702), on waves of five shown points. The arms learn from the same
episodes in as many meta-steps, and adapt by as many inner steps: the method, MAML, and one net for all episodes. Each
arm has the learning rate that is best on dev episodes, from the same few, of a seed that no comparison uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove.methods.niw_meta import closed_form, descended, descent, inferred, objective, quadratic
from selfimprove.report.statistics import Estimate, difference
from selfimprove.studies import Claim, Lab, Result, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import Solver, solve
from selfimprove.studies.staged import DEV_SEED, below, best_rate, bounded, policy_of
from selfimprove.types import Problem

COMMAND = "selfimprove study niw_meta"
OWN, MAML, POOLED = "niw_meta", "MAML", "one net for all"
STEPS = 5  # inner ones
RATES = (1e-3, 3e-3)
RATE = 0.01  # of the inner steps of gradient descent, as in training
ALPHA, AI_MAX = 1e-6, 1e3
DRAWS = 2  # of weights, whose predictions are averaged
MANY = 20  # where their variance is asked for
MARGIN = 1.1  # times MAML's error
TARGET = "method.train._target_=selfimprove.methods.niw_meta"
OTHER = [f"{TARGET}.maml", "~method.train.alpha", "~method.train.burnin", "~method.train.ai_max"]
OTHER += ["method.evaluate._target_=selfimprove.methods.niw_meta.descent", "~method.evaluate.samples"]
OTHER += ["~method.evaluate.alpha", "~method.evaluate.ai_max"]
ARMS = {OWN: [], MAML: OTHER, POOLED: [*OTHER, "method.train.steps=0", "method.evaluate.steps=0"]}
Errors = dict[str, float]  # held-out episode -> mean squared error of its query


def study(lab: Lab) -> Iterator[Claim]:
    episodes, heldout, epochs = (100, 30, 1) if lab.quick else (1000, 200, 24)
    common = ["method=niw_meta", "rounds=1", f"dataset.train_size={episodes}", f"method.train.epochs={epochs}"]
    common += [f"dataset.heldout_size={heldout}"]
    runs = {}
    for arm, own in ARMS.items():
        rate = chosen(lab, common, own, arm)
        runs[arm] = [lab.run(*common, *own, f"method.train.learning_rate={rate}", f"seed={s}") for s in lab.seeds]
    solvers = {OWN: by_inference(STEPS), MAML: by_descent(STEPS), POOLED: by_descent(0)}
    found = {arm: [errors(r, solvers[arm]) for r in own] for arm, own in runs.items()}
    start = {arm: [errors(r, by_descent(0)) for r in runs[arm]] for arm in (OWN, MAML)}
    lab.note(table(found, start))
    lab.note(memory_table())

    adapts = "inference from the support beats the prior's mean m0"
    yield bounded(adapts, difference(start[OWN], found[OWN], None), 0.0, "the same net at m0", COMMAND)
    yield bounded(
        "the error is below that of no adaptation", difference(found[POOLED], found[OWN], None), 0.0, POOLED, COMMAND
    )
    allowed = [{name: MARGIN * value for name, value in run.items()} for run in found[MAML]]
    claim = f"the error is at most {MARGIN} times MAML's (difference to that)"
    yield below(claim, difference(found[OWN], allowed, None), 0.0, "MAML, equal inner and meta-steps", COMMAND)
    control = "query points nearer to the support than the median"
    claim = "predictions of points far from the support are more uncertain (standard deviation)"
    yield bounded(claim, spread_apart(runs[OWN]), 0.0, control, COMMAND)


def by_inference(steps: int, draws: int = DRAWS) -> Solver:
    async def solver(problem: Problem, policy: Any) -> Any:
        return await inferred(
            problem, policy, steps=steps, learning_rate=RATE, alpha=ALPHA, ai_max=AI_MAX, samples=draws
        )

    return solver


def by_descent(steps: int) -> Solver:
    async def solver(problem: Problem, policy: Any) -> Any:
        return await descent(problem, policy, steps=steps, learning_rate=RATE)

    return solver


def chosen(lab: Lab, common: Sequence[str], own: Sequence[str], arm: str) -> float:
    """The learning rate of the lowest error on the dev episodes."""
    solver = {OWN: by_inference(STEPS), MAML: by_descent(STEPS), POOLED: by_descent(0)}[arm]

    def score(rate: float) -> float:
        words = ["dataset.dev_size=100", "eval.side=dev", f"method.train.learning_rate={rate}", f"seed={DEV_SEED}"]
        return -overall([errors(lab.run(*common, *own, *words), solver, "dev")])

    return best_rate(lab, arm, RATES[:1] if lab.quick else RATES, score, "score (minus the error)")


def predictions(result: Result, solver: Solver, side: str = "test") -> Iterator[tuple[Problem, np.ndarray]]:
    """Each episode of a side with means and variances (query, 2) by the run's last policy."""
    from selfimprove import store
    from selfimprove.policy import nets
    from selfimprove.policy.draws import DrawsEngine

    problems = [p for p in store.read_records(result.path / "problems.parquet", Problem) if p.split == side]
    answers = solve(solver, DrawsEngine(nets.read, policy_of(result)), problems, max_tokens=1)
    for problem, (trajectory,) in zip(problems, answers, strict=True):
        yield problem, np.array([line.split() for line in trajectory.text.splitlines()], float)


def errors(result: Result, solver: Solver, side: str = "test") -> Errors:
    return {
        problem.id: float(((np.array(problem.metadata["targets"])[:, 0] - rows[:, 0]) ** 2).mean())
        for problem, rows in predictions(result, solver, side)
    }


def spread_apart(runs: Sequence[Result]) -> Estimate:
    """By how much the standard deviation of far points is above that of near ones, episode by episode."""
    sides: list[list[Errors]] = [[], []]
    for result in runs:
        own: list[Errors] = [{}, {}]
        for problem, rows in predictions(result, by_inference(STEPS, MANY)):
            assert problem.array is not None
            x, _, support = np.array(problem.array.data).reshape(problem.array.shape).T
            distance = np.abs(x[support == 0][:, None] - x[support == 1]).min(1)
            for side, there in enumerate((distance > np.median(distance), distance <= np.median(distance))):
                own[side][problem.id] = float(np.sqrt(rows[there, 1]).mean())
        for side in (0, 1):
            sides[side].append(own[side])
    return difference(sides[0], sides[1], None)


def table(found: Mapping[str, Sequence[Errors]], start: Mapping[str, Sequence[Errors]]) -> Table:
    """The code's own figures: errors with and without adaptation."""
    return arms_table(
        f"Mean squared error of held-out queries, means over seeds; {STEPS} inner steps",
        {arm: (runs, start.get(arm)) for arm, runs in found.items()},
        {
            "at m0": lambda arm: f"{overall(arm[1]):.3f}" if arm[1] else "",
            "adapted": lambda arm: f"{overall(arm[0]):.3f}",
        },
    )


def memory_table() -> Table:
    kinds = {OWN: "niw", MAML: "maml"}
    columns = {f"{steps} steps": (lambda kind, steps=steps: f"{held(kind, steps):,}") for steps in (1, 5, 10)}
    return arms_table("What the code does: bytes that a meta-step keeps for its gradient, 8 episodes", kinds, columns)


def held(kind: str, steps: int) -> int:
    """Bytes of tensors that the graph of one meta-step's loss keeps, by inner steps."""
    import torch

    from selfimprove.policy.episodes import Points, Prior

    torch.manual_seed(0)
    net = Prior(inputs=1, outputs=1)
    points = Points(torch.randn(8, 15, 1), torch.randn(8, 15, 1), torch.ones(8, 15))
    kept = dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if kind == "niw":
        found = quadratic(net, points, steps, RATE, ALPHA, 0, AI_MAX)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = objective(net, points, *closed_form(*found, net.m, net.log_v), ALPHA).sum()
    else:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            theta = descended(net, net.m.expand(8, -1), points, steps, 0.01, graph=True)
            loss = net.loss(theta, points).sum()
    assert loss.requires_grad
    return sum(kept.values())
