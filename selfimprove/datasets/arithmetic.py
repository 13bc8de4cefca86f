"""Chains of whole-number arithmetic: the embedded task family, generated alike on every machine.

"Start with 7. Add 5. Multiply by 3. Subtract 8. What is the result?" Every value on the way is in 0..99. A problem's
level is its number of steps. Three forms ask for the same chain: `solve` wants one step a line and "The answer is 28.",
`choice` wants a letter, `expression` wants one Python expression for a calculator. The builders for `verify` and
`refine` show a solution to a policy and ask about it.

A hash of the chain decides whether it is a train, dev or held-out problem. So the sides never overlap, whatever the
seed, sizes or form. The tiny model never saw the held-out side either.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from selfimprove import seeds
from selfimprove.datasets import Side, Size
from selfimprove.errors import ConfigError
from selfimprove.types import Count, Message, Problem

Form = Literal["solve", "choice", "expression"]
Step = tuple[str, int]  # ("+", 5): operator and operand

LEVELS = (2, 3, 4, 5, 6)
MAX_VALUE = 99
MAX_OPERAND = 9
MAX_START = 30
LETTERS = "ABCD"
VERBS = {"+": "Add", "-": "Subtract", "*": "Multiply by"}


def apply(value: int, step: Step) -> int:
    """The value after one step."""
    op, operand = step
    return value + operand if op == "+" else value - operand if op == "-" else value * operand


@dataclass(frozen=True, slots=True)
class Chain:
    """A start value and the steps after it."""

    start: int
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, metadata: dict[str, Any]) -> Chain:
        """The chain of a problem, from its metadata."""
        return cls(metadata["start"], tuple((op, operand) for op, operand in metadata["steps"]))

    @property
    def values(self) -> list[int]:
        """The start and the value after each step, length len(steps) + 1."""
        values = [self.start]
        for step in self.steps:
            values.append(apply(values[-1], step))
        return values

    @property
    def answer(self) -> int:
        return self.values[-1]

    @property
    def question(self) -> str:
        steps = " ".join(f"{VERBS[op]} {operand}." for op, operand in self.steps)
        return f"Start with {self.start}. {steps} What is the result?"

    @property
    def digest(self) -> str:
        """A hex hash of the canonical chain. It names the problem and decides its side."""
        text = str(self.start) + "".join(f"{op}{operand}" for op, operand in self.steps)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def heldout(self) -> bool:
        return self.side == "test"

    @property
    def side(self) -> Side:
        """The chain's side for every seed: a fifth of all chains is held out, and a fifth is for dev."""
        return _SIDES.get(int(self.digest, 16) % 5, "train")


_SIDES: dict[int, Side] = {0: "test", 1: "dev"}


def random_chain(rng: random.Random, level: int) -> Chain:
    """A chain of `level` steps. Each step's operator is drawn first, among those that keep the value in 0..99."""
    start = value = rng.randint(1, MAX_START)
    steps: list[Step] = []
    for _ in range(level):
        most = {"+": MAX_VALUE - value, "-": value, "*": MAX_VALUE // value if value else 0}
        least = {"+": 1, "-": 1, "*": 2}
        op = rng.choice([op for op in VERBS if most[op] >= least[op]])
        steps.append((op, rng.randint(least[op], min(most[op], MAX_OPERAND))))
        value = apply(value, steps[-1])
    return Chain(start, tuple(steps))


def solution(chain: Chain) -> str:
    """The right solution, one step a line."""
    values = chain.values
    lines = [f"{values[i]} {op} {k} = {values[i + 1]}" for i, (op, k) in enumerate(chain.steps)]
    return "\n".join([*lines, f"The answer is {chain.answer}."])


def expression(chain: Chain, steps: int | None = None) -> str:
    """The first `steps` steps (default all) as one Python expression, e.g. "((7 + 5) * 3) - 8"."""
    text = str(chain.start)
    for i, (op, operand) in enumerate(chain.steps[:steps]):
        text = f"({text}) {op} {operand}" if i else f"{text} {op} {operand}"
    return text


def options(chain: Chain) -> list[str]:
    """Four distinct answers for the choice form, one of them right. They are always the same for a chain.

    The wrong ones come from slips: a few off, or the last step forgotten or undone. No two end in the same digit.
    """
    rng = random.Random(chain.digest)
    answer, before = chain.answer, chain.values[-2]
    slips = {before, 2 * before - answer, *range(answer - 3, answer + 4)}
    wrong = sorted(v for v in slips if 0 <= v <= MAX_VALUE)
    rng.shuffle(wrong)
    by_digit = {v % 10: v for v in wrong} | {answer % 10: answer}
    chosen = [answer, *rng.sample([v for v in by_digit.values() if v != answer], 3)]
    rng.shuffle(chosen)
    return [str(v) for v in chosen]


def solve_prompt(question: str) -> list[Message]:
    """A prompt for a solution, one step a line."""
    return [{"role": "user", "content": question}]


def choice_prompt(question: str, options: Sequence[str]) -> list[Message]:
    """A prompt for one of four options by its letter."""
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=True)]
    return [{"role": "user", "content": "\n".join([question, *lines])}]


