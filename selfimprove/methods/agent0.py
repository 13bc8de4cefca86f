"""Agent0: one agent writes questions that another can just answer; the other learns to answer them, with tools.

Agent0: Unleashing Self-Evolving Agents from Zero Data via Tool-Integrated Reasoning (Xia et al. 2025, arXiv
2511.16043).

    C, E       the curriculum agent and the executor, both from the same base model
    C writes   a batch of B questions x; E answers each n times, with up to T programs in an answer
               s(x) = the share of the most frequent answer among the n; 0 if C states another answer
               N(x) = the mean number of programs in an answer
               k(x) = the share of the batch in x's cluster: distance 1 - BLEU, average linkage, cut at .5
               R(x) = lam_u (1 - 2 |s - 1/2|) - lam_rep k + lam_t min(N, 4);  -1 in place of the first term
                      if x is no question                                                          (released code)
               R(x) = max(0, the same sum);  0 if x is no question                                        (paper)
    train C    GRPO on R
    ask        C writes questions; those with low <= s(x) <= high are kept, with the majority's answer as label
    train E    ADPO on agreement with the label, with s' = (s - low) / (high - low), clipped to [0, 1]:
               A' = A (a + (1 - a) s')                    the label of a hard question is trusted less
               clip(rho, 1 - eps, 1 + eps + b (1 - s'))   and E may move further on it
    repeat     with the new E in C's reward

No gold answer is used. Outputs of programs bear no loss.

docs/methods/agent0.md says which parts are the paper's, which its code's, and which our own choice.

*Wrong when* most of E's wrong answers are the same: then the majority is a wrong label, and E learns it. Also wrong
when E answers a question half of the time because it is unclear, not because it is hard: C's reward is the same.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Required, TypedDict, Unpack

import numpy as np
from annotated_types import Ge

from selfimprove.datasets import messages
from selfimprove.filter.advantages import advantages, group_advantages
from selfimprove.filter.spans import whole
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.generate.programs import chains
from selfimprove.generate.recite import recite
from selfimprove.policy import Policy
from selfimprove.tools import Tool
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Share, Trajectory
from selfimprove.verify import Context, Outcome
from selfimprove.verify.bleu import shares
from selfimprove.verify.consensus import consensus, read

teach, imitate, write, compared, solve, train = recite, sft, best_of_n, advantages, chains, policy_gradient

TOOLS = ("python",)  # what E calls
NEEDS_GOLD = False  # of `agrees`
CALLS = 4  # more programs in an answer do not raise C's reward
CUT = 0.5  # the distance 1 - BLEU at which clusters are separated
Turns = Annotated[int, Ge(0)]  # programs that an answer may run; 0: no tool
Form = Literal["released", "paper"]  # of R


# The curriculum agent


def lessons(problems: list[Problem], *, ask: str, count: Count) -> list[Problem]:
    """One request for a question for each of the first `count` training problems. The reply to learn is the problem's
    question. Its answer is not used."""
    found = problems[:count]
    return [Problem(f"write-{p.id}", ask, metadata={"question": ask, "reply": p.metadata["question"]}) for p in found]


def taught(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """Every reply as a row."""
    for group in groups:
        yield from (whole(attempt.trajectory) for attempt in group)


def requests(problems: list[Problem], *, ask: str, count: Count) -> list[Problem]:
    """`count` equal requests; the replies to one are a batch of questions. No training problem is used."""
    return [Problem(f"ask-{i}", ask, metadata={"question": ask}) for i in range(count)]


def proposal(trajectory: Trajectory) -> tuple[str, str | None]:
    """The question that a reply proposes, and the answer that it states.

    A reply with <question> tags has its question between them. Any other reply is a question as a whole, and states no
    answer. A reply that was cut off has no question: "".
    """
    text = trajectory.text.strip()
    if trajectory.samples[-1].finish != "stop":
        return "", None
    tagged = re.search(r"<question>(.*?)</question>(.*)", text, re.DOTALL)
    return (tagged[1].strip(), read(tagged[2], {}, "none")) if tagged else (text, None)


class Answering(TypedDict, total=False):
    """How the executor answers a proposed question."""

    n: Required[Count]  # answers
    turns: Required[Turns]
    prompt: Required[str]  # with {question} in it
    max_tokens: Count | None  # of one text of an answer; None: the model's own limit


async def difficulty(
    trajectory: Trajectory, executor: Policy, tools: Mapping[str, Tool], how: Answering
) -> tuple[float, str | None, float]:
    """s(x), the majority's answer, and N(x) of a proposed question, from the executor's answers at temperature 1.

    (0, None, 0) if there is no question, or if no answer can be read.
    """
    text, stated = proposal(trajectory)
    if not text:
        return 0.0, None, 0.0
    question = Problem(trajectory.id, messages(text, how["prompt"], None, ()), metadata={"question": text})
    n, turns, most = how["n"], how["turns"], how.get("max_tokens")
    answers = await chains(question, executor, n=n, rounds=turns, tools=tools, max_tokens=most)
    outcomes = await consensus(question, answers, None, ties="first")
    majority = [outcome.extracted for outcome in outcomes if outcome.status == "correct"]
    if not majority:
        return 0.0, None, 0.0
    calls = float(np.mean([len(answer.samples) - 1 for answer in answers]))
    return len(majority) / n if stated in (None, majority[0]) else 0.0, majority[0], calls


async def measured(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    roles: Mapping[str, Policy],
    tools: Mapping[str, Tool],
    **how: Unpack[Answering],
) -> list[Outcome]:
    """Outcomes whose reward is s(x) of a proposal, and whose extracted answer is the majority's."""
    found = await asyncio.gather(*(difficulty(t, roles["policy"], tools, how) for t in trajectories))
    return [
        Outcome("unparseable" if label is None else "correct", s, label, reason=f"{calls:g} programs an answer")
        for s, label, calls in found
    ]


