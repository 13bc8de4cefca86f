"""Side effects of learning: how far the policy moves from the base policy, and what it forgets.

Both are measured at a round's end if `eval.drift` and `eval.also` ask for it. They change nothing in the run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from selfimprove import store
from selfimprove.attempt import collect, pair
from selfimprove.grading import grade
from selfimprove.phase import once, policy_key, problems_key, version
from selfimprove.plan import BASE, Pass
from selfimprove.policy import Policy
from selfimprove.report import metrics as measure
from selfimprove.report.statistics import mean, ratio
from selfimprove.session import Policies, Session
from selfimprove.types import Problem, Sample, Trajectory


def drift(session: Session, step: Pass, policies: Policies) -> None:
    """KL(pi_v || pi_0), estimated on one answer at temperature 1 to each of the first `eval.drift` held-out problems.

    drift/scores.parquet has each answer's tokens and nats. The nats are the sum over tokens of r - 1 - log r with r =
    pi_0(token) / pi_v(token). This estimate is unbiased, never negative, and far less noisy than -log r alone, since
    E(r - 1) = 0 under pi_v (the third estimator of Schulman 2020, "Approximating KL divergence"; eq. 4 of arXiv
    2402.03300). Figures are `kl_per_token` (all nats / all tokens) and `kl_per_answer`, for answers up to the limit of
    tokens, with intervals over problems. The engine holds the base policy's weights for one pass over the answers. The
    next phase loads its own.
    """
    config, folder = session.config, session.run.folder(step) / "drift"
    if not config.eval.drift or step.number < 0:
        return
    problems = session.heldout[: config.eval.drift]

    async def solver(problem: Problem, policy: Policy) -> list[Trajectory]:
        samples = await policy.sample(problem.prompt, temperature=1, max_tokens=config.eval.max_tokens)
        return [Trajectory(problem.id, samples)]

    async def scored(base: Policy, samples: list[Sample]) -> list[list[float]]:
        return await asyncio.gather(*(base.logprobs(s.prompt_ids, s.completion_ids) for s in samples))

    def work(key: str) -> dict[str, Any]:
        path = folder / "trajectories.parquet"
        cost = collect(session, step, "drift", path, key, problems, solver, policies)
        found: list[Trajectory] = list(store.read_records(path, Trajectory))
        samples = [trajectory.samples[0] for trajectory in found]
        base = session.wait(scored(session.policy(session.base, "policy", "drift", step.number), samples))
        nats = np.array([kl(s.logprobs, b) for s, b in zip(samples, base, strict=True)])
        tokens = np.array([len(s.completion_ids) for s in samples])
        rows = {"problem_id": [t.problem_id for t in found], "tokens": tokens, "nats": nats}
        with store.new_file(folder / "scores.parquet") as temporary:
            pq.write_table(pa.table(rows), temporary)
        per_token = ratio(nats, tokens.astype(float)).named("kl_per_token")
        return {**per_token, **mean(nats, None).named("kl_per_answer"), "n": len(samples), **cost}

    depends = [
        config.eval.max_tokens,
        policy_key(config),
        policies["policy"].digest,
        session.base["policy"].digest,
        problems_key(problems),
    ]
    once(session, step, "drift", depends, ["drift/trajectories.parquet", "drift/scores.parquet"], work)


def kl(logprobs: Sequence[float], base: Sequence[float]) -> float:
    """Nats of one answer, from both policies' log-probabilities of its tokens."""
    log_r = np.array(base) - np.array(logprobs)
    return float((np.expm1(log_r) - log_r).sum())


def forgetting(session: Session, step: Pass, policies: Policies) -> None:
    """Greedy accuracy on the held-out problems of the second data set, `eval.also`, and its paired change from base.

    The folder also/ has trajectories and verdicts, like an evaluation.
    """
    config, folder = session.config, session.run.folder(step) / "also"
    if config.eval.also is None:
        return
    problems, node = session.also, config.eval.also.verifier

    async def solver(problem: Problem, policy: Policy) -> list[Trajectory]:
        samples = await policy.sample(problem.prompt, temperature=0, max_tokens=config.eval.max_tokens)
        return [Trajectory(problem.id, samples, {"decoding": "greedy"})]

    def work(key: str) -> dict[str, Any]:
        cost = collect(
            session, step, "also", folder / "trajectories.parquet", key, problems, solver, policies, verifier=node
        )
        verdicts = grade(session, step, "also", folder, key, problems, node, policies)
        figures = measure.evaluation(pair(folder, problems))
        if step.number >= 0:
            before = pair(session.run.folder(BASE) / "also", problems)
            figures |= measure.change(before, pair(folder, problems)).named("change")
        return {**figures, **verdicts, **cost}

    depends = [
        node,
        version(node),
        config.eval.max_tokens,
        policy_key(config),
        policies["policy"].digest,
        problems_key(problems),
    ]
    if step.number >= 0:
        depends.append(session.run.made(BASE, "also"))
    once(session, step, "also", depends, ["also/trajectories.parquet", "also/verdicts.parquet"], work)
