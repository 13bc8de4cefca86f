"""A model of a million parameters that colours graphs, criticises colourings, and mends its own as it is told.

It is trained on train-side graphs, by the package's own supervised fine-tuning, with a tokenizer of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from selfimprove.datasets import colouring
from selfimprove.methods.critique_coloring import clash
from selfimprove.policy.scripted import VERIFY, ScriptedEngine
from selfimprove.studies import lessons, tiny
from selfimprove.types import Example, Message, Problem

VERTICES, COLOURS, PROBABILITY = (5, 6), 3, 0.6  # of the graphs
DOCUMENTS = 9_000
WINDOW, LONGEST = 2048, 96  # tokens of a dialogue, and of an answer
SHARES = {"solve": 0.6, "verify": 0.12, "mend": 0.28}
ANOTHER = 0.5  # probability that a dialogue has one more wrong answer, up to MOST of them
MOST = 15

RETRY = "{review}\nColour it again."
REFUSE = "This is not correct."
ACCEPT = "Verifier confirmed success."


@dataclass(frozen=True)
class Document:
    """A dialogue, and how much of each assistant's turn is learnt: a start of its text, all of the last."""

    messages: list[Message]
    learnt: list[str]


def make(folder: Path, documents: int = DOCUMENTS) -> Path:
    """The folder of the trained model. Making it takes some minutes on one core for 9 thousand documents."""
    if folder.exists():
        return folder
    rng = random.Random(0)
    texts = (message["content"] for _ in range(1000) for message in document(rng).messages)
    tokenizer = lessons.make_tokenizer(texts, vocabulary=320, window=WINDOW)

    def rows() -> list[Example]:
        made = ((f"document-{i}", document(rng)) for i in range(documents))
        return [lessons.dialogue_row(tokenizer, d.messages, d.learnt, name) for name, d in made]

    start = partial(tiny.llama, tokenizer=tokenizer)
    return tiny.trained(folder, rows, start, 8, learning_rate=1.5e-3, batch_size=8, warmup_ratio=0.05)


def document(rng: random.Random) -> Document:
    """One train-side graph: coloured, a colouring of it criticised, or wrong ones mended as they are criticised.

    What is learnt is the first colouring in the order of the dictionary. After a wrong one it is the right one that
    changes the fewest vertices, so that what is said of it can help. Of the wrong one only the part before its slip is
    learnt.
    """
    while True:
        row = colouring.planted(rng, rng.randint(*VERTICES), COLOURS, PROBABILITY)
        edges = row.metadata["edges"]
        if row.side == "train" and edges:
            break
    size = len(row.metadata["vertices"])
    question = neighbours(size, edges)
    first = colouring.colouring(size, edges, COLOURS)
    assert first is not None, "it was made with a colouring"
    skill = rng.choices(list(SHARES), list(SHARES.values()))[0]
    if skill == "verify":
        shown = rng.choice([first, colours_of(row.gold or "")])
        if rng.random() < 0.5:
            shown = slip(rng, shown, edges, size)
        review = "\n".join(clashes(shown, edges)) or ACCEPT
        written = worked(shown, edges) if rng.random() < 0.5 else listed(shown)
        return Document([_user(f"{question}\n{written}\n{VERIFY}"), _assistant(review)], [review])
    messages, learnt = [_user(question)], []
    right = first
    if skill == "mend":
        proper = every_colouring(size, edges)
        tell = rng.choice([lambda errors: REFUSE, lambda errors: errors[0], "\n".join])
        for _ in range(1 + sum(1 for _ in itertools.takewhile(lambda _: rng.random() < ANOTHER, range(MOST - 1)))):
            wrong = slip(rng, right, edges, 3)
            text = worked(wrong, edges)
            learnt.append(common_lines(text, worked(right, edges)))
            messages += [_assistant(text), _user(RETRY.replace("{review}", tell(clashes(wrong, edges))))]
            right = [int(c) for c in proper[(proper != wrong).sum(axis=1).argmin()]]
    text = worked(right, edges)
    return Document([*messages, _assistant(text)], [*learnt, text])