def expression_prompt(question: str) -> list[Message]:
    """A prompt for one Python expression that a calculator can evaluate."""
    return [{"role": "user", "content": f"{question}\nAnswer with one Python expression."}]


def verify_prompt(question: str, solution: str) -> list[Message]:
    """A prompt for a verdict on a solution: a reason, then a line "Verdict: correct" or "Verdict: incorrect"."""
    return [
        *solve_prompt(question),
        {"role": "assistant", "content": solution},
        {"role": "user", "content": "Is this solution correct? Give a reason and a verdict."},
    ]


def refine_prompt(question: str, solution: str, feedback: str | None = None) -> list[Message]:
    """A prompt for a corrected full solution. `feedback` is, for instance, a verifier's reason."""
    request = "Improve this solution." if feedback is None else f"{feedback}\nImprove this solution."
    return [
        *solve_prompt(question),
        {"role": "assistant", "content": solution},
        {"role": "user", "content": request},
    ]


def problem(chain: Chain, form: Form) -> Problem:
    """A chain as a problem of one form. `gold` is a number; for `choice`, a letter."""
    metadata: dict[str, Any] = {
        "form": form,
        "level": len(chain.steps),
        "question": chain.question,
        "start": chain.start,
        "steps": [list(step) for step in chain.steps],
    }
    gold, prompt = str(chain.answer), solve_prompt(chain.question)
    if form == "choice":
        metadata["options"] = options(chain)
        gold = LETTERS[metadata["options"].index(gold)]
        prompt = choice_prompt(chain.question, metadata["options"])
    elif form == "expression":
        prompt = expression_prompt(chain.question)
    return Problem(
        id=f"arith-L{len(chain.steps)}-{chain.digest[:8]}",
        prompt=prompt,
        gold=gold,
        split=chain.side,
        metadata=metadata,
    )


def load(
    *,
    form: Form = "solve",
    levels: Sequence[int] = LEVELS,
    train_size: Size,
    dev_size: Size = 0,
    heldout_size: Count,
    seed: int,
) -> list[Problem]:
    """Different problems, evenly spread over the levels: train, then dev, then held-out ones (split "test").

    A larger size keeps the problems of a smaller one. The seed chooses the train problems. Dev and held-out ones are
    the same for every seed, so that runs can be compared problem by problem. Raises ConfigError if a form or level is
    unknown, or when the levels do not have enough different problems.
    """
    if form not in ("solve", "choice", "expression"):
        raise ConfigError(f"dataset.form: {form!r} is unknown; use solve, choice or expression")
    if not levels or len(set(levels)) < len(levels) or not set(levels) <= set(LEVELS):
        raise ConfigError(f"dataset.levels: {list(levels)} should be different numbers of steps from {list(LEVELS)}")
    problems = []
    sizes: tuple[tuple[Side, int, str], ...] = (
        ("train", train_size, "train_size"),
        ("dev", dev_size, "dev_size"),
        ("test", heldout_size, "heldout_size"),
    )
    for split, size, key in sizes:
        columns = []
        for i, level in enumerate(levels):
            count = len(range(i, size, len(levels)))
            rng = random.Random(seeds.derive(seed if split == "train" else 0, "arithmetic", split, level))
            chains = _distinct(rng, level, split, count)
            if len(chains) < count:
                raise ConfigError(
                    f"dataset.{key}: {size} is too many; level {level} gave {len(chains)} different problems where "
                    f"{count} are needed, so ask for fewer or add higher levels"
                )
            columns.append(chains)
        problems += [problem(columns[i % len(levels)][i // len(levels)], form) for i in range(size)]
    return problems


def _distinct(rng: random.Random, level: int, split: Side, count: int) -> list[Chain]:
    """Up to `count` chains of one side with different ids; fewer if many draws in a row give nothing new."""
    chains: dict[str, Chain] = {}
    misses = 0
    while len(chains) < count and misses < 2000:
        chain = random_chain(rng, level)
        key = chain.digest[:8]
        if chain.side != split or key in chains:
            misses += 1
        else:
            chains[key] = chain
            misses = 0
    return list(chains.values())


def gives(*, form: Form = "solve", **options: Any) -> tuple[str, ...]:
    """The metadata keys that only problems of this form have."""
    return {"choice": ("options",), "solve": ("solution",)}.get(form, ())
