"""Does a policy that learnt from its own cut and mended paths find back from wrong steps?

Claims of Yuan et al. 2025 (arXiv 2501.11425), in the embedded environment `craft`, where every wrong step can be made
good. All arms begin with the same lessons of a scripted teacher, which makes no mistakes. Then they search the same
number of tasks. One arm learns good paths alone, with as many trained tokens; one leaves bad paths at their ends. On
held-out tasks the first two actions are wrong ones that the policy did not choose, and then it goes on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.env import WAIT, actions_of
from selfimprove.env.craft import plan, written, wrong
from selfimprove.env.worlds import worlds
from selfimprove.generate.act import episode
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.studies import Claim, Lab, Result, claim_above, claim_sign, difference, overall
from selfimprove.studies.arms import arms_table, run_arms
from selfimprove.studies.solving import ByProblem, solve
from selfimprove.studies.staged import answered
from selfimprove.studies.tiny import shipped
from selfimprove.types import Example, Problem, Sample, Trajectory

COMMAND = "selfimprove study agent_r"
OWN, GOOD, END = "agent_r", "good paths alone", "left at the end"
CUT = "method.stages.reflect.filter.cut"
ARMS = {OWN: [], END: [f"{CUT}=end"], GOOD: [f"{CUT}=none"]}
WRONG, ACTIONS = 2, 10  # actions that are forced, and those that may follow
GATE = 0.75  # share of actions that the policy must judge rightly after its lessons, of right and wrong ones alike
EPOCHS = 2
ASK = "Good, uncertain or bad?"  # as conf/method/agent_r.yaml has it

Found = list[Trajectory]  # an episode of each held-out task


def study(lab: Lab) -> Iterator[Claim]:
    tool = worlds(env={"_target_": "selfimprove.env.craft.Craft"})
    try:
        yield from claims(lab, {"env": tool})
    finally:
        tool.close()


def claims(lab: Lab, tools: Mapping[str, Any]) -> Iterator[Claim]:
    taught, searched, heldout, rounds = (40, 8, 20, 1) if lab.quick else (200, 40, 150, 3)
    common = [
        "method=agent_r",
        f"rounds={rounds}",
        f"dataset.train_size={max(taught, searched)}",
        f"dataset.heldout_size={heldout}",
        f"method.stages.learn.problems.count={taught}",
        f"method.stages.reflect.problems.count={searched}",
    ]
    runs = run_arms(lab, common, {name: [*own, epochs(EPOCHS)] for name, own in ARMS.items() if name != GOOD})
    once = lab.over_seeds(*common, *ARMS[GOOD], epochs(EPOCHS))
    more = np.mean([trained(r) for r in runs[OWN]]) / max(1, np.mean([trained(r) for r in once]))
    runs[GOOD] = lab.over_seeds(*common, *ARMS[GOOD], epochs(max(EPOCHS, round(EPOCHS * float(more)))))

    def find_back(result: Result, folder: str) -> Found:
        return episodes(result, folder, partial(forced, tools=tools))

    last = f"{rounds - 1:03d}.*_reflect"
    found = {name: [find_back(r, last) for r in results] for name, results in runs.items()}
    early = [find_back(r, "000.*_reflect") for r in runs[OWN]]
    lessons = [find_back(r, "000.*_learn") for r in runs[OWN]]
    judged = float(np.mean([judges_rightly(r, tools) for r in runs[OWN]]))
    lab.note(table(runs, found, lessons, judged))
    revises = partial(of_each, revision)
    rows: list[Callable[[], Claim]] = [
        lambda: claim_above(
            "the goal is reached from two wrong steps more often, by at least .15",
            difference(succeeds(found[OWN]), succeeds(found[GOOD])),
            "good paths alone, as many trained tokens",
            COMMAND,
            least=0.15,
        ),
        lambda: claim_above(
            "and more often than after the lessons",
            difference(succeeds(found[OWN]), succeeds(lessons)),
            "the policy after its lessons",
            COMMAND,
        ),
        lambda: claim_sign(
            "actions from the wrong steps to the revision fall from round to round",
            difference(revises(found[OWN]), revises(early)),
            "the policy after its first round",
            COMMAND,
            above=False,
        ),
        lambda: claim_sign(
            "fewer actions are repeated at once",
            difference(of_each(repeats, found[OWN]), of_each(repeats, found[GOOD])),
            "good paths alone",
            COMMAND,
            above=False,
        ),
        lambda: claim_sign(
            "a policy that learnt from paths left at their ends revises later",
            difference(revises(found[END]), revises(found[OWN])),
            "left at the first bad action",
            COMMAND,
        ),
        lambda: claim_sign(
            "tasks without forced steps are solved more often than by good paths alone",
            difference([answered(r) for r in runs[OWN]], [answered(r) for r in runs[GOOD]]),
            "good paths alone, as many trained tokens",
            COMMAND,
        ),
    ]
    for row in rows:
        claim = row()
        if judged < GATE:
            why = f"cannot be tested here: {judged:.0%} of actions are judged rightly, of {GATE:.0%} needed"
            claim = Claim(claim.claim, None, why, None, claim.control, COMMAND)
        yield claim


def epochs(count: int) -> str:
    return f"method.train.epochs={count}"


def trained(result: Result) -> int:
    """Tokens with loss in the rows of all rounds."""
    paths = result.path.glob("rounds/*_reflect/examples.parquet")
    return sum(sum(row.mask or []) for path in paths for row in store.read_records(path, Example))


def policy_in(result: Result, folder: str) -> Path:
    (found,) = result.path.glob(f"rounds/{folder}/policy")
    return found


def episodes(result: Result, folder: str, solver: Any) -> Found:
    """What a run's policy of a pass does on the held-out tasks."""
    problems = [group[0].problem for group in result.attempts(result.evaluation("base"))]
    found = solve(solver, shipped(policy_in(result, folder)), problems, max_tokens=48)
    return [trajectory for (trajectory,) in found]


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


