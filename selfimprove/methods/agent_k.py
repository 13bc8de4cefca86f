"""Agent K: stage by stage a model writes a data-science pipeline, tests it, and remembers what worked for later tasks.

Large Language Models Orchestrating Structured Reasoning Achieve Kaggle Grandmaster Level (Grosnit et al. 2024, arXiv
2411.03562). No weight changes; what is learnt stands in a memory.

    task x          a table with labelled rows, and rows to answer
    setup           fetch, modality of each column, maps of inputs and target, metric, form of a submission
    solution        features, model, search space of its hyper-parameters, ensemble
    for each stage  c ~ pi(. | x, stage, code so far, what failed, cases)      a function, run in the sandbox
        its unit tests fail, it raises or hangs: the stage blamed for it is written again, at most `retries` times
    search          `trials` choices by Bayesian optimisation, each fitted, and scored on rows for validation;
                    the best `members` of them answer together
    memory m        (descriptor of x, code, score q): written where a submission was valid and q is better than before
    cases           the `top` of m whose descriptors fit x best, by BM25
    next task       most like those where q >= 1/2 and least like the others
    score q         the quantile of the submission on the leaderboard of x

*Wrong when* tasks with like descriptors need unlike pipelines: then the cases mislead. Also wrong when the tests miss a
fault: a retry mends only the faults that they find.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge

from selfimprove.policy import Policy
from selfimprove.report import elo_mmr
from selfimprove.scores import Scores
from selfimprove.tools import Tool
from selfimprove.tools.pipeline import CONTRACTS, SETUP, SOLUTION
from selfimprove.tools.retrieval import Retriever
from selfimprove.types import Attempt, Count, Memory, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify.leaderboard import ENTRANT
from selfimprove.verify.programs import blocks

TOOLS = ("stages",)  # what its solver calls
NEEDS = ("tables",)  # of the data set
SUCCESS = 0.5  # the least score of a past task that was a success

Retries = Annotated[int, Ge(0)]


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    retries: Retries,
    tests: bool,
    trials: Count,
    sampler: Literal["tpe", "random"],
    members: Count,
    top: Annotated[int, Ge(0)],
    memory: Sequence[Memory],
    tools: Mapping[str, Tool],
    seed: int,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One pipeline. The last sample has the role `tool`. It is the submission that the data set's verifier reads.

    tests: run the stages' unit tests. top: cases that are shown; 0: none. metadata has the stages' `codes`, the best
    `validation` score, how often each stage was `tried`, and in `failed` the stage that failed too often.
    """
    cases = retrieved(memory, problem.metadata["descriptor"], top)
    keys = ("train", "test", "target", "identifier", "kind", "description")
    asked = {"task": {key: problem.metadata[key] for key in keys}, "tests": tests, "trials": trials, "members": members}
    codes, said, tried = dict[str, str](), dict[str, str](), Counter[str]()
    samples, found = list[Sample](), None
    goal: tuple[str, ...] = SETUP
    while True:
        for stage in goal:
            if stage not in codes:
                text = prompt(problem, stage, codes, said.get(stage), cases)
                options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
                (sample,) = await policy.sample([{"role": "user", "content": text}], **options)
                samples.append(sample)
                codes[stage], tried[stage] = code_of(sample.text, stage), tried[stage] + 1
        now = {stage: codes[stage] for stage in goal}
        request = {**asked, "codes": now, "found": found, "sampler": sampler, "seed": seed}
        reply = json.loads(await tools["stages"](json.dumps(request)))
        if "done" in reply:
            if len(goal) > len(SETUP):
                made, failed = reply["done"], None
                break
            goal = (*SETUP, *SOLUTION)
            continue
        blamed, found = reply["broken"], reply.get("found")
        said[blamed] = reply["said"]
        if tried[blamed] > retries:
            made, failed = {"failed": reply["status"], "said": f"{blamed}: {reply['said']}"}, blamed
            break
        del codes[blamed]
        goal = SETUP if blamed in SETUP else goal
    words = json.dumps({key: value for key, value in made.items() if key != "validation"})
    ids = policy.encode(words)
    before = [*samples[-1].prompt_ids, *samples[-1].completion_ids]
    samples.append(Sample(before, ids, [0.0] * len(ids), words, "stop", 0, role="tool"))
    how = {"codes": codes, "validation": made.get("validation"), "tried": dict(tried), "failed": failed}
    return [Trajectory(problem.id, samples, how)]


