"""Does a search of an agent's actions mend more bugs than linear rollouts, and what do feedback and a debate add?

Claims of Antoniades et al. 2024 (arXiv 2410.20285), on small repositories (dataset=swe_mini) whose tests run in the
sandbox. The policy is a script that knows each bug: it acts rightly with p = .3 at each step, and what it says of
values has noise of a set deviation. So the study is about the search and says nothing of language models. All arms make
as many nodes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.datasets.envs import load
from selfimprove.env.worlds import Worlds, worlds
from selfimprove.policy.mender import Mender
from selfimprove.studies import Claim, Lab, claim_above, claim_sign, claim_within, difference, gated, overall
from selfimprove.studies.arms import arms_table
from selfimprove.studies.solving import ByProblem, solve
from selfimprove.types import Problem, Trajectory
from selfimprove.verify.replayed import one

COMMAND = "selfimprove study swe_search"
NODES, P = 40, 0.3
NOISE, HIGH = 50.0, 200.0  # of values; high: right and wrong patches differ by 200
TIMES = 1.2  # as many as linear rollouts resolve
MARGIN = 0.05
GATE = 0.2  # share of problems with both right and wrong patches, for a choice to matter
TOKENS = 2000  # of a text at most

SEARCH, LINEAR, BLIND, PAPER = "search", "linear rollouts", "no feedback", "the paper's selection"
DEAF, DEAF_BLIND = "policy that does not read feedback", "the same, no feedback"
CLEAR_BEST, CLEAR_DEBATE = "noise 0, largest value", "noise 0, debate"
HIGH_BEST, HIGH_DEBATE = f"noise {HIGH:g}, largest value", f"noise {HIGH:g}, debate"


@dataclass(frozen=True)
class Arm:
    """What differs from the search: keys of the method, and the policy."""

    words: Sequence[str] = ()
    noise: float = NOISE
    heeds: bool = True
    method: str = "swe_search"


def key(name: str, value: str) -> str:
    return f"method.generate.{name}={value}"


NO_FEEDBACK, DEBATE = key("hindsight", "false"), key("pick", "debate")
ARMS = {
    LINEAR: Arm([key("select", "null"), NO_FEEDBACK]),
    SEARCH: Arm(),
    BLIND: Arm([NO_FEEDBACK]),
    PAPER: Arm(method="swe_search_paper"),
    DEAF: Arm(heeds=False),
    DEAF_BLIND: Arm([NO_FEEDBACK], heeds=False),
    CLEAR_BEST: Arm(noise=0.0),
    CLEAR_DEBATE: Arm([DEBATE], noise=0.0),
    HIGH_BEST: Arm(noise=HIGH),
    HIGH_DEBATE: Arm([DEBATE], noise=HIGH),
}


@dataclass(frozen=True)
class Run:
    """An arm with one seed: each problem's patches, the chosen one first, and which of them mend the bug."""

    found: Sequence[Sequence[Trajectory]]
    right: Sequence[Sequence[bool]]

    @property
    def resolved(self) -> ByProblem:
        return self._by_problem(lambda right: float(right[0]))

    @property
    def any_right(self) -> ByProblem:
        return self._by_problem(lambda right: float(any(right)))

    @property
    def open(self) -> ByProblem:
        """Whether the choice matters: there are right patches and wrong ones."""
        return self._by_problem(lambda right: float(len(set(right)) > 1))

    def _by_problem(self, figure: Callable[[Sequence[bool]], float]) -> ByProblem:
        return {group[0].problem_id: figure(right) for group, right in zip(self.found, self.right, strict=True)}


def study(lab: Lab) -> Iterator[Claim]:
    config = compose(["method=swe_search"], needs=False)
    dataset = config.dataset.model_dump(by_alias=True)
    problems = load(
        env=dataset["env"],
        prompt=dataset["prompt"],
        system=dataset["system"],
        train_size=0,
        heldout_size=6 if lab.quick else 40,
        seed=0,
    )
    tool = worlds(env=dataset["env"], seconds=120.0, chars=4000)
    try:
        yield from claims(lab, problems, tool)
    finally:
        tool.close()


