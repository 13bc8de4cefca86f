"""A teacher who solves chains of arithmetic by Python programs, some of them with a bug, and checks each.

It is a script that stands in the place of a strong model, so that a small policy can learn the form of CoSC
(`selfimprove.methods.cosc`). A message of its is a program in a fence, and the fence that its output will stand in:

    ```python
    x = 7
    x = x + 5
    x = x - 3
    print(x)
    ```
    ```output

What came out is then told by the user, and the next message checks it: is the output a number, and is each line of the
program what the question says? It concludes with a verdict, and the answer or another program.

    Add 5: + 5
    Multiply by 3: - 3
    Verdict: incorrect
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Annotated

from annotated_types import Len

from selfimprove.datasets.arithmetic import VERBS, Chain, Step, apply
from selfimprove.types import Message, Share

BUGS = ("operand", "operator", "left out", "twice", "syntax")
_STEP = re.compile(r"(Add|Subtract|Multiply by) (\d+)\.")
_LINE = re.compile(r"^x = x ([-+*]) (\d+)$", re.MULTILINE)


class Teacher:
    """Answers a chat: the user's question, then its own messages, each followed by an output that the user tells."""

    def __init__(self, bugs: Sequence[float], checks: bool) -> None:
        self.bugs, self.checks = bugs, checks

    async def __call__(self, chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
        """The next message. What it draws depends on the question, the seed and the number of its messages so far."""
        question, said = chat[0]["content"], [m["content"] for m in chat if m["role"] == "assistant"]
        chain = read(question)
        rng = random.Random(f"{seed}/{question}/{len(said)}")
        written = ""
        if said:
            written, right = review(chain, said[-1], chat[-1]["content"])
            if not self.checks:
                written = "\n".join(written.splitlines()[-1 - right :])
            if right:
                return written
            written += "\n"
        wrong = rng.random() < (self.bugs[len(said)] if len(said) < len(self.bugs) else 0)
        text = buggy(rng, chain) if wrong else program(chain.start, chain.steps)
        return f"{written}```python\n{text}\n```\n```output"


def teacher(*, bugs: Annotated[Sequence[Share], Len(1)], checks: bool = True) -> Teacher:
    """bugs: the share of programs with a bug among first programs, second ones, and so on; later ones are right.
    checks: whether a verdict has a reason; without, there is the verdict alone."""
    return Teacher(bugs, checks)


def read(question: str) -> Chain:
    """The chain that a question of `selfimprove.datasets.arithmetic` asks for."""
    operators = {verb: op for op, verb in VERBS.items()}
    start = re.search(r"Start with (\d+)\.", question)
    if not start:
        raise ValueError(f"the scripted teacher reads questions of dataset=arithmetic alone, not {question[:60]!r}")
    return Chain(int(start[1]), tuple((operators[verb], int(k)) for verb, k in _STEP.findall(question)))


def program(start: int, steps: Sequence[Step], end: str = "print(x)") -> str:
    """A program of a line a step."""
    return "\n".join([f"x = {start}", *(f"x = x {op} {k}" for op, k in steps), end])


def buggy(rng: random.Random, chain: Chain) -> str:
    """A program with one bug."""
    steps, bug = list(chain.steps), rng.choice(BUGS)
    i = rng.randrange(len(steps))
    op, k = steps[i]
    if bug == "syntax":
        return program(chain.start, steps, "print(x")
    if bug == "operand":
        steps[i] = op, rng.choice([other for other in range(1, 10) if other != k])
    elif bug == "operator":
        steps[i] = rng.choice([other for other in VERBS if other != op]), k
    elif bug == "left out":
        del steps[i]
    else:
        steps.insert(i, steps[i])
    return program(chain.start, steps)


def output_of(text: str) -> str:
    """What such a program prints. Only lines that `program` writes are read: nothing is run."""
    if not text.endswith("print(x)"):
        return "SyntaxError: '(' was never closed"
    value = int(text.partition("\n")[0].removeprefix("x = "))
    for op, k in _LINE.findall(text):
        value = apply(value, (op, int(k)))
    return str(value)


def review(chain: Chain, said: str, output: str) -> tuple[str, bool]:
    """The check of a message's program and its output, with the verdict, and whether it accepts."""
    if not re.fullmatch(r"-?\d+", output.strip()):
        return "The output is no number.\nVerdict: incorrect", False
    written = [(op, int(k)) for op, k in _LINE.findall(said.rpartition("```python")[2])]
    lines = list[str]()
    for asked, found in zip_longest(chain.steps, written):
        left = f"{VERBS[asked[0]]} {asked[1]}" if asked else "Nothing"
        lines.append(f"{left}: {found[0]} {found[1]}" if found else f"{left}: nothing")
        if asked != found:
            return "\n".join([*lines, "Verdict: incorrect"]), False
    return "\n".join([*lines, "Verdict: correct", f"The answer is {output.strip()}."]), True
