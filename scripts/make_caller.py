"""Make the caller that ships inside the package for tt_si: tokenizer, corpus and weights, from one seed.

    python scripts/make_caller.py --out selfimprove/models/caller | tee scripts/make_caller.log

A Llama of half a million parameters answers requests of selfimprove.datasets.toolcall with a call, and writes similar
requests with their calls. Few of the documents that it learns from have the rare wordings. It sees requests of the
training side only. Weights are written in 16 bits, which halves them; they are read as 32 bits.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from selfimprove.datasets import toolcall
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.studies import lessons, tiny
from selfimprove.studies.solving import attempts, grader, right, solve
from selfimprove.types import Example
from selfimprove.verify.calls import check

DOCUMENTS = 12_000
WRITES = 0.4  # share of documents that write a similar request
RARE = 0.02  # share of documents in rare wordings
WINDOW = 256
# As in conf/generate/tt_si.yaml
ASK = 'Write a similar request and its call, in two lines: "Request: ..." and "Call: ...".'


def document(rng: random.Random) -> tuple[str, str]:
    """What is asked, and the reply to learn."""
    kind = "rare" if rng.random() < RARE else "common"
    first, second = (drawn(rng, kind) for _ in range(2))
    if rng.random() >= WRITES:
        return first.question, toolcall.call(first.gold or "")
    while second.metadata["function"] != first.metadata["function"]:
        second = drawn(rng, kind)
    return (
        f"{first.question}\n{ASK}",
        f"Request: {second.metadata['request']}\nCall: {toolcall.call(second.gold or '')}",
    )


def drawn(rng: random.Random, kind: str) -> toolcall.Row:
    """A request of the training side."""
    while (row := toolcall.drawn(rng, kind)).side != "train":
        pass
    return row


def start(folder: Path, tokenizer: Any) -> None:
    torch.manual_seed(0)
    tiny.small_llama(tokenizer, 4, WINDOW).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    rng = random.Random(0)
    documents = [document(rng) for _ in range(DOCUMENTS)]
    tokenizer = lessons.make_tokenizer((text for pair in documents[:3000] for text in pair), 640, WINDOW, words=True)

    def rows() -> list[Example]:
        return [lessons.answer_row(tokenizer, *pair, f"document-{i}") for i, pair in enumerate(documents)]

    with tempfile.TemporaryDirectory() as folder:
        made = tiny.trained(
            Path(folder) / "caller",
            rows,
            partial(start, tokenizer=tokenizer),
            micro_batch=32,
            learning_rate=3e-3,
            batch_size=16,
            warmup_ratio=0.05,
        )
        args.out.mkdir(parents=True, exist_ok=True)
        for name in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ):
            shutil.copy(made / name, args.out / name)
        weights = {k: v.to(torch.float16) for k, v in load_file(made / "model.safetensors").items()}
        save_file(weights, args.out / "model.safetensors", {"format": "pt"})
    report(args.out)


def report(folder: Path) -> None:
    engine = tiny.shipped(folder)
    for kind, rare in (("common", 0.0), ("rare", 1.0)):
        problems = [p for p in toolcall.load(rare=rare, seed=0, prompt="{question}", train_size=0, heldout_size=100)]
        found = attempts(
            problems, solve(partial(best_of_n, n=1, temperature=0), engine, problems, max_tokens=32), grader(check)
        )
        print(f"held-out requests in {kind} wordings: {100 * np.mean([right(group) for group in found]):.1f} % right")


if __name__ == "__main__":
    main()
