"""The training benchmarks of scripts/bench.py."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfimprove.types import Example

MICRO = 8  # rows of a device step
Trainer = Callable[[str, Path, list[Example], int], None]  # (start, folder to save in, rows, rows of an optimizer step)


def train_vs_trl(repeats: int = 3) -> dict[str, Any]:
    """Tokens a second through `sft` over TRL's SFTTrainer called by hand on the same rows and device steps, each
    from loading the model to having saved it, in float32 on a CPU. The value is the worst shape's ratio of medians."""
    shapes = {"tiny": _compare("tiny", repeats, 1024, 32, by_trl), "135m": _compare("135m", repeats, 16, 8, by_trl)}
    return {"value": min(result["value"] for result in shapes.values()), **shapes}


def train_vs_bare(repeats: int = 3) -> dict[str, Any]:
    """Tokens a second through `sft` over a loop of PyTorch on the same device steps, with the model's own forward and
    loss, each from loading the model to having saved it, in float32 on a CPU, for the shape of SmolLM2-135M."""
    return _compare("135m", repeats, 16, 8, _bare)


def _compare(shape: str, repeats: int, rows: int, batch: int, other: Trainer) -> dict[str, Any]:
    import torch
    from bench import SHAPES, random_model

    rng, longest = random.Random(0), SHAPES[shape]["tokens"]

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(2, 250) for _ in range(rng.randint(low, high))]

    examples = [Example(str(i), [], ids(20, 80), ids(longest // 2, 2 * longest)) for i in range(rows)]
    tokens = sum(example.tokens for example in examples)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = random_model(folder / "base", shape)

        def rate(train: Trainer, out: Path) -> float:
            begin = time.perf_counter()
            train(start, out, examples, batch)
            return tokens / (time.perf_counter() - begin)

        pairs = [(rate(_ours, folder / f"ours{i}"), rate(other, folder / f"other{i}")) for i in range(repeats + 1)]
    del pairs[0]  # which warmed up
    mine, theirs = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    return {
        "value": mine / theirs,
        "ours_tokens_per_second": mine,
        f"{other.__name__.removeprefix('by_').strip('_')}_tokens_per_second": theirs,
        "tokens": tokens,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
    }


def _ours(start: str, out: Path, examples: list[Example], batch: int) -> None:
    from selfimprove.train import TrainContext
    from selfimprove.train.sft import sft

    context = TrainContext(
        start=start,
        base=start,
        out=out,
        seed=0,
        device="cpu",
        dtype="float32",
        micro_batch=MICRO,
        gradient_checkpointing=False,
        lora=None,
        log=lambda figures: None,
    )
    sft(examples, context, batch_size=batch, learning_rate=1e-5)


def _table(examples: list[Example], batch: int) -> list[dict[str, Any]]:
    """The rows in the order in which `_ours` takes them."""
    from selfimprove.train import plan
    from selfimprove.train.sft import row

    return [row(examples[i]) for i in plan([example.tokens for example in examples], 1, batch, seed=0)]


def by_trl(
    start: str, out: Path, examples: list[Example], batch: int, micro: int = MICRO, learning_rate: float = 1e-5
) -> None:
    """TRL's SFTTrainer called by hand, from loading the model to having saved it."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(out),
        num_train_epochs=1,
        per_device_train_batch_size=min(micro, batch),
        gradient_accumulation_steps=max(1, batch // micro),
        learning_rate=learning_rate,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        logging_strategy="no",
        report_to=[],
        save_strategy="no",
    )
    trainer = SFTTrainer(model=start, args=config, train_dataset=Dataset.from_list(_table(examples, batch)))
    trainer.train()
    trainer.save_model()


def _bare(start: str, out: Path, examples: list[Example], batch: int) -> None:
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    table = _table(examples, batch)
    for begin in range(0, len(table), batch):
        step = table[begin : begin + batch]
        labelled = sum(label != -100 for row in step for label in row["labels"])
        for i in range(0, len(step), MICRO):
            rows = step[i : i + MICRO]
            ids = [torch.tensor(row["input_ids"]) for row in rows]
            loss = model(
                input_ids=pad_sequence(ids, batch_first=True),
                attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
                labels=pad_sequence(
                    [torch.tensor(row["labels"]) for row in rows], batch_first=True, padding_value=-100
                ),
                num_items_in_batch=labelled,
                use_cache=False,
            ).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(start).save_pretrained(out)
