"""Does a policy that learnt from its own cut and mended paths find back from wrong steps?

Claims of Yuan et al. 2025 (arXiv 2501.11425), in the embedded environment `craft`, where every wrong step can be made
good. All arms begin with the same lessons of a scripted teacher, which makes no mistakes. Then they search the same
number of tasks. One arm learns good paths alone, with as many trained tokens; one leaves bad paths at their ends. On
held-out tasks the first two actions are wrong ones that the policy did not choose, and then it goes on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.env import WAIT, actions_of
from selfimprove.env.craft import plan, tasks, written, wrong
from selfimprove.env.worlds import worlds
from selfimprove.generate.act import episode
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.policy.models import resolve
from selfimprove.studies import Claim, Lab, Result, claim_above, claim_sign, difference, gated, overall
from selfimprove.studies.arms import arms_table, run_arms
from selfimprove.studies.solving import ByProblem, solve
from selfimprove.studies.staged import DEV_SEED, answered, best_rate, percent, policy_of
from selfimprove.studies.tiny import shipped
from selfimprove.types import Example, Problem, Sample, Trajectory

COMMAND = "selfimprove study agent_r"
OWN, GOOD, END = "agent_r", "good paths alone", "left at the end"
CUT = "method.filter.cut"
ARMS = {OWN: [], END: [f"{CUT}=end"], GOOD: [f"{CUT}=none"]}
WRONG, ACTIONS = 2, 10  # actions that are forced, and those that may follow
GATE = 0.75  # share of first actions that the policy must judge rightly before it learns, of right and wrong ones alike
EPOCHS, RATES = 2, (1e-4, 3e-4, 1e-3)
DEV = 100  # dev tasks
ASK = "Good, uncertain or bad?"  # as conf/method/agent_r.yaml has it

Found = list[Trajectory]  # an episode of each held-out task


def study(lab: Lab) -> Iterator[Claim]:
    tool = worlds(env={"_target_": "selfimprove.env.craft.Craft"})
    try:
        yield from claims(lab, {"env": tool})
    finally:
        tool.close()


def claims(lab: Lab, tools: Mapping[str, Any]) -> Iterator[Claim]:
    searched, heldout, rounds = (10, 20, 1) if lab.quick else (40, 150, 3)
    common = ["method=agent_r", f"method.problems.count={searched}", epochs(EPOCHS)]
    arms = {name: own for name, own in ARMS.items() if name != END or not lab.quick}
    rates = dict.fromkeys(arms, RATES[1]) if lab.quick else chosen_rates(lab, common, tools)
    common += [f"rounds={rounds}", f"dataset.heldout_size={heldout}"]
    arms = {name: [*own, rate(rates[name])] for name, own in arms.items()}
    runs = run_arms(lab, common, {name: own for name, own in arms.items() if name != GOOD})
    once = lab.over_seeds(*common, *arms[GOOD])
    more = float(np.mean([trained(r) for r in runs[OWN]])) / max(1.0, float(np.mean([trained(r) for r in once])))
    runs[GOOD] = lab.over_seeds(*common, *arms[GOOD], epochs(max(EPOCHS, round(EPOCHS * more))))

    def find_back(result: Result, number: int) -> Found:
        path = f"{result.path}/rounds/{number:03d}/policy"
        return episodes(heldout_of(result), path, partial(forced, tools=tools))

    found = {name: [find_back(r, rounds - 1) for r in results] for name, results in runs.items()}
    early = [find_back(r, 0) for r in runs[OWN]]
    base = resolve("crafter", "made")
    problems = heldout_of(runs[OWN][0])
    before = [episodes(problems, base, partial(forced, tools=tools))] * len(lab.seeds)
    judged = judges_rightly(problems, base, tools)
    lab.note(table(runs, found, before, judged))
    revises = partial(of_each, revision)
    rows = [
        claim_above(
            "the goal is reached from two wrong steps more often, by at least .15",
            difference(succeeds(found[OWN]), succeeds(found[GOOD])),
            "good paths alone, as many trained tokens",
            COMMAND,
            least=0.15,
        ),
        claim_above(
            "and more often than at the start",
            difference(succeeds(found[OWN]), succeeds(before)),
            "the policy that all arms begin with",
            COMMAND,
        ),
        claim_sign(
            "actions from the wrong steps to the revision fall from round to round",
            difference(revises(found[OWN]), revises(early)),
            "the policy after its first round",
            COMMAND,
            above=False,
        ),
        claim_sign(
            "fewer actions are repeated at once",
            difference(of_each(repeats, found[OWN]), of_each(repeats, found[GOOD])),
            "good paths alone",
            COMMAND,
            above=False,
        ),
        claim_sign(
            "tasks without forced steps are solved more often than by good paths alone",
            difference([answered(r) for r in runs[OWN]], [answered(r) for r in runs[GOOD]]),
            "good paths alone, as many trained tokens",
            COMMAND,
        ),
    ]
    if not lab.quick:
        rows.append(
            claim_sign(
                "a policy that learnt from paths left at their ends revises later",
                difference(revises(found[END]), revises(found[OWN])),
                "left at the first bad action",
                COMMAND,
            )
        )
    yield from gated(rows, judged >= GATE, f"{judged:.0%} of actions are judged rightly, of {GATE:.0%} needed")


def epochs(count: object) -> str:
    return f"method.train.epochs={count}"


def rate(value: float) -> str:
    return f"method.train.learning_rate={value}"


def chosen_rates(lab: Lab, common: Sequence[str], tools: Mapping[str, Any]) -> dict[str, float]:
    """The learning rate of each arm whose policy, after a round, most often finds back on dev tasks."""
    dev = [Problem(row.id, row.question, row.gold, "dev", row.metadata) for row in tasks("dev", DEV, 0)]

    def finds_back(own: Sequence[str], value: float) -> float:
        trial = lab.run(*common, *own, "rounds=1", "dataset.heldout_size=10", rate(value), f"seed={DEV_SEED}")
        return overall(succeeds([episodes(dev, policy_of(trial), partial(forced, tools=tools))]))

    return {
        arm: best_rate(lab, arm, RATES, partial(finds_back, own), "tasks solved behind wrong steps", percent)
        for arm, own in ARMS.items()
    }


def trained(result: Result) -> int:
    """Tokens with loss that training went through: those in the rows of all rounds, once an epoch."""
    paths = result.path.glob("rounds/*/examples.parquet")
    count = int([word for word in result.overrides if word.startswith(epochs(""))][-1].removeprefix(epochs("")))
    return count * sum(sum(row.mask or []) for path in paths for row in store.read_records(path, Example))


def heldout_of(result: Result) -> list[Problem]:
    return [group[0].problem for group in result.attempts(result.evaluation("base"))]


def episodes(problems: Sequence[Problem], path: str, solver: Any) -> Found:
    """What the policy in `path` does on tasks, an episode each."""
    return [trajectory for (trajectory,) in solve(solver, shipped(path), problems, max_tokens=24)]


async def forced(problem: Problem, policy: Policy, *, tools: Mapping[str, Any]) -> list[Trajectory]:
    """A greedy episode behind wrong actions, the same for all policies. metadata is that of the policy's own part."""
    dialogue, world, rng = Dialogue(policy, problem.prompt), tools["env"].start(problem), random.Random(problem.id)
    task = problem.metadata["task"]
    for _ in range(WRONG):
        await force(dialogue, world, written(task["goal"], wrong(task, world.actions, rng)))
    first = len(dialogue.samples)
    found = await episode(dialogue, world, actions=ACTIONS, temperature=0.0)
    found.samples = found.samples[first:]
    return [found]


