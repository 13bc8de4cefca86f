"""Is a plan made once a task and kept when it is better, and is a plan of one's own worth more than a fixed one?"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.arithmetic import Chain
from selfimprove.methods.auto_evolve import Plan, Stage1, applied, generate, last_message, prepare, put
from selfimprove.policy import Engine, Policy
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.report.statistics import difference
from selfimprove.studies import Claim, Lab, claim_above
from selfimprove.studies.solving import Check, attempts, shipped, solve, tuned
from selfimprove.types import Attempt, Example, Message, Problem, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.arithmetic import check as arithmetic
from selfimprove.verify.text import exact

COMMAND = "selfimprove study auto_evolve"

# The three requests of stage 1 in few tokens; both arms know them by these words.
GENERATE, IMPLEMENT, REFINE = "Modules?", "Plan?", "Better plan?"
STAGE1 = Stage1(
    prompt_generate="{problems}\n" + GENERATE,
    prompt_implement="{problems}\n{modules}\n" + IMPLEMENT,
    prompt_refine="{problems}\n{structure}\n" + REFINE,
    task="task",
    examples=2,
    refinements=3,
    retries=2,
    plan_temperature=1.0,
    plan_tokens=24,
)
APPLY = "{structure}\n{question}"
Task = Literal["solve", "choice", "expression", "verify"]
TASKS: tuple[Task, ...] = get_args(Task)


def study(lab: Lab) -> Iterator[Claim]:
    yield from scripted(lab)
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

    async def ask(text: str, problem: Problem) -> Outcome:
        return check(text, problem)

    return asyncio.run(prepare(problems, policy, dev=dev, check=ask, apply=APPLY, **stage1)), policy


def answer(
    engine: Engine, problems: Sequence[Problem], plans: Mapping[str, Plan], check: Check, seed: int = 0
) -> list[list[Attempt]]:
    solver = partial(generate, prepared=dict(plans), apply=APPLY, temperature=0.0, **STAGE1)
    return attempts(problems, solve(solver, engine, problems, seed=seed, max_tokens=96), check)


# Scripted: a planner of set probabilities


class Planner(ScriptedEngine):
    """Writes plans of a level from 0 to 9, and answers with p_correct = 0.05 + level / 10 by a plan, 0.05 without.

    The first plan has level 3. A refinement is one level better with `p_up`, else one worse. A plan is written as JSON
    with `valid`, without its last brace with `broken`, and else in words.
    """

    def __init__(self, gold: Mapping[str, str], p_up: float, valid: float = 1.0, broken: float = 0.0) -> None:
        super().__init__(gold, 0.05)
        self.p_up, self.valid, self.broken = p_up, valid, broken

    def outcomes(self, prompt: str) -> dict[str, float]:
        if prompt.endswith(GENERATE):
            return {"Look at it closely.": 1.0}
        if prompt.endswith(REFINE):
            level = level_of(prompt)
            return self._written(min(9, level + 1), self.p_up) | self._written(max(0, level - 1), 1 - self.p_up)
        if prompt.endswith(IMPLEMENT):
            return self._written(3, 1.0)
        self.p_correct = 0.05 + level_of(prompt) / 10 if "{" in prompt else 0.05
        return super().outcomes(prompt)

    def _written(self, level: int, p: float) -> dict[str, float]:
        text = json.dumps({"level": level})
        shares = {text: self.valid, text[:-1]: self.broken, f"Level {level}": 1 - self.valid - self.broken}
        return {said: p * share for said, share in shares.items()}


def level_of(text: str) -> int:
    return int(text[text.index('"level": ') + len('"level": ')])


def stated(text: str, problem: Problem) -> Outcome:
    return exact(text, problem.gold, problem.metadata)


def questions(count: int, split: str = "test") -> list[Problem]:
    """Problems of the four tasks in turn."""
    return [
        Problem(f"{split}-{i}", f"{split.title()} question {i}?", str(10 * i), metadata={"task": TASKS[i % 4]})
        for i in range(count)
    ]


def planner(problems: Sequence[Problem], **rates: float) -> Planner:
    return Planner({str(p.prompt): str(p.gold) for p in problems}, **rates)


def scripted(lab: Lab) -> Iterator[Claim]:
    problems, dev = questions(80 if lab.quick else 400), questions(80, "dev")
    plans, policy = evolve(planner(problems, p_up=0.5), problems, stated)
    per_task, stage1 = 2 + STAGE1["refinements"], policy.meter.calls
    answers = sum(t.samples != [] for group in answer_all(problems, plans) for t in group)
    yield Claim(
        "2 + R requests make a task's plan, which one request a problem then follows",
        stage1 == per_task * len(TASKS)
        and answers == len(problems)
        and all(plan["calls"] == per_task for plan in plans.values()),
        f"{stage1} requests for {len(TASKS)} tasks, {answers} for {len(problems)} problems",
        None,
        "exact count",
        COMMAND,
    )
    rows = []
    for name, valid, broken in (("whole", 1.0, 0.0), ("without its last brace", 0.0, 1.0), ("in words", 0.0, 0.0)):
        plans, policy = evolve(planner(problems, p_up=0.5, valid=valid, broken=broken), problems, stated)
        made = sum(plan["structure"] is not None for plan in plans.values())
        rows.append((name, made, policy.meter.calls / len(TASKS)))
    asked = 1 + (1 + STAGE1["refinements"]) * (1 + STAGE1["retries"])
    yield Claim(
        "a broken plan is repaired; words are asked for again as often as allowed, and then there is none",
        [row[1:] for row in rows] == [(4, per_task), (4, per_task), (0, asked)],
        "; ".join(f"{name}: {made} of 4 plans, {calls:g} requests a task" for name, made, calls in rows),
        None,
        "1 + (1 + R)(1 + retries) requests",
        COMMAND,
    )
    every = [*problems, *dev]
    kept: dict[str, list[float]] = {"dev": [], "last": []}
    for seed in range(40):
        engine = planner(every, p_up=0.4)
        for name, held in (("dev", dev), ("last", [])):
            plans, _ = evolve(engine, problems, stated, held, seed)
            kept[name].append(float(np.mean([level_of(str(plan["structure"])) for plan in plans.values()])))
    better = difference(
        [{str(i): level / 10 for i, level in enumerate(kept["dev"])}],
        [{str(i): level / 10 for i, level in enumerate(kept["last"])}],
    )
    yield claim_above(
        "where 6 of 10 refinements make a plan worse, keeping the better one on dev problems gives better plans "
        "(accuracy of the kept plan)",
        better,
        f"the last valid plan: level {np.mean(kept['last']):.2f} against {np.mean(kept['dev']):.2f}, from 3",
        COMMAND,
    )


def answer_all(problems: Sequence[Problem], plans: Mapping[str, Plan]) -> list[list[Trajectory]]:
    solver = partial(generate, prepared=dict(plans), apply=APPLY, **STAGE1)
    return solve(solver, planner(problems, p_up=0.5), problems)


# Tiny: a model of four tasks that is careful where the plan in its prompt suits the task


LEVELS = (2, 3, 4)
MODULES: dict[str, str] = {"solve": "lines", "choice": "options", "expression": "expression", "verify": "check"}
ROWS = {False: 10000, True: 200}  # by lab.quick
TUNING = {"epochs": 1, "learning_rate": 1.5e-3, "batch_size": 32}
SUITS = 0.55  # how often GENERATE names the module that suits; REFINE names it with 0.7
BROKEN = 0.2  # how often a plan lacks its last brace
FIXED = "lines"  # one step a line, whatever the task: what "think step by step" is here


def problem_of(chain: Chain, task: Task, rng: random.Random) -> Problem:
    """A chain as a problem of a task; `verify` shows a solution that has a wrong line half of the time."""
    made = data.problem(chain, "solve" if task == "verify" else task)
    made.id, made.metadata["task"] = f"{task}-{chain.digest[:8]}", task
    if task == "verify":
        lines = data.solution(chain).splitlines()
        if rng.random() < 0.5:
            at = rng.randrange(len(chain.steps))
            made.metadata["fault"] = f"Line {at + 1} is wrong: {lines[at]}."
            lines[at] = f"{lines[at].partition('=')[0]}= {slip(rng, chain.values[at + 1])}"
        made.prompt = data.verify_prompt(chain.question, "\n".join(lines))
        made.gold = "incorrect" if "fault" in made.metadata else "correct"
    return made


def careful(problem: Problem) -> str:
    """What an author writes who works by the procedure that suits the task."""
    chain, task = Chain.of(problem.metadata), problem.metadata["task"]
    if task == "expression":
        return data.expression(chain)
    if task == "verify":
        return f"{problem.metadata.get('fault', 'Every line is right.')}\nVerdict: {problem.gold}"
    if task == "solve":
        return data.solution(chain)
    rows = data.solution(chain).splitlines()[:-1]
    for letter, option in zip(data.LETTERS, problem.metadata["options"], strict=True):
        same = option == str(chain.answer)
        rows.append(f"{letter}) {option} {chain.answer} {'yes' if same else 'no'}")
        if same:
            break
    return "\n".join([*rows, f"The answer is {problem.gold}."])


def hasty(problem: Problem, rng: random.Random) -> str:
    """What an author writes who does not: a guess in the same form."""
    chain, task = Chain.of(problem.metadata), problem.metadata["task"]
    if task == "expression":
        return data.expression(chain).replace("(", "").replace(")", "")
    if task == "verify":
        return f"Verdict: {rng.choice(('correct', 'incorrect'))}"
    guess = str(slip(rng, chain.answer)) if task == "solve" else rng.choice(data.LETTERS)
    return f"The answer is {guess}."


def slip(rng: random.Random, value: int) -> int:
    return rng.choice([v for v in range(value - 3, value + 4) if v != value and 0 <= v <= data.MAX_VALUE])


def structure(module: str) -> str:
    return json.dumps({"plan": module})


def document(rng: random.Random) -> tuple[str | list[Message], str]:
    """What is asked and what is learnt: an answer by a plan or without one, or one of the three requests of stage 1."""
    task = rng.choice(TASKS)

    def drawn() -> Problem:
        chain = data.random_chain(rng, rng.choice(LEVELS))
        return problem_of(chain, task, rng) if chain.side == "train" else drawn()

    def named(share: float) -> str:
        return MODULES[task if rng.random() < share else rng.choice(TASKS)]

    def written(module: str) -> str:
        return structure(module)[: -1 if rng.random() < BROKEN else None]

    kind = rng.random()
    if kind < 0.6:
        problem = drawn()
        module = named(0.4) if rng.random() < 0.85 else None
        suits = module == MODULES[task] if module else rng.random() < 0.5
        plan = structure(module) if module else None
        return applied(problem, APPLY, plan), careful(problem) if suits else hasty(problem, rng)
    module, shown = named(SUITS), "\n\n".join(last_message(drawn()) for _ in range(STAGE1["examples"]))
    values = {"problems": shown, "modules": module, "structure": structure(module)}
    if kind < 0.7:
        asked, learnt = STAGE1["prompt_generate"], module
    elif kind < 0.85:
        asked, learnt = STAGE1["prompt_implement"], written(module)
    else:
        asked, learnt = STAGE1["prompt_refine"], written(named(0.7))
    return [{"role": "user", "content": put(asked, **values)}], learnt


def documents(count: int) -> list[Example]:
    engine, rng = shipped(), random.Random(0)
    rows = []
    for i in range(count):
        asked, learnt = document(rng)
        completion = [*engine.encode(learnt), engine.tokenizer.eos_token_id]
        rows.append(Example(str(i), [], engine.render(asked), completion))
    return rows


def checked(text: str, problem: Problem) -> Outcome:
    """The check of the four tasks."""
    task = problem.metadata["task"]
    if task == "verify":
        said = text.rpartition("Verdict: ")[2].strip()
        return Outcome("correct" if said == problem.gold else "wrong", float(said == problem.gold), said)
    return arithmetic(text, problem.gold, problem.metadata, form=task)


def mixture(side: str, count: int) -> list[Problem]:
    """`count` problems of each task, of one side."""
    loaded = data.load(levels=LEVELS, seed=0, train_size=0, dev_size=4 * count, heldout_size=4 * count)
    chains = [Chain.of(problem.metadata) for problem in loaded if problem.split == side]
    rng = random.Random(side)
    return [problem_of(chain, TASKS[i % 4], rng) for i, chain in enumerate(chains)]


def fixed(module: str | None) -> dict[str, Plan]:
    """The same plan for every task; None: no plan."""
    text = None if module is None else structure(module)
    plan = Plan(structure=text, modules="", replies=[], readings={}, calls=0, dev=[])
    return dict.fromkeys(TASKS, plan)


def tiny(lab: Lab) -> Iterator[Claim]:
    count = ROWS[lab.quick]
    made = store.digest([count, TUNING, SUITS, BROKEN, STAGE1["examples"]])[:8]
    engine = shipped(tuned(lab.folder / f"planning_{made}", lambda: documents(count), **TUNING))
    problems, dev = mixture("test", 20 if lab.quick else 100), mixture("dev", 10)
    arms: dict[str, list[dict[str, float]]] = {}
    plans: dict[str, list[dict[str, Plan]]] = {}
    for name, held, heat in (("loop, dev", dev, 1.0), ("loop, last valid", [], 1.0), ("loop, T = 0", [], 0.0)):
        plans[name] = [
            evolve(engine, problems, checked, held, seed, stage1={**STAGE1, "plan_temperature": heat})[0]
            for seed in lab.seeds
        ]
        arms[name] = [solved(answer(engine, problems, p, checked)) for p in plans[name]]
    for module in (*MODULES.values(), None):
        label = f"fixed: {module}" if module else "no plan"
        arms[label] = [solved(answer(engine, problems, fixed(module), checked))] * len(lab.seeds)
    yield premise(arms)
    control = arms[f"fixed: {FIXED}"]
    for name in ("loop, dev", "loop, last valid"):
        wins = [task for task in TASKS if difference(of_task(arms[name], task), of_task(control, task)).low > 0]
        whole = difference(arms[name], control)
        yield Claim(
            f"plans of the {name} beat one fixed plan for all on at least 3 of 4 tasks",
            len(wins) >= 3,
            f"{len(wins)}: {', '.join(wins) or 'none'}; all together {whole.value:+.3f}",
            (whole.low, whole.high),
            f"the plan {FIXED!r} for every task",
            COMMAND,
        )
    yield claim_above(
        "choosing on dev problems beats the last valid plan",
        difference(arms["loop, dev"], arms["loop, last valid"]),
        "no dev problems",
        COMMAND,
    )
    lab.note(table(arms))
    lab.note(readings(plans))


def premise(arms: Mapping[str, Sequence[dict[str, float]]]) -> Claim:
    """Whether the tuned model gains from the plan that suits a task; where it does not, no choice of plans can help."""
    gains = {}
    for task, own in MODULES.items():
        others = [of_task(arms[f"fixed: {module}"], task) for module in MODULES.values() if module != own]
        mean = [
            {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
            for runs in zip(*others, strict=True)
        ]
        gains[task] = difference(of_task(arms[f"fixed: {own}"], task)[:1], mean[:1])
    return Claim(
        "premise: on each task the tuned model is better by the plan that suits it than by the others",
        all(gain.low > 0 for gain in gains.values()),
        "; ".join(f"{task} {gain.value:+.3f} [{gain.low:.3f}, {gain.high:.3f}]" for task, gain in gains.items()),
        None,
        "the mean of the three other plans",
        COMMAND,
    )


def solved(groups: Sequence[Sequence[Attempt]]) -> dict[str, float]:
    return {group[0].problem.id: float(group[0].verdict.status == "correct") for group in groups}


def of_task(runs: Sequence[dict[str, float]], task: str) -> list[dict[str, float]]:
    return [{name: value for name, value in run.items() if name.startswith(task)} for run in runs]


def table(arms: Mapping[str, Sequence[dict[str, float]]]) -> Table:
    shown = Table("plan", *TASKS, "all", title="Held-out accuracy, means over seeds")
    for name, runs in arms.items():
        by_task = [np.mean([list(run.values()) for run in of_task(runs, task)]) for task in TASKS]
        shown.add_row(name, *(f"{x:.3f}" for x in [*by_task, np.mean(by_task)]))
    return shown


def readings(plans: Mapping[str, Sequence[Mapping[str, Plan]]]) -> Table:
    shown = Table("plans", "valid", "repaired", "rejected", "module that suits", title="Replies of stage 1")
    for name, runs in plans.items():
        own = [(task, plan) for run in runs for task, plan in run.items()]
        counts = [sum(plan["readings"].get(kind, 0) for _, plan in own) for kind in ("valid", "repaired", "rejected")]
        right = sum(plan["structure"] == structure(MODULES[task]) for task, plan in own)
        shown.add_row(name, *map(str, counts), f"{right} of {len(own)}")
    return shown