def graphs(size: int) -> list[Problem]:
    """Held-out graphs of 5 and 6 vertices, as the model reads them: each vertex with its earlier neighbours."""
    problems = colouring.load(
        vertices=VERTICES,
        colours=COLOURS,
        probability=PROBABILITY,
        seed=0,
        prompt="{question}",
        train_size=0,
        heldout_size=size,
    )
    texts = [neighbours(len(p.metadata["vertices"]), p.metadata["edges"]) for p in problems]
    return [
        replace(p, prompt=[_user(text)], metadata={**p.metadata, "question": text})
        for p, text in zip(problems, texts, strict=True)
    ]


# A script in its place, for the closed forms


def script(copies: int, p: float, accept_right: float, accept_wrong: float) -> tuple[list[Problem], ScriptedEngine]:
    """20 graphs, each as `copies` problems, and a policy that knows them: an answer is right with probability `p`.

    As a critic it accepts a right answer and a wrong one with the other two probabilities.
    """
    problems = graphs(20)
    questions = {problem.metadata["question"]: problem for problem in problems}
    gold = {text: one_line(colours_of(problem.gold or "")) for text, problem in questions.items()}
    wrong = {
        text: [one_line([1] * len(problem.metadata["vertices"])), spoilt(problem)]
        for text, problem in questions.items()
    }
    engine = ScriptedEngine(
        gold, p, p_improve=p, p_degrade=1 - p, tpr=accept_right, fpr=accept_wrong, wrong_values=wrong
    )
    return [replace(problem, id=f"{problem.id}-{i}") for problem in problems for i in range(copies)], engine


def one_line(colours: Sequence[int]) -> str:
    """A colouring without white space, as the script's answers have to be."""
    return "{" + ",".join(f"{v}:{colour}" for v, colour in enumerate(colours, start=1)) + "}"


def spoilt(problem: Problem) -> str:
    """The gold colouring with the first vertex of an edge in the colour of the other."""
    colours = colours_of(problem.gold or "")
    u, v = problem.metadata["edges"][0]
    colours[u - 1] = colours[v - 1]
    return one_line(colours)


# Graphs and colourings as text


def neighbours(vertices: int, edges: colouring.Edges) -> str:
    """A graph, one vertex a line, with those of its neighbours that come before it."""
    earlier = [[str(min(e)) for e in edges if max(e) == v] for v in range(1, vertices + 1)]
    return "\n".join(f"{v} by {' '.join(us) or 'none'}" for v, us in enumerate(earlier, start=1))


def worked(colours: Sequence[int], edges: colouring.Edges) -> str:
    """A colouring, with each vertex's earlier neighbours and their colours in the line above it."""
    lines = []
    for v, colour in enumerate(colours, start=1):
        earlier = [min(e) for e in edges if max(e) == v]
        lines.append(f"({' '.join(f'{u}: {colours[u - 1]}' for u in earlier)})")  # which no checker takes for an answer
        lines.append(f"{v}: {colour}")
    return "\n".join(lines)


def listed(colours: Sequence[int]) -> str:
    return "\n".join(f"{v}: {colour}" for v, colour in enumerate(colours, start=1))


def colours_of(text: str) -> list[int]:
    """The colours of "1: 3" and so on, one a line."""
    return [int(line.split()[1]) for line in text.splitlines()]


def clashes(colours: Sequence[int], edges: colouring.Edges) -> list[str]:
    """What a verifier that names all errors says."""
    return [clash(str(u), str(v), str(colours[u - 1])) for u, v in edges if colours[u - 1] == colours[v - 1]]


def slip(rng: random.Random, colours: Sequence[int], edges: colouring.Edges, most: int) -> list[int]:
    """A wrong colouring: up to `most` vertices of a right one have another colour."""
    wrong = list(colours)
    while not clashes(wrong, edges):
        wrong = list(colours)
        for vertex in rng.sample(range(len(wrong)), rng.randint(1, most)):
            wrong[vertex] = rng.randint(1, COLOURS)
    return wrong


def every_colouring(vertices: int, edges: colouring.Edges) -> np.ndarray:
    """All proper colourings, (colourings, vertices)."""
    every = np.array(list(itertools.product(range(1, COLOURS + 1), repeat=vertices)))
    return every[np.all([every[:, u - 1] != every[:, v - 1] for u, v in edges], axis=0)]


def common_lines(text: str, other: str) -> str:
    """The first lines of `text` that are those of `other` too."""
    pairs = zip(text.splitlines(keepends=True), other.splitlines(keepends=True), strict=False)
    return "".join(line for line, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
