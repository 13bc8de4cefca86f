"""Auto-Evolve: a model writes itself a plan for a kind of task, improves it, and then follows it problem by problem.

Auto-Evolve: Enhancing Large Language Model's Performance via Self-Reasoning Framework (Aswani et al. 2024, Findings of
EMNLP, arXiv 2410.06328). It needs no labels and changes no weights.

    stage 1, once a task, from a few of its problems without their answers (`prepare`)
        m   ~ pi(. | GENERATE, problems)             reasoning modules that suit the task
        s_0 ~ pi(. | IMPLEMENT, problems, m)         a reasoning structure of them, as JSON
        s_r ~ pi(. | REFINE, problems, s_{r-1})      r = 1 .. R
    stage 2, once a problem (`generate`)
        y ~ pi(. | s_R, x)                           fill the structure in and answer

That makes 2 + R requests a task and one a problem. A reply that is no JSON is repaired. Where it cannot be, it is asked
for again, at most `retries` times. With dev problems, a refinement is kept only where it answers more of them.

*Wrong when* the model answers no better by a plan that suits the task than by any other: no choice of plans can then
help. Without dev problems a refinement that makes the plan worse is kept as well.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal, TypedDict, Unpack

import json_repair
from annotated_types import Ge

from selfimprove.policy import Policy
from selfimprove.types import Count, Message, NonNegative, Problem, Samples, Trajectory
from selfimprove.verify import Outcome

AGAIN = 0.7  # the least temperature at which a request is repeated: at 0 it would bring the same again

Check = Callable[[str, Problem], Awaitable[Outcome]]
Reading = Literal["valid", "repaired", "rejected"]
Whole = Annotated[int, Ge(0)]


class Stage1(TypedDict):
    """How a plan is made. In `prompt_*`, {problems}, {modules} and {structure} are replaced."""

    prompt_generate: str
    prompt_implement: str
    prompt_refine: str
    task: str  # the key of a problem's metadata that names its task; problems without it are of one task
    examples: Count  # problems of a task that are shown
    refinements: Whole  # R
    retries: Whole  # of a request whose reply is no structure
    plan_temperature: NonNegative
    plan_tokens: Count | None  # of a reply; None: the model's own limit


class Plan(TypedDict):
    """A task's plan and how it came about. `structure` is JSON text; None: no reply could be read."""

    structure: str | None
    modules: str
    replies: list[str]  # to IMPLEMENT and REFINE, and their repetitions
    readings: dict[str, int]  # how many of them were valid, repaired, rejected
    calls: int  # dev answers not counted
    dev: list[float]  # accuracy of the first structure and of each that was tried against it


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    prepared: dict[str, Plan],
    apply: str,
    n: Samples = 1,
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
    **stage1: Unpack[Stage1],
) -> list[Trajectory]:
    """n answers by the plan of the problem's task; without a plan if there is none.

    `apply` is the text of the last message then, with {structure} and {question} replaced.
    """
    name = task_of(problem, stage1["task"])
    structure = prepared[name]["structure"]
    prompt = applied(problem, apply, structure)
    samples = await policy.sample(prompt, n, temperature=temperature, max_tokens=max_tokens)
    return [Trajectory(problem.id, [sample], {"task": name, "planned": structure is not None}) for sample in samples]


async def prepare(
    problems: Sequence[Problem],
    policy: Policy,
    *,
    dev: Sequence[Problem],
    check: Check,
    apply: str,
    max_tokens: Count | None = None,
    n: Samples = 1,
    temperature: NonNegative = 0.0,
    **options: Unpack[Stage1],
) -> dict[str, Plan]:
    """A plan for each task among the problems. Only the gold answers of `dev` are used, by `check`."""

    async def planned(name: str, of_task: list[Problem]) -> Plan:
        planner = policy.for_problem(of_task[0], "plan")
        held = [p for p in dev if task_of(p, options["task"]) == name]

        async def right(problem: Problem, structure: str) -> bool:
            prompt = applied(problem, apply, structure)
            (sample,) = await policy.for_problem(problem, "dev").sample(prompt, temperature=0, max_tokens=max_tokens)
            return (await check(sample.text, problem)).status == "correct"

        async def score(structure: str) -> float:
            return sum(await asyncio.gather(*(right(p, structure) for p in held))) / len(held)

        return await evolve(of_task[: options["examples"]], planner, score if held else None, options)

    tasks: dict[str, list[Problem]] = {}
    for problem in problems:
        tasks.setdefault(task_of(problem, options["task"]), []).append(problem)
    plans = await asyncio.gather(*(planned(name, of_task) for name, of_task in tasks.items()))
    return dict(zip(tasks, plans, strict=True))


async def evolve(
    shown: Sequence[Problem], policy: Policy, score: Callable[[str], Awaitable[float]] | None, options: Stage1
) -> Plan:
    """GENERATE, IMPLEMENT, REFINE for one task. `score` is a structure's worth; None: the last valid structure counts.

    While no structure could be read, IMPLEMENT is asked again in place of REFINE.
    """
    heat, limit = options["plan_temperature"], options["plan_tokens"]
    problems = "\n\n".join(map(last_message, shown))
    prompt = put(options["prompt_generate"], problems=problems)
    (reply,) = await policy.sample(_user(prompt), temperature=heat, max_tokens=limit)
    modules, calls = reply.text.strip(), 1
    best, worth = None, 0.0
    replies: list[str] = []
    readings: Counter[str] = Counter()
    dev: list[float] = []
    for _ in range(1 + options["refinements"]):
        request = options["prompt_implement"] if best is None else options["prompt_refine"]
        prompt = put(request, problems=problems, modules=modules, structure=best or "")
        for attempt in range(1 + options["retries"]):
            warm = heat if not attempt else max(heat, AGAIN)
            (reply,) = await policy.sample(_user(prompt), temperature=warm, max_tokens=limit)
            structure, reading = parse(reply.text)
            replies.append(reply.text)
            readings[reading] += 1
            calls += 1
            if structure is not None:
                break
        if structure is None:
            continue
        if score is not None and structure != best:
            dev.append(await score(structure))
            if best is not None and dev[-1] <= worth:
                continue
            worth = dev[-1]
        best = structure
    return Plan(structure=best, modules=modules, replies=replies, readings=dict(readings), calls=calls, dev=dev)


def parse(text: str) -> tuple[str | None, Reading]:
    """The first JSON object in a reply, as text on one line, and how it was read.

    json_repair repairs everything from the first brace on. An empty object is rejected. So are a reply without a brace,
    and one that is several objects even after repair.
    """
    start = text.find("{")
    if start < 0:
        return None, "rejected"
    reading: Reading = "valid"
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        reading = "repaired"
        try:
            value = json_repair.loads(text[start:])
        except ValueError:  # nested too deep
            return None, "rejected"
    if not isinstance(value, dict) or not value:
        return None, "rejected"
    return json.dumps(value, ensure_ascii=False), reading


def applied(problem: Problem, apply: str, structure: str | None) -> str | list[Message]:
    """The problem's prompt with the structure in its last message; the bare prompt if there is no structure."""
    if structure is None:
        return problem.prompt
    text = put(apply, structure=structure, question=last_message(problem))
    return text if isinstance(problem.prompt, str) else [*problem.prompt[:-1], {"role": "user", "content": text}]


def last_message(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]


def task_of(problem: Problem, key: str) -> str:
    return str(problem.metadata.get(key, ""))


def put(text: str, **values: str) -> str:
    """`text` with {name} replaced for each of the values."""
    return re.sub(rf"\{{({'|'.join(values)})\}}", lambda blank: values[blank[1]], text)


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
