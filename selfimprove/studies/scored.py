"""For studies whose solvers ask reward models: scores outside of a run, and plain samples with them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from selfimprove.binding import Target
from selfimprove.policy import Engine, Policy, Request
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.curve import sampled_tokens, worth
from selfimprove.report.statistics import Estimate
from selfimprove.studies.rewards import auroc, opening
from selfimprove.studies.solving import ByProblem, Check, Groups, waiting
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify import Context, Judge, Outcome
from selfimprove.verify.outcome_and_steps import resource, verify


def noisy(noise: float) -> dict[str, Target]:
    """The check with noise in place of both models."""
    return {name: {"_target_": f"selfimprove.verify.noisy.{name}", "noise": noise} for name in ("outcome", "steps")}


def trained(outcome: str, steps: str) -> dict[str, Target]:
    """The models in two folders."""
    return {
        "outcome": {"_target_": "selfimprove.verify.reward_model.verify", "model": outcome},
        "steps": {"_target_": "selfimprove.verify.steps.verify", "model": steps},
    }


class Remembering:
    """An engine that answers a request once: arms that ask the same have the same samples, and pay for them once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: dict[Request, asyncio.Future[Sample]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def sample(self, request: Request) -> Sample:
        if request not in self._known:
            self._known[request] = asyncio.ensure_future(self.engine.sample(request))
        known = self._known[request]
        return replace(known.result() if known.done() else await known)


@dataclass(frozen=True)
class Models:
    """Two reward models that are open. `check` reads answers; models with noise also ask it what is right."""

    nodes: Mapping[str, Target]
    check: Check
    opened: Any

    def judge(self, seed: int) -> Judge:
        """What a solver asks; noise is drawn by the seed."""
        policy, check = Policy(ScriptedEngine({}), seed), waiting(self.check)

        async def judge(problem: Problem, trajectories: list[Trajectory]) -> list[Outcome]:
            context = Context(policy.for_problem(problem), check, self.opened)
            return await verify(problem, trajectories, context, **self.nodes)

        return judge

    def weigh(self, groups: Groups, seed: int) -> Groups:
        """Plain samples with their `weight` in the metadata, as the rule `weighted` reads it."""
        for attempt, outcome in zip(itertools.chain.from_iterable(groups), self._all(groups, seed), strict=True):
            attempt.trajectory.metadata["weight"] = outcome.reward
        return groups

    def _all(self, groups: Groups, seed: int) -> list[Outcome]:
        judge = self.judge(seed)

        async def everything() -> list[list[Outcome]]:
            asked = (judge(group[0].problem, [a.trajectory for a in group]) for group in groups)
            return await asyncio.gather(*asked)

        return list(itertools.chain.from_iterable(asyncio.run(everything())))

    def aurocs(self, groups: Groups, seed: int = 0) -> dict[str, Estimate]:
        """How well o tells right answers from wrong ones, and step scores right steps from wrong ones."""
        outcomes, steps = [], []
        found = iter(self._all(groups, seed))
        for group in groups:
            doubts, marks = [], []
            for attempt in group:
                seen = next(found)
                scores = seen.step_rewards or []
                said = float(np.prod(scores)) if scores and seen.extracted is not None else 0.0
                doubts.append((said - seen.reward, attempt.verdict.status != "correct"))  # -o
                true = attempt.verdict.step_rewards or []
                marks += [(-score, b != 1) for score, b in zip(scores, true, strict=True)]
            outcomes.append(doubts)
            steps.append(marks)
        return {"outcome": auroc(outcomes), "steps": auroc(steps)}


def open_models(nodes: Mapping[str, Target], check: Check) -> Models:
    return Models(nodes, check, resource(opening(), **nodes))


def tokens_of(runs: Sequence[Groups]) -> float:
    """Sampled tokens a problem, mean over problems and seeds."""
    return float(np.mean([sampled_tokens(group) for groups in runs for group in groups]))


def prefixes(runs: Sequence[Groups], tokens: float) -> list[Groups]:
    """Of each problem's plain samples the first ones that are worth `tokens`."""
    return [[list(group[: worth(group, tokens)]) for group in groups] for groups in runs]


def heaviest(group: Sequence[Any]) -> int | None:
    """Best-of-n: the candidate of the greatest weight, the first of equals."""
    return max(range(len(group)), key=lambda i: (group[i].trajectory.metadata["weight"], -i), default=None)


def routed_hard(groups: Groups) -> set[str]:
    """The problems that were hard after the drafts were scored."""
    return {group[0].problem.id for group in groups if group[0].trajectory.metadata["hard"]}


def only(found: ByProblem, names: set[str]) -> ByProblem:
    return {name: value for name, value in found.items() if name in names}
