"""CoSC: a model writes a program, runs it, verifies what came out, and corrects itself until it accepts an answer.

Embedding Self-Correction as an Inherent Ability in Large Language Models for Enhanced Mathematical Reasoning (Gao et
al. 2024, arXiv 2410.10735).

    trajectory   x, then in rounds i = 1..R:
                     p_i   a program, by the policy
                     o_i   its output, by the sandbox
                     v_i   a verification: does p_i fit the question, and does o_i?
                     c_i   the conclusion: correct, and then comes the answer; or incorrect, and then comes p_{i+1}
    phase 1, once
        generate   trajectories by a teacher
        filter     those with a right answer
        train      pi_1 from the base, with loss on p, v and c; o bears none
    phase 2
        generate   n trajectories to each x by pi_v itself
        filter     the teacher's, and those of its own with a right answer
        train      pi_{v+1} from the base, with the same loss
    answer       what stands behind the conclusion that accepts; else what the last program printed

v_i, c_i and p_{i+1} are one text of the policy's. An output stands in the policy's own turn, in a fence.

What of this is the paper's and what is our own choice is said in docs/methods/cosc.md.

*Wrong when* the policy does not see in a program of its own what is wrong with it: then rounds cost and change nothing,
or a right program is called wrong. Wrong too where the check of an answer is as hard as finding it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from selfimprove.filter.spans import whole
from selfimprove.generate.dialogue import Dialogue
from selfimprove.generate.programs import OUTPUT, chain, fenced, observed
from selfimprove.generate.programs import chains as chains
from selfimprove.made import Made
from selfimprove.policy import Policy
from selfimprove.policy.chat import messages_of
from selfimprove.policy.teacher import asked, told
from selfimprove.tools import Tool
from selfimprove.train.sft import sft
from selfimprove.types import Attempt, Count, Example, Message, NonNegative, Problem, Sample, Trajectory

train = sft

TOOLS = ("python", "teacher")  # what its solvers call


async def seeds(
    problem: Problem,
    policy: Policy,
    *,
    rounds: Count,
    tools: Mapping[str, Any],
    seed: int,
    instruction: str | None = None,
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """A trajectory by the tool `teacher`, whose words become the policy's ids once.

    The teacher is asked in a chat: `instruction` (a system message that says what form is wanted), the problem, and
    then its own messages with their outputs as the user's.
    """
    chat: list[Message] = [{"role": "system", "content": instruction}] if instruction else []
    chat += messages_of(problem.prompt)
    dialogue = Dialogue(policy, problem.prompt)
    for turn in range(rounds + 1):
        options: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        words = await asked(tools["teacher"], policy, chat, dialogue.ids, **options)
        sample = await told(policy, dialogue.ids, words, seed, ends=OUTPUT not in words)
        if sample is None:
            break
        dialogue.take(sample, (OUTPUT,))
        if turn == rounds or (output := await observed(words, tools["python"])) is None:
            break
        dialogue.append(fenced(words, output))
        chat = [*chat, {"role": "assistant", "content": words}, {"role": "user", "content": output}]
    return [Trajectory(problem.id, dialogue.samples)] if dialogue.samples else []


async def by_round(
    problem: Problem,
    policy: Policy,
    *,
    rounds: Count,
    answer: str,
    rejects: str,
    tools: Mapping[str, Tool],
    temperature: NonNegative = 0.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """One trajectory, for held-out problems, with a candidate for each round, and the policy's own answer at the end.

    A round's candidate says what its program printed, in the words of `answer` with {output} in them, as a sample of
    the role `tool`. metadata["stage"] is the round, from 1; metadata["rejected"] whether the text behind it holds
    `rejects`, None if there is no such text. The policy's own answer is of stage `rounds` + 1. It is there where the
    policy accepted an output, or ran no program.
    """
    samples, outputs = await chain(problem, policy, rounds, tools, temperature, max_tokens)
    found = list[Trajectory]()
    for i, output in enumerate(outputs):
        after = samples[i + 1].text if i + 1 < len(samples) else None
        said = answer.replace("{output}", output.strip())
        ids = policy.encode(said)
        shown = [*samples[i].prompt_ids, *samples[i].completion_ids]
        stated = Sample(shown, ids, [0.0] * len(ids), said, "stop", 0, role="tool")
        rejected = None if after is None else rejects in after
        found.append(Trajectory(problem.id, [*samples[: i + 1], stated], {"stage": i + 1, "rejected": rejected}))
    if not found or (found[-1].metadata["rejected"] is False and OUTPUT not in samples[-1].text):
        found.append(Trajectory(problem.id, samples, {"stage": rounds + 1, "rejected": None}))
    return found


def right(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """A row for each trajectory with a right answer, with loss on all that was written. Each text makes one row a
    problem; one that was cut off, or did not end with an answer, makes none."""
    for group in groups:
        known = set[tuple[int, ...]]()
        for attempt in group:
            last = attempt.trajectory.samples[-1]
            ids = (*last.prompt_ids, *last.completion_ids)
            whole_text = last.finish == "stop" and OUTPUT not in last.text
            if attempt.verdict.status == "correct" and whole_text and ids not in known:
                known.add(ids)
                yield whole(attempt.trajectory)


def with_seeds(groups: Iterable[list[Attempt]], *, made: Made, stage: str = "seed") -> Iterator[Example]:
    """The rows of the stage that the teacher wrote, and those of the policy's own right trajectories."""
    yield from made.examples(stage)
    yield from right(groups)