async def force(dialogue: Dialogue, world: Any, words: str, ask: str = "") -> None:
    """Put a step into an episode that the policy did not choose, and what is seen of it, with a question behind it."""
    ids = [*dialogue.policy.encode(words), dialogue.policy.engine.end]
    dialogue.take(Sample(dialogue.ids, ids, [0.0] * len(ids), words, "stop", 0, role="forced"))
    (action,) = actions_of(dialogue.samples[-1:])
    dialogue.user((await world.step(action)).text + ask)


def judges_rightly(problems: Sequence[Problem], path: str, tools: Mapping[str, Any]) -> float:
    """The mean of two shares: of right first actions that the policy in `path` calls good, and of wrong ones bad."""

    async def judge(problem: Problem, policy: Policy) -> list[Trajectory]:
        task = problem.metadata["task"]
        right = written(*plan(task["goal"], task["have"])[0])
        said = []
        for words in (right, written(task["goal"], wrong(task, [], random.Random(problem.id)))):
            dialogue = Dialogue(policy, problem.prompt)
            await force(dialogue, tools["env"].start(problem), words, f"\n{ASK}")
            said.append(await dialogue.reply(temperature=0.0))
        return [Trajectory(problem.id, said)]

    found = episodes(problems, path, judge)
    right_ones = [("good" in t.samples[0].text) + ("bad" in t.samples[1].text) for t in found]
    return float(np.mean(right_ones) / 2)


# Figures of an episode behind wrong steps


def of_each(figure: Callable[[Trajectory], float], runs: Sequence[Found]) -> list[ByProblem]:
    return [{t.problem_id: figure(t) for t in found} for found in runs]


def succeeds(runs: Sequence[Found]) -> list[ByProblem]:
    return of_each(lambda t: float(t.metadata["ended"] == "done"), runs)


def revision(trajectory: Trajectory) -> float:
    """Actions before the policy revises; all that it may do where it never does."""
    actions = actions_of(trajectory.samples)
    return float(actions.index(WAIT) if WAIT in actions else ACTIONS)


def repeats(trajectory: Trajectory) -> float:
    """The share of actions that are the one before again."""
    actions = actions_of(trajectory.samples)
    return float(np.mean([a == b for a, b in itertools.pairwise(actions)])) if len(actions) > 1 else 0.0


def table(
    runs: Mapping[str, Sequence[Result]], found: Mapping[str, Sequence[Found]], before: Sequence[Found], judged: float
) -> Table:
    arms = {"start": before, **found}

    def cell(figure: Callable[[Trajectory], float]) -> Callable[[str], str]:
        return lambda name: f"{overall(of_each(figure, arms[name])):.3f}"

    def alone(name: str) -> str:
        scores = [answered(r, "base") for r in runs[OWN]] if name == "start" else [answered(r) for r in runs[name]]
        return f"{overall(scores):.3f}"

    def tokens(name: str) -> str:
        return "" if name == "start" else f"{np.mean([trained(r) for r in runs[name]]):,.0f}"

    return arms_table(
        f"Held-out tasks behind {WRONG} wrong steps, means over seeds; first actions judged rightly: {judged:.3f}",
        {name: name for name in arms},
        {
            "goal reached": cell(lambda t: float(t.metadata["ended"] == "done")),
            "without wrong steps": alone,
            "revises at all": cell(lambda t: float(WAIT in actions_of(t.samples))),
            "actions before it": cell(revision),
            "repeated": cell(repeats),
            "trained tokens": tokens,
        },
    )
