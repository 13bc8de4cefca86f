"""A policy that runs programs while it answers, in its own turn.

The policy writes until it opens the fence of an output, ```` ```output ````. The tool `python` runs the program before
the fence. The output and the closing fence follow, and the policy goes on. Outputs bear no loss
(`selfimprove.filter.spans`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated

from annotated_types import Ge

from selfimprove.generate.act import act
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.tools import Tool
from selfimprove.types import Count, NonNegative, Problem, Sample, Trajectory
from selfimprove.verify.programs import printing

OUTPUT = "```output"  # ends a program's text: its output comes next


async def chains(
    problem: Problem,
    policy: Policy,
    *,
    n: Count,
    rounds: Annotated[int, Ge(0)],
    tools: Mapping[str, Tool],
    temperature: NonNegative = 1.0,
    max_tokens: Count | None = None,
) -> list[Trajectory]:
    """n trajectories of up to `rounds` programs. `max_tokens` is the limit of one text before, between or after
    outputs. With `rounds` 0 no program is run, and the policy writes on."""
    own = [policy.for_problem(problem, number) for number in range(n)]
    found = await asyncio.gather(*(chain(problem, p, rounds, tools, temperature, max_tokens) for p in own))
    return [Trajectory(problem.id, samples) for samples, _ in found]


async def chain(
    problem: Problem,
    policy: Policy,
    rounds: int,
    tools: Mapping[str, Tool],
    temperature: float,
    max_tokens: int | None,
) -> tuple[list[Sample], list[str]]:
    """The texts of one trajectory, and the outputs between them."""
    dialogue, outputs = Dialogue(policy, problem.prompt), list[str]()

    async def step(text: str) -> str | None:
        output = await observed(text, tools["python"])
        if output is None:
            return None
        outputs.append(output)
        return fenced(text, output)

    await act(
        dialogue,
        step,
        actions=rounds,
        stop=(OUTPUT,) if rounds else (),
        into="assistant",
        temperature=temperature,
        max_tokens=max_tokens,
    )
    return dialogue.samples, outputs


async def observed(text: str, python: Tool) -> str | None:
    """The output of the program in a text; None if the text runs no program."""
    said, ran, _ = text.partition(OUTPUT)
    return await python(printing(said)) if ran else None


def fenced(text: str, output: str) -> str:
    """The output and the closing fence, to follow a text that opened the fence of an output."""
    return f"{'' if text.endswith(chr(10)) else chr(10)}{output}\n```\n"
