"""TT-SI: where the policy doubts, it writes a similar example, is tuned on it for a moment, and answers again.

Self-Improving LLM Agents at Test-Time (Acikgoz, Qian, Ji, Hakkani-Tür and Tur 2025, arXiv 2510.07841).

    for each input x, with candidate actions a_1..a_N
        l_n = log pi(a_n | x)
        p_n = exp(l_n - max l) / sum_k exp(l_k - max l)
        u = p_(1) - p_(2)                 the margin between the two likeliest actions
        if u >= tau                       certain: the policy answers
        else                              uncertain
            D = K similar (x', y')        written by the policy (TT-SI), or by a teacher (TT-D)
            theta' = theta + LoRA on D    a few steps; or D stands in the prompt instead (`learn: context`)
            y ~ pi_theta'(. | x), and theta' is forgotten

Adapters of many inputs are trained as one batch (policy/tune.py). What is written is only checked for being a request
and a call. What of this is the paper's and what is our own choice is said in docs/methods/tt_si.md.

*Wrong when* the policy is sure of its errors, for then it does not learn; and where it doubts because it does not know:
its own example then has the label that it would have given anyway.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from pydantic import BeforeValidator

from selfimprove.binding import bind
from selfimprove.errors import ConfigError
from selfimprove.policy import Policy, Tuning
from selfimprove.policy.chat import messages_of
from selfimprove.types import CLOSED, Count, Message, NonNegative, Problem, Rate, Sample, Share, Trajectory
from selfimprove.verify import calls

_PAIR = re.compile(r"Request:\s*(\S[^\n]*?)\s*\n+\s*Call:\s*([^\n]+)")

Pair = tuple[str, str]  # a request and its call


def _bound(node: Any) -> Any:
    try:
        return bind(node, "generate.teacher") if isinstance(node, dict) else node
    except ConfigError as problem:
        raise ValueError(str(problem)) from None


Teacher = Annotated[Callable[[Problem, int, int], Sequence[Pair]], BeforeValidator(_bound)]


def needs(*, learn: str = "weights", gate: str = "margin", **options: Any) -> list[str]:
    """What engine and data set have to give."""
    return ["actions", *(["adapters"] if learn == "weights" else []), *(["logprobs"] if gate == "margin" else [])]


@dataclass(frozen=True)
class Lora:
    """How the adapter is trained, as in `selfimprove.policy.Tuning`."""

    epochs: Count = 5
    learning_rate: Rate = 1e-4
    r: Count = 8
    alpha: Annotated[float, Ge(0)] = 16.0
    warmup: Share = 0.03

    __pydantic_config__ = CLOSED


async def generate(
    problem: Problem,
    policy: Policy,
    *,
    ask: str,
    tau: NonNegative = 0.95,
    k: Count = 1,
    gate: Literal["margin", "chance"] = "margin",
    rate: Share = 0.5,
    learn: Literal["weights", "context"] = "weights",
    teacher: Teacher | None = None,
    lora: Lora = Lora(),
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
    roles: Mapping[str, Policy],
    seed: int,
) -> list[Trajectory]:
    """The policy's greedy answer (stage 0) and, where it doubts, the one after learning from `k` examples (stage 1).

    `ask` is what an example is asked for with; {question} is the problem's. `gate: chance` learns at a share `rate` of
    the problems, whatever the margin. `teacher` is a function (problem, k, seed) that gives pairs of request and call.
    Without it the role `teacher` writes them, and if there is none the policy. metadata["margin"] is u, and
    metadata["examples"] what was learnt from. Where no example can be read, the first answer stands.
    """
    (draft,) = await policy.sample(problem.prompt, temperature=0, max_tokens=max_tokens)
    u = await margin(problem, policy) if gate == "margin" else None
    first = Trajectory(problem.id, [draft], {"stage": 0, "margin": u})
    doubts = random.Random(seed).random() < rate if u is None else u < tau
    if not doubts:
        return [first]
    written: list[Sample] = []
    if teacher:
        examples = list(teacher(problem, k, seed))
    else:
        writer = roles.get("teacher", policy)
        question = [{"role": "user", "content": ask.replace("{question}", problem.metadata["question"])}]
        written = await writer.sample(question, k, temperature=temperature, max_tokens=max_tokens)
        examples = [pair for sample in written if (pair := read(sample.text))]
    first.metadata["examples"] = examples
    if not examples:
        return [first]
    sampling: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}
    if learn == "context":
        (answer,) = await policy.sample(in_context(problem, examples), **sampling)
    else:
        rows = tuple(row(problem, pair, policy) for pair in examples)
        tuning = Tuning(rows, **vars(lora), seed=seed)
        (answer,) = await policy.sample(problem.prompt, adapter=tuning, **sampling)
    note = {"stage": 1, "margin": u, "examples": examples}
    return [first, Trajectory(problem.id, [draft, *written, answer], note)]


async def margin(problem: Problem, policy: Policy) -> float:
    """u, of the actions of a problem: p_(1) - p_(2), in [0, 1]. Where there is one action, it is 1."""
    actions: Sequence[str] = problem.metadata["actions"]
    ids = policy.render(problem.prompt)
    scores = await asyncio.gather(*(policy.logprobs(ids, policy.encode(f"{action}(")) for action in actions))
    return gap([sum(score) for score in scores])


def gap(l: Sequence[float]) -> float:  # noqa: E741
    """p_(1) - p_(2) of actions whose log-likelihoods are l, in nats."""
    p = np.exp(np.array(l) - max(l))
    first, second = sorted([*(p / p.sum()), 0.0], reverse=True)[:2]
    return float(first - second)


def read(text: str) -> Pair | None:
    """The request and the call that a reply has in lines "Request: ..." and "Call: ..."; None if there are none."""
    found = _PAIR.search(text)
    call = calls.read(found[2]) if found else None
    return (found[1], calls.written(*call)) if found and call else None


def like(problem: Problem, request: str) -> list[Message]:
    """The problem's prompt with another request in place of its own."""
    *before, last = messages_of(problem.prompt)
    start, _, end = last["content"].rpartition(problem.metadata["request"])
    return [*before, {**last, "content": f"{start}{request}{end}"}]


def row(problem: Problem, pair: Pair, policy: Policy) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What an adapter is trained on: the prompt with the new request, and its call."""
    request, call = pair
    return tuple(policy.render(like(problem, request))), (*policy.encode(call), policy.engine.end)


def in_context(problem: Problem, examples: Sequence[Pair]) -> list[Message]:
    """The problem's prompt behind the examples, each as a turn of both."""
    *chat, last = messages_of(problem.prompt)
    for request, call in examples:
        chat += [like(problem, request)[-1], {"role": "assistant", "content": call}]
    return [*chat, last]
