"""Do a generator and an extender lengthen texts round by round, without losing the grammar or repeating themselves?

Claims of Quan et al. 2024 (arXiv 2410.23933), in the small language of selfimprove.datasets.outline, whose grammar is
exact. The shipped writer never saw a text of more than 48 tokens. The control goes on with its texts, with no extender,
until they are as long as those of the last generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
from rich.table import Table

from selfimprove.datasets import Side, outline
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.generate.dialogue import Dialogue
from selfimprove.policy import Policy
from selfimprove.policy.models import PACKAGED
from selfimprove.studies import Claim, Lab, Result, difference, overall
from selfimprove.studies.arms import RATE, arms_table
from selfimprove.studies.solving import ByProblem, Solver, solve
from selfimprove.studies.staged import DEV_SEED, answered, best_rate, bounded, pass_folder
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem, Trajectory
from selfimprove.verify.text_checks import count_words, repetition

COMMAND = "selfimprove study self_lengthen"
RATES = (3e-4, 1e-3, 3e-3)
TEMPERATURE = 1.0
MAX_TOKENS = 320
Texts = dict[str, str]  # problem id -> text
PROMPT = "{question}"


def study(lab: Lab) -> Iterator[Claim]:
    count, dev, heldout = (12, 12, 12) if lab.quick else (60, 40, 60)
    rounds, rates = (1, RATES[1:2]) if lab.quick else (3, RATES)
    common = ["method=self_lengthen", f"method.stages.ask.problems.count={count}"]
    rate = chosen_rate(lab, common, rates, dev)
    settings = [*common, f"rounds={rounds}", f"dataset.heldout_size={heldout}", f"method.train.learning_rate={rate}"]
    runs = lab.over_seeds(*settings)
    asked = instructions("test", heldout)
    texts: dict[str, list[Texts]] = {"shipped policy": [write(PACKAGED / "writer", asked, seed) for seed in lab.seeds]}
    for number in range(rounds):
        at = f"generator, round {number + 1}"
        texts[at] = [write(generator(run, number), asked, seed) for seed, run in zip(lab.seeds, runs, strict=True)]
    last = list(texts)[-1]
    goals = [int(np.median([count_words(text) for text in found.values()])) for found in texts[last]]
    texts["just continue"] = [
        write(PACKAGED / "writer", asked, seed, partial(continued, words=goal))
        for seed, goal in zip(lab.seeds, goals, strict=True)
    ]
    lab.note(table(texts, asked))
    lab.note(scores_table(runs, rounds))
    names = list(texts)
    for before, after in pairwise(names[:-1]):
        longer, shorter = ([measured(log_words, found) for found in texts[name]] for name in (after, before))
        grown = difference(longer, shorter)
        yield bounded(
            f"{after}: texts have at least 1.5 times the words (log of the ratio above {log(1.5):.3f})",
            grown, log(1.5), before, COMMAND,
        )  # fmt: skip
    right = [measured(partial(share_valid, asked), found) for found in texts[last]]
    nothing = [dict.fromkeys(found, 0.0) for found in right]
    yield bounded(
        "90 % of the last generator's sentences are of the grammar", difference(right, nothing), 0.9, "", COMMAND
    )
    repeats = {name: [measured(four_grams, found) for found in texts[name]] for name in names}
    less = difference(repeats["shipped policy"], repeats[last])
    yield bounded("4-grams repeat at most 5 points more than before", less, -0.05, "shipped policy", COMMAND)
    more = difference(repeats["just continue"], repeats[last])
    yield bounded("just continuing to the same length repeats more", more, 0.0, "just continue", COMMAND)
    found = [{name: value / 100 for name, value in answered(run).items()} for run in runs]
    none = [dict.fromkeys(values, 0.0) for values in found]
    yield bounded("the length score of the last policy is above .7", difference(found, none), 0.7, "", COMMAND)
    base = [{name: value / 100 for name, value in answered(run, "base").items()} for run in runs]
    yield bounded("it is above that of the shipped policy", difference(found, base), 0.0, "shipped policy", COMMAND)


def chosen_rate(lab: Lab, common: Sequence[str], rates: Sequence[float], size: int) -> float:
    """The learning rate whose generator, after a round, writes most words of whole texts on dev that are right."""
    asked = instructions("dev", size)

    def right_words(rate: float) -> float:
        trial = lab.run(*common, "rounds=1", "dataset.heldout_size=10", f"{RATE}={rate}", f"seed={DEV_SEED}")
        found = write(generator(trial, 0), asked, DEV_SEED)
        words = [count_words(text) * share_valid(asked, name, text) for name, text in found.items()]
        return float(np.median(words))

    return best_rate(lab, "generator", rates, right_words, "median words of right sentences", "{:.1f}".format)


def instructions(side: Side, size: int) -> dict[str, Problem]:
    """Instructions of one side without a limit of words."""
    sizes = {"train_size": 0, "dev_size": size, "heldout_size": size}
    found = outline.load(words=(10, 60), unit=10, seed=0, prompt=PROMPT, **sizes)  # type: ignore[arg-type]
    plain = {
        p.id: outline.instruction(outline.topics_of(str(p.metadata["question"]))) for p in found if p.split == side
    }
    return {name: Problem(name, ask, metadata={"question": ask}) for name, ask in plain.items()}


def generator(run: Result, number: int) -> Path:
    """The folder of the generator of a round."""
    return pass_folder(run, "lengthen", number) / "policy"


def write(path: Path, asked: Mapping[str, Problem], seed: int, solver: Solver | None = None) -> Texts:
    """A policy's text for each instruction."""
    solver = solver or partial(best_of_n, n=1, temperature=TEMPERATURE)
    found = solve(solver, shipped(path), list(asked.values()), seed=seed, max_tokens=MAX_TOKENS)
    return {group[0].problem_id: str(group[0].metadata.get("text", group[0].text)) for group in found}


