"""Make the coder that ships inside the package for cosc: tokenizer, corpus and weights, from one seed.

    python scripts/make_coder.py --out selfimprove/models/coder | tee scripts/make_coder.log

A Llama of a third of a million parameters answers chains of `selfimprove.datasets.arithmetic`, of the training side,
by a Python program: it writes one, reads its output, and says the answer. It also tells what a program does. Some
programs of its corpus have a bug, as people's do, and nobody looks at their output. In a second phase most documents
hold a shown program beside its question, where they are asked to. So it can check a program. It never checks one of its
own, and knows no second tries. Weights are written in 16 bits, which halves them; they are read as 32 bits.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from make_writer import Row, save, train
from transformers import LlamaForCausalLM

from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.calculations import buggy, output_of, program, review
from selfimprove.policy import chat
from selfimprove.studies import lessons, tiny

WINDOW = 512
BUGS = 0.3  # share of programs with a bug; of those that are checked it is half
EXPLAIN, CHECK = "What does this program do?", "Does this program fit?"
# Shares of documents that tell what a program does, and that check one, in both phases; the others answer
TELLS, CHECKS = (0.3, 0.1), (0.0, 0.7)


def document(rng: random.Random, phase: int) -> tuple[str, list[tuple[str, bool]]]:
    """A prompt, and the pieces of its reply, each with whether it is learnt: an output is not."""
    while (chain := data.random_chain(rng, rng.choice(data.LEVELS))).side != "train":
        pass
    text = buggy(rng, chain) if rng.random() < BUGS else program(chain.start, chain.steps)
    kind = rng.random()
    if kind < CHECKS[phase]:
        text = buggy(rng, chain) if rng.random() < 0.5 else program(chain.start, chain.steps)
        output = output_of(text)
        lines, fits = review(chain, text, output)
        told = lines.partition("Verdict")[0] + ("Yes." if fits else "No.")
        return f"{chain.question}\n```python\n{text}\n```\n```output\n{output}\n```\n{CHECK}", [(told, True)]
    if kind < CHECKS[phase] + TELLS[phase]:
        told = [f"Start with {chain.start}.", *(f"{data.VERBS[op]} {k}." for op, k in chain.steps)]
        shown = program(chain.start, chain.steps)
        return f"```python\n{shown}\n```\n{EXPLAIN}", [("\n".join(told), True)]
    output = output_of(text)
    return chain.question, [
        (f"```python\n{text}\n```\n```output", True),
        (f"\n{output}\n```\n", False),
        (f"The answer is {output}.", True),
    ]


def make_tokenizer() -> Any:
    """It has tokens for the words of a check too, which the corpus does not hold."""
    rng = random.Random(1)
    texts = []
    for _ in range(3000):
        prompt, reply = document(rng, 0)
        texts += [prompt, *(piece for piece, _ in reply)]
        chain = data.random_chain(rng, rng.choice(data.LEVELS))
        text = buggy(rng, chain) if rng.random() < 0.5 else program(chain.start, chain.steps)
        texts.append(review(chain, text, output_of(text))[0])
    return lessons.make_tokenizer(texts, 400, WINDOW)


def row(tokenizer: Any, rng: random.Random, phase: int) -> Row:
    prompt, reply = document(rng, phase)
    ids = chat.render(tokenizer, prompt)
    labels = [-100] * len(ids)
    for piece, learnt in reply:
        own = chat.encode(tokenizer, piece)
        ids += own
        labels += own if learnt else [-100] * len(own)
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def batches(tokenizer: Any, rng: random.Random, tokens: int, phase: int) -> Iterator[tuple[Any, Any]]:
    """Endless (input_ids, labels) of about `tokens` tokens, right-padded, rows of like length together."""
    while True:
        rows = [row(tokenizer, rng, phase) for _ in range(1000)]
        yield from lessons.batched(rng, rows, tokens, tokenizer.pad_token_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; saved every 100 steps")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(600, 300), help="optimizer steps of both phases; 0: none"
    )
    parser.add_argument("--lr", type=float, nargs=2, default=(4e-3, 2e-3), help="their peak learning rates")
    parser.add_argument("--tokens", type=int, default=1536, help="tokens a step, padding included")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model: Any = tiny.small_llama(tokenizer, 3, WINDOW)
    print(" ".join(f"{key}={value}" for key, value in vars(args).items() if key != "out"))
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    for phase in (0, 1):
        if phase:  # from what the first phase saved
            model = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)
        source = batches(tokenizer, random.Random(args.seed + phase), args.tokens, phase)
        for _ in train(model, source, args.steps[phase], args.lr[phase]) if args.steps[phase] else ():
            save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
