"""Is a plan made once a task and kept when it is better, and is a plan of one's own worth more than a fixed one?"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.methods.auto_evolve import Plan, Stage1, generate, prepare
from selfimprove.policy import Engine, Policy
from selfimprove.report.statistics import difference
from selfimprove.studies import Claim, Lab, as_check, claim_above, overall, signed, untestable
from selfimprove.studies.arms import arms_table
from selfimprove.studies.made import planner
from selfimprove.studies.made.planner import APPLY, MODULES, STAGE1, TASKS, Planner, level_of, questions, structure
from selfimprove.studies.solving import ByProblem, Check, Groups, attempts, grader, solve, solved, waiting
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem
from selfimprove.verify.answers import last
from selfimprove.verify.text import exact

COMMAND = "selfimprove study auto_evolve"
FIXED = "lines"  # one step a line, whatever the task: what "think step by step" is here

stated = grader(exact)


def study(lab: Lab) -> Iterator[Claim]:
    yield from map(as_check, scripted(lab))
    yield from tiny(lab)


def evolve(
    engine: Engine,
    problems: Sequence[Problem],
    check: Check,
    dev: Sequence[Problem] = (),
    seed: int = 0,
    stage1: Stage1 = STAGE1,
) -> tuple[dict[str, Plan], Policy]:
    """Stage 1, and the policy whose meter counted it."""
    policy = Policy(engine, seed, max_tokens=96)
    plans = asyncio.run(prepare(problems, policy, dev=dev, check=waiting(check), apply=APPLY, **stage1))
    return plans, policy


def answer(engine: Engine, problems: Sequence[Problem], plans: Mapping[str, Plan], check: Check) -> Groups:
    """Stage 2: one greedy answer to each problem by its task's plan."""
    solver = partial(generate, prepared=dict(plans), apply=APPLY, temperature=0.0, **STAGE1)
    return attempts(problems, solve(solver, engine, problems, max_tokens=96), check)


# Scripted: a planner of set probabilities


def scripted(lab: Lab) -> Iterator[Claim]:
    problems, dev = questions(80 if lab.quick else 400), questions(80, "dev")
    plans, policy = evolve(Planner(problems, p_up=0.5), problems, stated)
    per_task, stage1 = 2 + STAGE1["refinements"], policy.meter.calls
    answers = sum(
        a.trajectory.samples != [] for g in answer(Planner(problems, 0.5), problems, plans, stated) for a in g
    )
    exactly = stage1 == per_task * len(TASKS) and answers == len(problems)
    text = "2 + R requests make a task's plan, which one request a problem then follows"
    value = f"{stage1} requests for {len(TASKS)} tasks, {answers} for {len(problems)} problems"
    exactly = exactly and all(plan["calls"] == per_task for plan in plans.values())
    yield Claim(text, exactly, value, None, "exact count", COMMAND)
    rows = []
    for name, valid, broken in (("whole", 1.0, 0.0), ("without its last brace", 0.0, 1.0), ("in words", 0.0, 0.0)):
        plans, policy = evolve(Planner(problems, 0.5, valid, broken), problems, stated)
        made = sum(plan["structure"] is not None for plan in plans.values())
        rows.append((name, made, policy.meter.calls / len(TASKS)))
    most = 1 + (1 + STAGE1["refinements"]) * (1 + STAGE1["retries"])
    yield Claim(
        "a broken plan is repaired; words are asked for again as often as allowed, and then there is none",
        [row[1:] for row in rows] == [(4, per_task), (4, per_task), (0, most)],
        "; ".join(f"{name}: {made} of 4 plans, {calls:g} requests a task" for name, made, calls in rows),
        None,
        "1 + (1 + R)(1 + retries) requests",
        COMMAND,
    )
    kept: dict[str, dict[str, float]] = {"dev": {}, "last": {}}  # how -> seed -> level of the kept plan
    for seed in range(40):
        engine = Planner([*problems, *dev], p_up=0.4)
        for name, held in (("dev", dev), ("last", [])):
            plans, _ = evolve(engine, problems, stated, held, seed)
            kept[name][str(seed)] = float(np.mean([level_of(str(plan["structure"])) for plan in plans.values()])) / 10
    levels = {name: 10 * overall([runs]) for name, runs in kept.items()}
    yield claim_above(
        "where 6 of 10 refinements make a plan worse, keeping the better one on dev problems gives better plans "
        "(accuracy of the kept plan)",
        difference([kept["dev"]], [kept["last"]]),
        f"the last valid plan: level {levels['last']:.2f} against {levels['dev']:.2f}, from 3",
        COMMAND,
    )