async def continued(problem: Problem, policy: Policy, *, words: int) -> list[Trajectory]:
    """A text that goes on behind its end, on a new line, until it has so many words or the window is full."""
    dialogue, text = Dialogue(policy, problem.prompt), ""
    while len(dialogue.ids) + 1 < policy.engine.max_length and count_words(text) < words:
        if text:
            dialogue.append("\n")
            text += "\n"
        text += (await dialogue.reply(temperature=TEMPERATURE)).text
    return [Trajectory(problem.id, dialogue.samples, {"text": text})]


def measured(figure: object, texts: Texts) -> ByProblem:
    """A figure of each text."""
    assert callable(figure)
    return {name: float(figure(name, text)) for name, text in texts.items()}


def log_words(name: str, text: str) -> float:
    return log(max(1, count_words(text)))


def four_grams(name: str, text: str) -> float:
    return repetition(text, 4)


def share_valid(asked: Mapping[str, Problem], name: str, text: str) -> float:
    """The share of a text's lines that are sentences of the grammar about its subject."""
    return float(np.mean(outline.valid(text, str(asked[name].metadata["question"]))))


def table(texts: Mapping[str, list[Texts]], asked: Mapping[str, Problem]) -> Table:
    def over(rows: list[Texts]) -> list[str]:
        return [text for found in rows for text in found.values()]

    def valid(rows: list[Texts]) -> list[ByProblem]:
        return [measured(partial(share_valid, asked), found) for found in rows]

    return arms_table(
        "Texts for held-out instructions without a limit, all seeds",
        texts,
        {
            "median words": lambda rows: f"{np.median([count_words(text) for text in over(rows)]):.0f}",
            "sentences of the grammar": lambda rows: f"{100 * overall(valid(rows)):.1f} %",
            "texts wholly of it": lambda rows: (
                f"{100 * np.mean([v == 1 for r in valid(rows) for v in r.values()]):.0f} %"
            ),
            "4-grams seen before": lambda rows: f"{100 * np.mean([repetition(text, 4) for text in over(rows)]):.1f} %",
        },
        "writer",
    )


def scores_table(runs: Sequence[Result], rounds: int) -> Table:
    """The held-out length score of the policy after each round."""
    rows = {"shipped policy": [r.summary["base"] for r in runs]}
    rows |= {f"round {i + 1}": [r.summary["rounds"][i]["evaluation"] for r in runs] for i in range(rounds)}
    return arms_table(
        "Held-out instructions with a limit of 10 to 60 words, means over seeds",
        rows,
        {"length score": lambda found: f"{np.mean([one['length_score'] for one in found]):.1f}"},
        "policy",
    )
