"""Make the writer that ships inside the package for self_lengthen: tokenizer, corpus and weights, from one seed.

    python scripts/make_writer.py --out selfimprove/models/writer | tee scripts/make_writer.log

A Llama of half a million parameters writes, extends and thinks up instructions, in texts of at most 48 tokens of
selfimprove.datasets.outline, about topics of the training side. It first sees one dialogue a row. In a second phase
rows have up to five, one behind the other, so that all positions of the window are known, but no longer text is.
Weights are written in 16 bits, which halves them; they are read as 32 bits.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from selfimprove.datasets import lengths, outline
from selfimprove.policy import chat
from selfimprove.studies import lessons, tiny
from selfimprove.studies.self_lengthen import instructions, share_valid, write
from selfimprove.verify.text_checks import count_words

TOKENS = 48  # of a text, its end token included
WINDOW = 512

SKILLS = {"write": 0.15, "write to a length": 0.2, "extend": 0.6, "instruct": 0.05}
EXTEND = "Enrich this text.\n{instruction}\n{response}"
INSTRUCT = "{first}\n{second}\nWrite another instruction."
DETAIL = 0.5  # share of sentences behind which an extended text has one more
# Texts have at most 5 sentences, extended ones at most 8, which is 48 tokens: none had to be cut to fit. A model that
# learnt from cut ones ended at the limit whatever it was to extend.
Row = tuple[list[int], list[int]]  # ids, and labels: -100 where nothing is learnt


def make_tokenizer() -> Any:
    rng = random.Random(1)
    texts = [part for _ in range(3000) for part in document(rng)]
    return lessons.make_tokenizer(texts, 800, WINDOW, words=True)


def row(tokenizer: Any, rng: random.Random, dialogues: int) -> Row:
    """One to `dialogues` dialogues one behind the other, with loss on all replies."""
    ids, labels = list[int](), list[int]()
    for _ in range(rng.randint(1, dialogues)):
        prompt, reply = document(rng)
        while len(answer := chat.encode(tokenizer, reply)) >= TOKENS:
            prompt, reply = document(rng)
        asked = chat.render(tokenizer, prompt)
        asked, answer = asked[1:] if ids else asked, [*answer, tokenizer.eos_token_id]
        ids += [*asked, *answer]
        labels += [-100] * len(asked) + answer
    return ids, labels


def batches(tokenizer: Any, rng: random.Random, tokens: int, dialogues: int) -> Iterator[tuple[Any, Any]]:
    """Endless (input_ids, labels) of about `tokens` tokens, right-padded, rows of like length together."""
    while True:
        rows = [row(tokenizer, rng, dialogues) for _ in range(1000)]
        yield from lessons.batched(rng, rows, tokens, tokenizer.pad_token_id)


def train(model: LlamaForCausalLM, source: Iterator[tuple[Any, Any]], steps: int, lr: float) -> Iterator[int]:
    """AdamW with linear warm-up and a cosine down to a tenth. Right padding needs no attention mask: it is causal.

    Yields the number of steps after every hundredth.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / steps))
    )
    began, losses = time.monotonic(), list[float]()
    model.train()
    for step in range(1, steps + 1):
        inputs, labels = next(source)
        hidden = model.model(input_ids=inputs).last_hidden_state[:, :-1]
        target = labels[:, 1:]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[target != -100]), target[target != -100])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            print(f"step {step} loss {np.mean(losses[-100:]):.4f} {time.monotonic() - began:.0f} s", flush=True)
            yield step


def save(model: LlamaForCausalLM, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    save_file({k: v.to(torch.float16) for k, v in load_file(weights).items()}, weights, {"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the model; saved every 100 steps")
    parser.add_argument("--steps", type=int, nargs=2, default=(1100, 100), help="optimizer steps of both phases")
    parser.add_argument("--lr", type=float, nargs=2, default=(3e-3, 1e-3), help="their peak learning rates")
    parser.add_argument("--tokens", type=int, default=1536, help="tokens a step, padding included")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = tiny.small_llama(tokenizer, 4, WINDOW)
    print(" ".join(f"{key}={value}" for key, value in vars(args).items() if key != "out"))
    print(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens in the vocabulary", flush=True)
    for phase, dialogues in enumerate((1, 5)):
        if args.steps[phase]:
            source = batches(tokenizer, random.Random(f"{args.seed} {phase}"), args.tokens, dialogues)
            for _ in train(model, source, args.steps[phase], args.lr[phase]):
                save(model, tokenizer, args.out)
    asked = instructions("dev", 100)
    texts = write(args.out, asked, 0)
    words = [count_words(text) for text in texts.values()]
    valid = np.mean([share_valid(asked, name, text) for name, text in texts.items()])
    print(f"100 dev instructions: median {np.median(words):.0f} words, most {max(words)}, {100 * valid:.1f} % valid")


def document(rng: random.Random) -> tuple[str, str]:
    """A prompt on topics of the training side, and the reply to learn."""
    (skill,) = rng.choices(list(SKILLS), list(SKILLS.values()))
    topics = drawn(rng)
    ask = outline.instruction(topics)
    if skill == "instruct":
        first, second = (outline.instruction(drawn(rng)) for _ in range(2))
        return INSTRUCT.format(first=first, second=second), ask
    if skill == "extend":
        short = [outline.sentence(rng, topics) for _ in range(rng.randint(1, 4))]
        return EXTEND.format(instruction=ask, response="\n".join(short)), "\n".join(extended(rng, short, topics))
    reply = "\n".join(outline.sentence(rng, topics) for _ in range(rng.randint(2, 5)))
    if skill == "write to a length":
        ask += f" {lengths.asked(lengths.drawn(rng, count_words(reply), 10))}"
    return ask, reply


def drawn(rng: random.Random) -> list[str]:
    """Two or three topics of the training side."""
    while outline.side(topics := rng.sample(list(outline.TOPICS), rng.choice((2, 3)))) != "train":
        pass
    return topics


def extended(rng: random.Random, short: list[str], topics: list[str]) -> list[str]:
    """The same sentences, and new ones behind some of them; at least one."""
    while True:
        found = list[str]()
        for line in short:
            found += [line, outline.sentence(rng, topics)] if rng.random() < DETAIL else [line]
        if len(found) > len(short):
            return found


if __name__ == "__main__":
    main()