def judges_rightly(result: Result, tools: Mapping[str, Any]) -> float:
    """The mean of two shares: of right first actions that the policy of the lessons calls good, of wrong ones bad."""

    async def judge(problem: Problem, policy: Policy) -> list[Trajectory]:
        task = problem.metadata["task"]
        right = written(*plan(task["goal"], task["have"])[0])
        said = []
        for words in (right, written(task["goal"], wrong(task, [], random.Random(problem.id)))):
            dialogue = Dialogue(policy, problem.prompt)
            await force(dialogue, tools["env"].start(problem), words, f"\n{ASK}")
            said.append(await dialogue.reply(temperature=0.0))
        return [Trajectory(problem.id, said)]

    found = episodes(result, "000.*_learn", judge)
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
    return float(np.mean([a == b for a, b in zip(actions, actions[1:], strict=False)])) if len(actions) > 1 else 0.0


def table(
    runs: Mapping[str, Sequence[Result]], found: Mapping[str, Sequence[Found]], lessons: Sequence[Found], judged: float
) -> Table:
    def cell(figure: Callable[[Trajectory], float]) -> Callable[[str], str]:
        return lambda name: f"{overall(of_each(figure, lessons if name == 'lessons' else found[name])):.3f}"

    def alone(name: str) -> str:
        return "" if name == "lessons" else f"{overall([answered(r) for r in runs[name]]):.3f}"

    names = ["lessons", *runs]
    return arms_table(
        f"Held-out tasks behind {WRONG} wrong steps, means over seeds; actions judged rightly after the lessons: "
        f"{judged:.3f}",
        {name: name for name in names},
        {
            "goal reached": cell(lambda t: float(t.metadata["ended"] == "done")),
            "without wrong steps": alone,
            "revises at all": cell(lambda t: float(WAIT in actions_of(t.samples))),
            "actions before it": cell(revision),
            "repeated": cell(repeats),
            "trained tokens": lambda name: (
                "" if name == "lessons" else f"{np.mean([trained(r) for r in runs[name]]):,.0f}"
            ),
        },
    )