# Tiny: a model of four tasks that is careful where the plan in its prompt suits the task


def fixed(module: str | None) -> dict[str, Plan]:
    """The same plan for every task; None: no plan."""
    text = None if module is None else structure(module)
    plan = Plan(structure=text, modules="", replies=[], readings={}, calls=0, dev=[])
    return dict.fromkeys(TASKS, plan)


def tiny(lab: Lab) -> Iterator[Claim]:
    engine = shipped(planner.make(lab.folder, 200 if lab.quick else planner.DOCUMENTS))
    problems, dev = planner.mixture("test", 20 if lab.quick else 100), planner.mixture("dev", 10)
    check = planner.checked

    def solved_by(plans: Mapping[str, Plan]) -> ByProblem:
        return solved(answer(engine, problems, plans, check), last)

    arms: dict[str, list[ByProblem]] = {}
    plans: dict[str, list[dict[str, Plan]]] = {}
    for name, held, heat in (("loop, dev", dev, 1.0), ("loop, last valid", [], 1.0), ("loop, T = 0", [], 0.0)):
        stage1: Stage1 = {**STAGE1, "plan_temperature": heat}
        plans[name] = [evolve(engine, problems, check, held, seed, stage1)[0] for seed in lab.seeds]
        arms[name] = [solved_by(p) for p in plans[name]]
    for module in (*MODULES.values(), None):
        arms[f"fixed: {module}" if module else "no plan"] = [solved_by(fixed(module))] * len(lab.seeds)
    gate = premise(arms)
    yield gate
    control, beside = arms[f"fixed: {FIXED}"], f"the plan {FIXED!r} for every task"
    for name in ("loop, dev", "loop, last valid"):
        text = f"plans of the {name} beat one fixed plan for all on at least 3 of 4 tasks"
        if not gate.holds:
            yield untestable(text, "not every task gains from the plan that suits it", beside, COMMAND)
            continue
        wins = [task for task in TASKS if difference(of_task(arms[name], task), of_task(control, task)).low > 0]
        whole = difference(arms[name], control)
        value = f"{len(wins)}: {', '.join(wins) or 'none'}; all together {whole.value:+.3f}"
        yield Claim(text, len(wins) >= 3, value, (whole.low, whole.high), beside, COMMAND)
    change = difference(arms["loop, dev"], arms["loop, last valid"])
    yield claim_above("choosing on dev problems beats the last valid plan", change, "no dev problems", COMMAND)
    lab.note(table(arms))
    lab.note(readings(plans))


def premise(arms: Mapping[str, Sequence[ByProblem]]) -> Claim:
    """Whether the tuned model gains from the plan that suits a task. If it does not, no choice of plans can help."""
    gains = {}
    for task, suited in MODULES.items():
        others = [of_task(arms[f"fixed: {module}"], task)[0] for module in MODULES.values() if module != suited]
        mean = {name: float(np.mean([scores[name] for scores in others])) for name in others[0]}
        gains[task] = difference(of_task(arms[f"fixed: {suited}"], task)[:1], [mean])
    text = "premise: on each task the tuned model is better by the plan that suits it than by the others"
    value = "; ".join(f"{task} {signed(gain)}" for task, gain in gains.items())
    holds = all(gain.low > 0 for gain in gains.values())
    return Claim(text, holds, value, None, "the mean of the three other plans", COMMAND)


def of_task(runs: Sequence[ByProblem], task: str) -> list[ByProblem]:
    return [{name: value for name, value in run.items() if name.startswith(task)} for run in runs]


def table(arms: Mapping[str, Sequence[ByProblem]]) -> Table:
    def of(task: str, runs: Sequence[ByProblem]) -> str:
        return f"{overall(of_task(runs, task)):.3f}"

    columns: dict[str, Callable[[Sequence[ByProblem]], str]] = {task: partial(of, task) for task in TASKS}
    return arms_table("Held-out accuracy, means over seeds", arms, columns | {"all": partial(of, "")}, "plan")


def readings(plans: Mapping[str, Sequence[Mapping[str, Plan]]]) -> Table:
    """What the replies of stage 1 were like."""
    shown = Table("plans", "valid", "repaired", "rejected", "module that suits", title="Replies of stage 1")
    for name, runs in plans.items():
        made = [(task, plan) for run in runs for task, plan in run.items()]
        counts = [sum(plan["readings"].get(kind, 0) for _, plan in made) for kind in ("valid", "repaired", "rejected")]
        suited = sum(plan["structure"] == structure(MODULES[task]) for task, plan in made)
        shown.add_row(name, *map(str, counts), f"{suited} of {len(made)}")
    return shown
