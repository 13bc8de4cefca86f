"""Llamas of three sizes with the shipped tokenizer, trained on two-step sums to solve, verify and refine."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from selfimprove import store
from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.arithmetic import Chain
from selfimprove.studies import code, lessons, tiny
from selfimprove.types import Example, Message, Problem

SIZES = {"0.1 M": (64, 6e-3), "0.5 M": (128, 4e-3), "2 M": (256, 4e-3)}  # hidden size, learning rate
DOCUMENTS = 6000
ROLES = {"solve": 0.5, "verify": 0.25, "refine": 0.25}


def make(folder: Path, name: str, documents: int = DOCUMENTS) -> Path:
    """The folder of the model called `name`."""
    hidden, rate = SIZES[name]
    heads = hidden // 32
    start = partial(
        tiny.untrained,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
    )
    home = folder / store.digest([code(), name, documents])
    rows = partial(sums, documents)
    return tiny.trained(home, rows, start, 16, learning_rate=rate, batch_size=16, warmup_ratio=0.03)


def sums(documents: int) -> list[Example]:
    """The rows that a model is trained on."""
    from transformers import AutoTokenizer

    tokenizer, rng = AutoTokenizer.from_pretrained(tiny.SHIPPED), random.Random(0)
    return [lessons.answer_row(tokenizer, *document(rng)) for _ in range(documents)]


def easy(rng: random.Random) -> Chain:
    """Two steps of adding or subtracting at most 5, from at most 9: what the smallest model learns in a minute."""
    while True:
        chain = data.random_chain(rng, 2)
        if chain.start <= 9 and all(op != "*" and operand <= 5 for op, operand in chain.steps):
            return chain


def heldout(count: int) -> list[Problem]:
    """`count` of the 300 or so such chains that nothing trains on."""
    rng, chains = random.Random(1), dict[str, Chain]()
    while len(chains) < count:
        chain = easy(rng)
        if chain.side != "train":
            chains[chain.digest] = chain
    return [data.problem(chain, "solve") for chain in chains.values()]


def slipped(rng: random.Random, chain: Chain) -> tuple[str, str]:
    """A solution with one line miscalculated, from which the rest follows, and the review that says so."""
    lines, value, slip = list[str](), chain.start, rng.randrange(len(chain.steps))
    for i, (op, operand) in enumerate(chain.steps):
        result = data.apply(value, (op, operand)) + (rng.choice((-2, -1, 1, 2)) if i == slip else 0)
        lines.append(f"{value} {op} {operand} = {result}")
        value = result
    right = data.solution(chain).splitlines()[slip]
    review = f"Line {slip + 1} is wrong: {right}.\nVerdict: incorrect"
    return "\n".join([*lines, f"The answer is {value}."]), review


def document(rng: random.Random) -> tuple[list[Message], str]:
    """A prompt in one of the roles, on a train-side chain, and the reply to learn."""
    while (chain := easy(rng)).side != "train":
        pass
    question, right = chain.question, data.solution(chain)
    (role,) = rng.choices(list(ROLES), list(ROLES.values()))
    if role == "solve":
        return data.solve_prompt(question), right
    shown, review = slipped(rng, chain) if rng.random() < 0.5 else (right, "Every line is right.\nVerdict: correct")
    if role == "verify":
        return data.verify_prompt(question, shown), review
    return data.refine_prompt(question, shown, review), right
