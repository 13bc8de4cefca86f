"""A model of a quarter of a million parameters that acts in the environment `craft`, and judges actions.

It is trained on train-side tasks: episodes without a mistake, and what single actions are worth, right ones and wrong
ones. So it knows no episode in which something went wrong.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

from selfimprove.env import action_of
from selfimprove.env.craft import BOOK, RAW, Craft, expert, plan, tasks, worth, written, wrong
from selfimprove.filter.spans import Span, row
from selfimprove.policy import chat
from selfimprove.studies import lessons, tiny
from selfimprove.types import Example

ASK = "Good, uncertain or bad?"  # as conf/method/agent_r.yaml has it
SEED = 200  # of the tasks: no study uses it
TASKS, WINDOW = 1600, 384
TUNING: dict[str, Any] = {"epochs": 1, "learning_rate": 5e-3, "batch_size": 16, "warmup_ratio": 0.1}
Turn = tuple[str, str]  # what the policy writes, and what it then sees


def make(folder: Path) -> Path:
    """The folder of the trained model."""
    found = [(row.question, row.metadata["task"]) for row in tasks("train", TASKS, SEED)]
    rng = random.Random(0)
    documents = [
        (question, episode(task) if i % 2 else judgement(rng, task)) for i, (question, task) in enumerate(found)
    ]
    things = " ".join([*RAW, *BOOK])
    texts = [things, *(text for question, turns in documents for turn in turns for text in (question, *turn))]
    tokenizer = lessons.make_tokenizer(texts, vocabulary=512, window=WINDOW, words=True)

    def rows() -> list[Example]:
        return [example(tokenizer, f"document-{i}", *document) for i, document in enumerate(documents)]

    return tiny.trained(folder, rows, partial(begin, tokenizer=tokenizer), 16, **TUNING)


def begin(folder: Path, tokenizer: Any) -> None:
    """Write the model with random weights into a folder."""
    import torch

    torch.manual_seed(0)
    tiny.small_llama(tokenizer, 2, WINDOW).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def episode(task: dict[str, Any]) -> list[Turn]:
    """The shortest way to the goal."""
    return steps(task, [written(*step) for step in plan(task["goal"], task["have"])])


def judgement(rng: random.Random, task: dict[str, Any]) -> list[Turn]:
    """A right or a wrong action behind some right ones, and what it is worth; only that is learnt."""
    right = [written(*step) for step in plan(task["goal"], task["have"])]
    done = right[: rng.randrange(len(right))]
    actions = [action_of(words) or "" for words in done]
    last = written(task["goal"], wrong(task, actions, rng)) if rng.random() < 0.5 else expert(task, actions)
    *turns, (words, seen) = steps(task, [*done, last])
    return [*turns, (words, f"{seen}\n{ASK}"), (worth(task, [*actions, action_of(last) or ""]), "")]


def steps(task: dict[str, Any], words: list[str]) -> list[Turn]:
    world = Craft(task)
    return [(text, world.step(action_of(text) or "").text) for text in words]


def example(tokenizer: Any, name: str, question: str, turns: list[Turn]) -> Example:
    """A document as a row: the words of an episode bear loss, of a judgement the last alone."""
    judges = action_of(turns[-1][0]) is None
    spans = list[Span]()
    for i, (words, seen) in enumerate(turns):
        learnt = not judges or i + 1 == len(turns)
        spans.append(Span([*chat.encode(tokenizer, words), tokenizer.eos_token_id], learnt))
        spans.append(Span(chat.turn(tokenizer, seen, True), False))
    return row(name, [name], chat.render(tokenizer, question), spans[:-1])
