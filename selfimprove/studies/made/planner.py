"""The shipped model, taught four tasks: it is careful where the plan in its prompt suits the task, and else it guesses.

It also answers the three requests by which Auto-Evolve makes plans.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from selfimprove import store
from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.arithmetic import Chain
from selfimprove.methods.auto_evolve import Stage1, applied, last_message, put
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.studies import lessons, tiny
from selfimprove.types import Example, Message, Problem
from selfimprove.verify import Outcome
from selfimprove.verify.arithmetic import check as arithmetic

# The three requests of stage 1 in few tokens; a scripted planner knows them by these words too.
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
MODULES: dict[str, str] = {"solve": "lines", "choice": "options", "expression": "expression", "verify": "check"}

LEVELS = (2, 3, 4)
DOCUMENTS = 10000
TUNING: dict[str, Any] = {"epochs": 1, "learning_rate": 1.5e-3, "batch_size": 32, "warmup_ratio": 0.05}
SUITS = 0.55  # how often GENERATE names the module that suits; REFINE names it with 0.7
BROKEN = 0.2  # how often a plan lacks its last brace


def make(folder: Path, count: int = DOCUMENTS) -> Path:
    """The folder of the model that was tuned on `count` documents."""
    name = store.digest([count, TUNING, SUITS, BROKEN, STAGE1["examples"]])[:8]
    return tiny.trained(folder / f"planning_{name}", partial(documents, count), **TUNING)


def documents(count: int) -> list[Example]:
    """The rows that the model is trained on."""
    from transformers import AutoTokenizer

    tokenizer, rng = AutoTokenizer.from_pretrained(tiny.SHIPPED), random.Random(0)
    return [lessons.answer_row(tokenizer, *document(rng), name=str(i)) for i in range(count)]


def document(rng: random.Random) -> tuple[str | list[Message], str]:
    """A prompt and its reply: an answer by a plan or without one, or one of the three requests of stage 1."""
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
        request, reply = STAGE1["prompt_generate"], module
    elif kind < 0.85:
        request, reply = STAGE1["prompt_implement"], written(module)
    else:
        request, reply = STAGE1["prompt_refine"], written(named(0.7))
    return [{"role": "user", "content": put(request, **values)}], reply


def structure(module: str) -> str:
    """The plan that names one module."""
    return json.dumps({"plan": module})


# The four tasks


def problem_of(chain: Chain, task: Task, rng: random.Random) -> Problem:
    """A chain as a problem of a task; `verify` shows a solution that has a wrong line half of the time."""
    problem = data.problem(chain, "solve" if task == "verify" else task)
    problem.id, problem.metadata["task"] = f"{task}-{chain.digest[:8]}", task
    if task == "verify":
        lines = data.solution(chain).splitlines()
        if rng.random() < 0.5:
            at = rng.randrange(len(chain.steps))
            problem.metadata["fault"] = f"Line {at + 1} is wrong: {lines[at]}."
            lines[at] = f"{lines[at].partition('=')[0]}= {slip(rng, chain.values[at + 1])}"
        problem.prompt = data.verify_prompt(chain.question, "\n".join(lines))
        problem.gold = "incorrect" if "fault" in problem.metadata else "correct"
    return problem


def mixture(side: str, count: int) -> list[Problem]:
    """`count` problems of each task, of one side."""
    loaded = data.load(levels=LEVELS, seed=0, train_size=0, dev_size=4 * count, heldout_size=4 * count)
    chains = [Chain.of(problem.metadata) for problem in loaded if problem.split == side]
    rng = random.Random(side)
    return [problem_of(chain, TASKS[i % 4], rng) for i, chain in enumerate(chains)]


def checked(text: str, problem: Problem) -> Outcome:
    """The check of the four tasks."""
    task = problem.metadata["task"]
    if task == "verify":
        verdict = text.rpartition("Verdict: ")[2].strip()
        return Outcome("correct" if verdict == problem.gold else "wrong", float(verdict == problem.gold), verdict)
    return arithmetic(text, problem.gold, problem.metadata, form=task)


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
    """A wrong value near the right one."""
    return rng.choice([v for v in range(value - 3, value + 4) if v != value and 0 <= v <= data.MAX_VALUE])


# A script in its place


class Planner(ScriptedEngine):
    """Writes plans of a level from 0 to 9, and answers with p_correct = 0.05 + level / 10 by a plan, 0.05 without.

    The first plan has level 3. A refinement is one level better with `p_up`, else one worse. A plan is written as JSON
    with `valid`, without its last brace with `broken`, and else in words.
    """

    def __init__(self, problems: Sequence[Problem], p_up: float, valid: float = 1.0, broken: float = 0.0) -> None:
        super().__init__({str(p.prompt): str(p.gold) for p in problems}, 0.05)
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
        return {written: p * share for written, share in shares.items()}


def level_of(text: str) -> int:
    return int(text[text.index('"level": ') + len('"level": ')])


def questions(count: int, split: str = "test") -> list[Problem]:
    """Problems of the four tasks in turn."""
    return [
        Problem(f"{split}-{i}", f"{split.title()} question {i}?", str(10 * i), metadata={"task": TASKS[i % 4]})
        for i in range(count)
    ]
