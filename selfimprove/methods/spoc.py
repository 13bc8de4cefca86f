"""SPOC: in one generation a model proposes a solution, verifies it, and proposes again until it accepts one.

Boosting LLM Reasoning via Spontaneous Self-Correction (Zhao et al. 2025, arXiv 2506.06923).

    response   y1, v1, y2, v2, ... in one generation. It ends with the first v that says yes, or behind `turns` of them.

    PairSFT, once
        generate   y_1..y_K ~ pi(. | x), and to each a verification v ~ pi(. | x, y, "is this correct?")
        verify     r(y) in {0, 1} by the data set's verifier, r(v) = 1 where v's verdict is r(y)
        filter     r(v) = 1 and r(y) = 1:  x -> [y] [v]             loss on what stands in brackets
                   r(v) = 1 and r(y) = 0:  x -> y [v] [y*]          y* is a right one of the K
                   weights make both kinds count alike
    RL, in each round
        generate   responses to x, at temperature 1
        verify     r(y_t) and r(v_t) of each message, as above
        filter     A(message) = its reward - the mean of the same message's in the problem's other responses (RLOO)
        train      max_pi  sum over messages  A log pi(message | x and all before it)

    answer     the last y

Proposer and verifier are one policy. The prompt ids of a message are the ids of all messages before it. So a response
has the distribution of a single generation. Each message is a sample with its own reward.

What of this is the paper's and what is our own choice is said in docs/methods/spoc.md.

*Wrong when* right and wrong solutions look alike to the policy. Then the verdict that pays most is the more frequent
one, and every response ends behind its first solution, or none does.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator

from selfimprove.filter.advantages import advantages
from selfimprove.filter.spans import Span, body, row
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.policy.chat import Text
from selfimprove.train.policy_gradient import policy_gradient
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify import Context, Outcome

imitate, by_message, train = sft, advantages, policy_gradient


async def pairs(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    ask: str,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n solutions, each with the policy's own verification of it, asked for by the user's words `ask`."""
    found = await policy.sample(problem.prompt, n, temperature=temperature, max_tokens=max_tokens)

    async def verified(number: int, solution: Sample) -> Trajectory:
        dialogue = Dialogue(policy.for_problem(problem, number), problem.prompt)
        dialogue.take(solution)
        dialogue.user(ask)
        if not dialogue.full:
            await dialogue.reply(temperature=temperature, max_tokens=max_tokens)
        return Trajectory(problem.id, dialogue.samples)

    return list(await asyncio.gather(*(verified(i, sample) for i, sample in enumerate(found))))


async def respond(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    turns: Count,
    check_words: str,
    rejects: str,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n responses with a sample a message: solution, verification, solution, ...

    `check_words` end a solution that is verified, `rejects` a verification that says no. `turns` is the most solutions
    there are, `max_tokens` is of one message.
    """
    own = [policy.for_problem(problem, number) for number in range(n)]
    found = await asyncio.gather(
        *(_messages(problem, p, turns, check_words, rejects, temperature, max_tokens) for p in own)
    )
    return [Trajectory(problem.id, samples) for samples in found]


async def by_solution(
    problem: Problem,
    policy: Policy,
    *,
    turns: Count,
    check_words: str,
    accepts: str,
    rejects: str,
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One response, for held-out problems, with a candidate for each solution in it: all samples up to it.

    metadata["stage"] is its number, from 1; metadata["accepted"] whether the verification behind it accepts it, None
    if there is no verdict.
    """
    samples = await _messages(problem, policy, turns, check_words, rejects, temperature, max_tokens)
    return [
        Trajectory(
            problem.id,
            samples[: i + 1],
            {
                "stage": i // 2 + 1,
                "accepted": verdict(samples[i + 1].text, accepts, rejects) if i + 1 < len(samples) else None,
            },
        )
        for i in range(0, len(samples), 2)
    ]


async def _messages(
    problem: Problem,
    policy: Policy,
    turns: int,
    check_words: str,
    rejects: str,
    temperature: float,
    max_tokens: int | None,
) -> list[Sample]:
    """The messages of one response, in order."""
    dialogue = Dialogue(policy, problem.prompt)
    for _ in range(turns):
        for stop in (check_words, rejects):
            if dialogue.full:
                return dialogue.samples
            message = await dialogue.reply(temperature=temperature, max_tokens=max_tokens, stop=(stop,))
            if stop not in message.text:  # the response is over: no verification follows, or it accepts
                return dialogue.samples
    return dialogue.samples


async def judged(
    problem: Problem, trajectories: list[Trajectory], context: Context, *, accepts: str, rejects: str
) -> list[Outcome]:
    """The outcome of each response's last solution, with the reward of every message in `step_rewards`.

    A solution's reward is the data set's verifier's. A verification's is 1 where it `accepts` a correct solution or
    `rejects` another one, else 0. Where a check ends as `timeout` or `error`, so does the response.
    """
    texts = list(dict.fromkeys(s.text for t in trajectories for s in t.samples[::2]))
    checked = dict(zip(texts, await asyncio.gather(*(context.check(text, problem) for text in texts)), strict=True))

    def outcome(trajectory: Trajectory) -> Outcome:
        found = [checked[s.text] for s in trajectory.samples[::2]]
        rewards = list[float]()
        for i, sample in enumerate(trajectory.samples):
            solution = found[i // 2]
            right = solution.status == "correct"
            rewards.append(float(verdict(sample.text, accepts, rejects) == right) if i % 2 else solution.reward)
        last = next((o for o in found if o.status in ("timeout", "error")), found[-1])
        return Outcome(last.status, last.reward, last.extracted, rewards, last.reason)

    return [outcome(trajectory) for trajectory in trajectories]


def verdict(text: str, accepts: str, rejects: str) -> bool | None:
    """Whether a verification accepts; None if it says neither, or both."""
    says_yes, says_no = accepts in text, rejects in text
    return says_yes if says_yes != says_no else None


def woven(groups: Iterable[list[Attempt]], *, check_words: str, text: Text, seed: int) -> Iterator[Example]:
    """Rows of PairSFT: [y] [v] of right solutions, y [v] [y*] of wrong ones, where the verification's verdict is true.

    The ids are the sampled ones, with `check_words` and a line break of ours between them. y* is a right solution of
    the same problem, drawn at random; without one there is no row. Each text makes one row a problem. Each kind's
    weights have half of the sum of all.
    """
    before, between, rows = text.encode(check_words), text.encode("\n"), list[Example]()
    for group in groups:
        rng = random.Random(f"{seed}/{group[0].problem.id}")
        whole = [a for a in group if all(s.finish == "stop" for s in a.trajectory.samples)]
        good = [a.trajectory.samples[0] for a in whole if a.verdict.status == "correct"]
        known = set[str]()
        for attempt in whole:
            solution, *checks = attempt.trajectory.samples
            right, rewards = attempt.verdict.status == "correct", attempt.verdict.step_rewards or []
            if solution.text in known or rewards[1:] != [1.0] or attempt.verdict.status not in ("correct", "wrong"):
                continue
            known.add(solution.text)
            spans = [Span(body(solution), right), Span([*before, *body(checks[0])], True)]
            if not right:
                if not good:
                    continue
                spans.append(Span([*between, *body(rng.choice(good))], True))
            spans.append(Span([text.end], True))
            names = [attempt.trajectory.id]
            rows.append(row(attempt.problem.id, names, solution.prompt_ids, spans, metadata={"right": right}))
    kinds = Counter(example.metadata["right"] for example in rows)
    for example in rows:
        example.weight = len(rows) / (len(kinds) * kinds[example.metadata["right"]])
        yield example