def claims(lab: Lab, problems: Sequence[Problem], tool: Worlds) -> Iterator[Claim]:
    arms = {name: [done(problems, tool, arm, seed) for seed in lab.seeds] for name, arm in ARMS.items()}
    lab.note(table(arms))
    resolved = {name: [run.resolved for run in runs] for name, runs in arms.items()}
    linear = [{name: TIMES * value for name, value in run.items()} for run in resolved[LINEAR]]
    yield claim_above(
        f"search resolves at least {TIMES} times as many, difference to {TIMES} times",
        difference(resolved[SEARCH], linear),
        f"linear rollouts of as many nodes, resolved times {TIMES}",
        COMMAND,
    )
    yield claim_sign("search resolves more", difference(resolved[SEARCH], resolved[LINEAR]), LINEAR, COMMAND)
    yield claim_sign(
        "with hindsight feedback more are resolved", difference(resolved[SEARCH], resolved[BLIND]), BLIND, COMMAND
    )
    yield from gated(
        [
            claim_sign(
                "with much noise in values a debate picks more right patches",
                difference(resolved[HIGH_DEBATE], resolved[HIGH_BEST]),
                "the patch of the largest value, same trees",
                COMMAND,
            )
        ],
        *matters(arms[HIGH_BEST]),
    )
    yield from gated(
        [
            claim_within(
                f"without noise it picks as many, within {MARGIN}",
                difference(resolved[CLEAR_DEBATE], resolved[CLEAR_BEST]),
                MARGIN,
                "the patch of the largest value, same trees",
                COMMAND,
            )
        ],
        *matters(arms[CLEAR_BEST]),
    )
    alike = resolved[DEAF] == resolved[DEAF_BLIND]
    said = "the same bugs are resolved" if alike else "other bugs are resolved"
    what = "feedback changes nothing where the policy does not read it"
    yield Claim(what, alike, said, None, "the same policy without feedback", COMMAND, check=True)


def matters(runs: Sequence[Run]) -> tuple[bool, str]:
    """Whether there are enough problems in which the choice of a patch matters, and how many there are."""
    share = overall([run.open for run in runs])
    return share >= GATE, f"{share:.0%} of problems have right and wrong patches, of {GATE:.0%} needed"


def done(problems: Sequence[Problem], tool: Worlds, arm: Arm, seed: int) -> Run:
    """An arm's trees, and what their patches come to when they are played again."""
    words = [key("iterations", str(NODES)), key("finished", "null"), key("pick", "best"), *arm.words]
    node = compose([f"method={arm.method}", *words], needs=False).solver
    solver: Any = partial(bind(node, "method.generate"), tools={"env": tool})
    engine = Mender(problems, P, arm.noise, arm.heeds, max_length=10**6)
    found = solve(solver, engine, problems, seed=seed, max_tokens=TOKENS)
    return Run(found, asyncio.run(graded(problems, tool, found)))


async def graded(problems: Sequence[Problem], tool: Worlds, found: Sequence[Sequence[Trajectory]]) -> list[list[bool]]:
    async def of(problem: Problem, group: Sequence[Trajectory]) -> list[bool]:
        outcomes = await asyncio.gather(*(one(tool, problem, trajectory) for trajectory in group))
        return [outcome.status == "correct" for outcome in outcomes]

    return await asyncio.gather(*(of(problem, group) for problem, group in zip(problems, found, strict=True)))


def table(arms: Mapping[str, Sequence[Run]]) -> Any:
    def each(figure: Callable[[Sequence[Trajectory]], float]) -> Callable[[Sequence[Run]], str]:
        return lambda runs: f"{np.mean([figure(group) for run in runs for group in run.found]):.1f}"

    return arms_table(
        f"Held-out bugs, means over seeds; {NODES} nodes a tree, noise {NOISE:g} where nothing is said",
        arms,
        {
            "resolved": lambda runs: f"{overall([run.resolved for run in runs]):.3f}",
            "any patch is right": lambda runs: f"{overall([run.any_right for run in runs]):.3f}",
            "patches": each(lambda group: sum(node.text.endswith("finish") for node in group[0].tree)),
            "nodes": each(lambda group: len(group[0].tree) - 1),
            "depth": each(lambda group: max(node.depth for node in group[0].tree)),
        },
    )
