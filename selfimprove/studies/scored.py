"""For studies whose solvers ask reward models: scores outside of a run, and plain samples with them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from selfimprove.binding import Target
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.policy import Engine, Policy, Request
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.curve import worth
from selfimprove.report.statistics import Estimate
from selfimprove.studies import Lab
from selfimprove.studies.rewards import auroc, opening
from selfimprove.studies.solving import Check, Groups, attempts, solve, waiting
from selfimprove.studies.staged import DEV_SEED, GRADE, MAX_TOKENS, pass_folder
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify import Context, Judge, Outcome
from selfimprove.verify.outcome_and_steps import resource, verify

TEMPERATURE = 0.8
RATES = (3e-4, 1e-3)
GATE = 0.7  # the least area under the ROC curve of a reward model on dev


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
            return await verify(
                problem, trajectories, context, outcome=self.nodes["outcome"], steps=self.nodes["steps"]
            )

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


def prefixes(runs: Sequence[Groups], tokens: float) -> list[Groups]:
    """Of each problem's plain samples the first ones that are worth `tokens`."""
    return [[list(group[: worth(group, tokens)]) for group in groups] for groups in runs]


def heaviest(group: Sequence[Any]) -> int | None:
    """Best-of-n: the candidate of the greatest weight, the first of equals."""
    return max(range(len(group)), key=lambda i: (group[i].trajectory.metadata["weight"], -i), default=None)


# Reward models of the policy's own solutions


def trained_models(lab: Lab, engine: Engine, dev: Sequence[Problem]) -> Models:
    """An outcome and a process reward model, each at the rate at which it tells right from wrong best on dev."""
    size = 16 if lab.quick else 150
    common = ["method=magicore_rewards", "rounds=1", f"dataset.train_size={size}", "dataset.heldout_size=8"]
    judged = dev_samples(engine, dev)
    chosen: dict[str, tuple[float, str]] = {}
    for rate in RATES[1:] if lab.quick else RATES:
        own = [f"method.stages.{name}.train.learning_rate={rate}" for name in ("outcome", "steps")]
        run = lab.run(*common, *own)
        folders = [pass_folder(run, name) / "policy" for name in ("outcome", "steps")]
        areas = open_models(trained(*map(str, folders)), GRADE).aurocs(judged)
        said = ", ".join(f"{name} {area.value:.3f}" for name, area in areas.items())
        lab.note(f"reward models on dev at learning rate {rate:g}, area under the ROC curve: {said}")
        for (name, area), folder in zip(areas.items(), folders, strict=True):
            chosen[name] = max(chosen.get(name, (0.0, "")), (area.value, str(folder)))
    return open_models(trained(chosen["outcome"][1], chosen["steps"][1]), GRADE)


def dev_samples(engine: Engine, dev: Sequence[Problem]) -> Groups:
    four = partial(best_of_n, n=4, temperature=TEMPERATURE)
    return attempts(dev, solve(four, engine, dev, seed=DEV_SEED, max_tokens=MAX_TOKENS), GRADE)


def below_gate(models: Models, engine: Engine, dev: Sequence[Problem]) -> str:
    """Which of the reward models does not tell right from wrong well enough; empty if both do."""
    areas = models.aurocs(dev_samples(engine, dev))
    return ", ".join(f"{name} {area.value:.3f}" for name, area in areas.items() if area.value < GATE)