async def wanted(
    problem: Problem,
    trajectories: list[Trajectory],
    context: Context,
    *,
    roles: Mapping[str, Policy],
    tools: Mapping[str, Tool],
    uncertain: NonNegative,
    repeated: NonNegative,
    tool: NonNegative,
    form: Form = "released",
    **how: Unpack[Answering],
) -> list[Outcome]:
    """R(x) of each proposal in a batch. uncertain, repeated, tool: lam_u, lam_rep, lam_t."""
    found = await asyncio.gather(*(difficulty(t, roles["policy"], tools, how) for t in trajectories))
    texts = [proposal(t)[0] for t in trajectories]
    alike = dict(zip((i for i, text in enumerate(texts) if text), shares([t for t in texts if t], CUT), strict=True))
    outcomes = []
    for i, (s, label, calls) in enumerate(found):
        k = alike.get(i, 0.0) * len(alike) / len(texts)
        value = reward(s, calls, k, bool(texts[i]), uncertain, repeated, tool, form)
        said = f"s {s:.2f}, {k:.2f} of the batch alike, {calls:g} programs an answer"
        outcomes.append(Outcome("unparseable" if label is None else "correct", value, label, reason=said))
    return outcomes


def reward(
    s: float, calls: float, k: float, valid: bool, uncertain: float, repeated: float, tool: float, form: Form
) -> float:
    """R(x) of a question with s(x), N(x) and k(x), with the weights lam_u, lam_rep and lam_t."""
    first = uncertain * (1 - 2 * abs(s - 0.5))
    rest = tool * min(calls, CALLS) - repeated * k
    if form == "paper":
        return max(0.0, first + rest) if valid else 0.0
    return (first if valid else -1.0) + rest


# The executor


def band(groups: Iterable[list[Attempt]], *, low: Share, high: Share, prompt: str) -> Iterator[Problem]:
    """The proposed questions x with low <= s(x) <= high, as problems without a gold answer.

    metadata["label"] is the majority's answer and metadata["share"] is s(x), as `measured` found them.
    """
    for attempt in (attempt for group in groups for attempt in group):
        s, label = attempt.verdict.reward, attempt.verdict.extracted
        if label is not None and low <= s <= high:
            text, _ = proposal(attempt.trajectory)
            more = {"label": label, "share": s, "origin": attempt.trajectory.id}
            yield Problem("", messages(text, prompt, None, ()), metadata={"question": text, **more})


def agrees(text: str, gold: str | None, metadata: dict[str, Any]) -> Outcome:
    """Whether an answer is the label of a made problem, metadata["label"]; the reward is 1 or 0."""
    found = read(text, {}, "none")
    if found is None:
        return Outcome("unparseable", 0.0, reason="no answer is stated")
    right = found == metadata.get("label")
    return Outcome("correct" if right else "wrong", float(right), found)


def adpo(
    groups: Iterable[list[Attempt]],
    *,
    low: Share,
    high: Share,
    least: Share,
    clip: Share,
    room: NonNegative,
) -> Iterator[Example]:
    """A row for each answer: its group-relative advantage on each token that E wrote, scaled by s(x), and an upper
    clip.

    `low` and `high` are those of `band`. `least` is a; with 1 nothing is scaled. `clip` is eps, `room` is b; with 0 all
    rows have the same clip. A question with one answer makes no row.
    """
    for group in groups:
        if len(group) < 2:
            continue
        s = float(np.interp(group[0].problem.metadata["share"], (low, high), (0, 1)))  # s'
        found = group_advantages([attempt.verdict.reward for attempt in group], "mean", "std")
        for attempt, advantage in zip(group, found, strict=True):
            row = whole(attempt.trajectory)
            drawn = iter(value for sample in attempt.trajectory.samples for value in sample.logprobs)
            row.logprobs = [next(drawn) if learnt else 0.0 for learnt in row.mask or []]
            row.advantages = [advantage * (least + (1 - least) * s) * learnt for learnt in row.mask or []]
            row.metadata["clip_high"] = clip + room * (1 - s)
            yield row
