"""Advantages for policy gradients: how much better an answer is than the answers that the policy gives on average.

| method | baseline | scale |
| --- | --- | --- |
| REINFORCE (Williams 1992) | none | none |
| RLOO (Ahmadian et al. 2024, arXiv 2402.14740) | leave_one_out | none |
| GRPO (Shao et al. 2024, arXiv 2402.03300) | mean | std |
| Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) | mean | none |
| scaled over a batch, as in REINFORCE++ (Hu 2025, arXiv 2501.03262) | mean | batch |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator

from selfimprove.binding import Target, bind
from selfimprove.errors import ConfigError, RunError
from selfimprove.types import Attempt, Example

Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["std", "batch", "none"]
Rewards = Callable[[Attempt], Sequence[float]]  # one reward of the whole attempt, or one for each of its turns

EPSILON = 1e-4  # added to a standard deviation


def _bound(node: Target | None) -> Rewards | None:
    if node is None:
        return None
    try:
        return bind(node, "shape")
    except ConfigError as problem:
        raise ValueError(str(problem)) from None


def advantages(
    groups: Iterable[list[Attempt]],
    *,
    baseline: Baseline = "mean",
    scale: Scale = "std",
    per: Literal["trajectory", "turn"] = "trajectory",
    shape: Annotated[Any, BeforeValidator(_bound)] = None,
    role: str = "policy",
) -> Iterator[Example]:
    """One example for each sample of `role`. All its completion tokens have the same advantage.

    The reward is the verdict's. With `per: turn` each turn has its own reward, from the verdict's `step_rewards`, and
    is compared with the same turn of the problem's other attempts. `shape` is a function (attempt) -> rewards that
    replaces the rewards: it gives one number, or one a turn with `per: turn`. It can add later turns' rewards to
    earlier ones.

    `mean` and `leave_one_out` compare attempts at one problem. So a problem with a single attempt gives no example.
    `std` divides by the standard deviation of the problem's rewards (n - 1, as TRL does), and `batch` by that of all
    rewards of the pass.

    Raises RunError for rewards that do not match the turns. Also for samples of another temperature than 1: the
    policy's log-probabilities are not those of the distribution they were drawn from.
    """
    kept = [group for group in groups if len(group) > 1 or baseline == "none"]
    table = [[_rewards(attempt, per, shape, role) for attempt in group] for group in kept]
    every = [reward for rows in table for rewards in rows for reward in rewards]
    spread = float(np.std(every, ddof=1)) if scale == "batch" and len(every) > 1 else None
    for group, rows in zip(kept, table, strict=True):
        turns = [_compared([row[t] for row in rows if len(row) > t], baseline, scale, spread)
                 for t in range(max(map(len, rows)))]  # fmt: skip
        columns = [iter(turn) for turn in turns]
        for attempt, row in zip(group, rows, strict=True):
            own = [next(columns[t]) for t in range(len(row))]
            yield from _examples(attempt, own, role)


def group_advantages(rewards: Sequence[float], baseline: Baseline, scale: Literal["std", "none"]) -> list[float]:
    """The advantages of one problem's attempts, in the order of their rewards."""
    return _compared(rewards, baseline, scale, None)


def _compared(rewards: Sequence[float], baseline: Baseline, scale: Scale, spread: float | None) -> list[float]:
    values, n = np.asarray(rewards, float), len(rewards)
    if n == 1 and baseline != "none":
        return [0.0]  # only one attempt came to this turn, so there is nothing to compare it with
    if baseline == "mean":
        found = values - values.mean()
    elif baseline == "leave_one_out":
        found = values - (values.sum() - values) / (n - 1)
    else:
        found = values
    if scale == "std" and n > 1:
        found = found / (values.std(ddof=1) + EPSILON)
    elif scale == "batch" and spread is not None:
        found = found / (spread + EPSILON)
    return [float(value) for value in found]


def _rewards(attempt: Attempt, per: str, shape: Rewards | None, role: str) -> list[float]:
    """The rewards of an attempt: one, or one for each of its turns."""
    if shape is not None:
        found = [float(reward) for reward in shape(attempt)]
    elif per == "turn":
        found = [float(reward) for reward in attempt.verdict.step_rewards or ()]
    else:
        found = [float(attempt.verdict.reward)]
    turns = sum(sample.role == role for sample in attempt.trajectory.samples)
    expected = turns if per == "turn" else 1
    if len(found) != expected:
        raise RunError(
            f"filter: trajectory {attempt.trajectory.id} has {len(found)} rewards and needs {expected} "
            f"(per={per}, {turns} turns of {role}): give a verifier or a shape that rewards each turn"
        )
    return found


def _examples(attempt: Attempt, own: list[float], role: str) -> Iterator[Example]:
    """The attempt's samples, each with the advantage of its turn or, if there is one only, of the whole attempt."""
    trajectory = attempt.trajectory
    samples = [sample for sample in trajectory.samples if sample.role == role]
    for turn, sample in enumerate(samples):
        if sample.temperature != 1:
            raise RunError(
                f"filter: trajectory {trajectory.id} was sampled at temperature {sample.temperature}: a policy "
                "gradient needs samples of the policy itself, at temperature 1"
            )
        advantage = own[turn] if len(own) > 1 else own[0]
        yield Example(
            attempt.problem.id,
            [trajectory.id],
            sample.prompt_ids,
            sample.completion_ids,
            metadata={"turn": turn} if len(samples) > 1 else {},
            advantages=[advantage] * len(sample.completion_ids),
            logprobs=list(sample.logprobs),
        )