def prompt(problem: Problem, stage: str, codes: Mapping[str, str], said: str | None, cases: Sequence[Memory]) -> str:
    """What the policy is asked for a stage. `said`: why its last try failed."""
    parts = [problem.metadata["description"], f"Stage: {stage}\n{CONTRACTS[stage]}."]
    if stage in SOLUTION:
        for case in cases:
            code = json.loads(case.text or "{}").get(stage, "")
            parts.append(f"Case with a score of {case.metadata['score']:.2f}:\n```python\n{code}\n```")
    written = "\n\n".join(codes[name] for name in SOLUTION if name in codes and name != stage)
    if written and stage in SOLUTION:
        parts.append(f"Code so far:\n```python\n{written}\n```")
    if said:
        parts.append(f"The last try failed: {said}")
    return "\n\n".join([*parts, f"Write the function `{stage}`. Reply with one Python code block."])


def code_of(text: str, stage: str) -> str:
    """The last block of a reply that defines the stage's function; without one the last block, or the whole text."""
    found = [block for _, block in blocks(text)]
    return next((block for block in found if f"def {stage}(" in block), found[0] if found else text)


def retrieved(memory: Sequence[Memory], descriptor: str, top: int) -> list[Memory]:
    """The valid cases whose descriptors fit best, best first; equal ones in the order of the memory."""
    cases = [case for case in memory if case.text]
    if not cases or not top:
        return []
    return [cases[i] for i in Retriever([case.metadata["descriptor"] for case in cases], top).find(descriptor)]


def remember(groups: Iterable[list[Attempt]], *, memory: Sequence[Memory]) -> Iterator[Memory]:
    """The memory with this pass's tasks: the code of the best valid pipeline of each, or none, and how often it was
    tried. `score` is its best quantile."""
    known = {case.key: case for case in memory}
    for group in groups:
        problem = group[0].problem
        old = known.get(problem.id)
        text, score = (old.text, old.metadata["score"]) if old else (None, 0.0)
        for attempt in group:
            if attempt.verdict.status == "correct" and (text is None or attempt.verdict.reward > score):
                text, score = json.dumps(attempt.trajectory.metadata["codes"]), attempt.verdict.reward
        tries = len(group) + (old.metadata["tries"] if old else 0)
        metadata = {"descriptor": problem.metadata["descriptor"], "score": score, "tries": tries}
        known[problem.id] = Memory(problem.id, text, metadata=metadata)
    yield from known.values()


def following(problems: Sequence[Problem], *, memory: Sequence[Memory], count: Count = 1) -> list[Problem]:
    """The next tasks: of those that were tried least, the most like past successes and the least like past failures."""
    past = [(words(m.metadata["descriptor"]), m.metadata["score"] >= SUCCESS) for m in memory]
    tries = {case.key: case.metadata["tries"] for case in memory}

    def promise(problem: Problem) -> float:
        own = words(problem.metadata["descriptor"])
        alike = {kind: [len(own & w) / len(own | w) for w, good in past if good == kind] for kind in (True, False)}
        return max(alike[True], default=0.0) - max(alike[False], default=0.0)

    return sorted(problems, key=lambda p: (tries.get(p.id, 0), -promise(p)))[:count]


def words(descriptor: str) -> set[str]:
    return set(descriptor.split())


def figures(rounds: Sequence[Scores]) -> dict[str, float]:
    """`valid`: the share of held-out tasks with a valid submission. `elo_mmr`: the rating after the leaderboards of
    these, where the package is installed."""
    last = [answer for answer in rounds[-1].answers if answer is not None]
    found = {"valid": len(last) / len(rounds[-1].answers)}
    if last and elo_mmr.installed():
        found["elo_mmr"] = elo_mmr.ratings(last)[ENTRANT][0]
    return found
