"""ISC: rows with and without masking, the response read in two parts, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.methods.isc import corrected, respond
from selfimprove.policy import Policy, Request, chat
from selfimprove.policy.models import PACKAGED, load_tokenizer
from selfimprove.policy.scripted import ANSWER, END, ScriptedEngine
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.forks import drive

WORDS: dict[str, Any] = {"check_words": "\nVerdict:", "correct": " correct", "incorrect": " incorrect\n"}
PROBLEM = Problem("p", "Question?", "7")


@pytest.fixture(scope="module")
def text() -> chat.Tokenizer:
    return chat.Tokenizer(load_tokenizer(str(PACKAGED / "tiny")))


def group(text: chat.Tokenizer, *answers: tuple[str, Any], finish: Any = "stop") -> list[Attempt]:
    def one(i: int, words: str, status: Any) -> Attempt:
        ended = finish == "stop" and "Verdict:" not in words
        sample = Sample([1, 2], [*text.encode(words), *[text.end] * ended], [], words, finish, 0)
        return Attempt(
            PROBLEM, Trajectory("p", [sample], id=f"t{i}"), Verdict(f"t{i}", status, float(status == "correct"))
        )

    return [one(i, words, status) for i, (words, status) in enumerate(answers)]


def shown(text: chat.Tokenizer, example: Example) -> list[tuple[str, int]]:
    """The row's text in runs of equal loss."""
    runs: list[tuple[list[int], int]] = []
    for token, learnt in zip(example.completion_ids, example.mask or [], strict=True):
        if runs and runs[-1][1] == learnt:
            runs[-1][0].append(token)
        else:
            runs.append(([token], learnt))
    return [(text.tokenizer.decode(ids), learnt) for ids, learnt in runs]


ANSWERS = (("The answer is 7.", "correct"), ("The answer is 8.", "wrong"))


@pytest.mark.parametrize(
    ("rows", "right", "wrong"),
    [
        (
            "masked",
            [("The answer is 7.\nVerdict: correct<eos>", 1)],
            [("The answer is 8.", 0), ("\nVerdict: incorrect\nThe answer is 7.<eos>", 1)],
        ),
        (
            "unmasked",
            [("The answer is 7.\nVerdict: correct<eos>", 1)],
            [("The answer is 8.\nVerdict: incorrect\nThe answer is 7.<eos>", 1)],
        ),
        ("plain", [("The answer is 7.<eos>", 1)], [("The answer is 7.<eos>", 1)]),
    ],
)
def test_which_ids_of_a_row_bear_loss(
    text: chat.Tokenizer, rows: Any, right: list[tuple[str, int]], wrong: list[tuple[str, int]]
) -> None:
    first, second = corrected([group(text, *ANSWERS)], **WORDS, rows=rows, text=text, seed=0)
    assert shown(text, first) == right
    assert shown(text, second) == wrong
    assert first.trajectory_ids == ["t0"]
    assert second.trajectory_ids == ["t1", "t0"]
    assert [e.prompt_ids for e in (first, second)] == [[1, 2]] * 2


def test_a_learnt_check_is_no_part_of_a_first_answer(text: chat.Tokenizer) -> None:
    checked = [(f"{words}\nVerdict:", status) for words, status in ANSWERS]
    ids = text.encode("\nVerdict: correct")[:2]
    groups = group(text, *checked)
    for attempt, (words, _) in zip(groups, ANSWERS, strict=True):
        attempt.trajectory.samples[0].completion_ids = [*text.encode(words), *ids]
    before = list(corrected([group(text, *ANSWERS)], **WORDS, text=text, seed=0))
    after = list(corrected([groups], **WORDS, text=text, seed=0))
    assert [shown(text, e) for e in after] == [shown(text, e) for e in before]


@pytest.mark.parametrize(
    ("answers", "finish", "rows"),
    [
        ((ANSWERS[1], ANSWERS[1]), "stop", 0),  # no right answer to correct it with
        ((ANSWERS[0], ANSWERS[0]), "stop", 1),  # each answer once
        ((ANSWERS[0], ("what?", "unparseable")), "stop", 1),
        (ANSWERS, "length", 0),
    ],
    ids=["none right", "twice", "unreadable", "cut off"],
)
def test_what_makes_no_row(text: chat.Tokenizer, answers: Any, finish: Any, rows: int) -> None:
    assert len(list(corrected([group(text, *answers, finish=finish)], **WORDS, text=text, seed=0))) == rows


class Checking(ScriptedEngine):
    """Answers right with p, then says "incorrect" of wrong answers with `hit` and of right ones with `alarm`, and mends
    what it calls incorrect with `mend`."""

    def __init__(self, gold: dict[str, str], p: float, hit: float, alarm: float, mend: float) -> None:
        super().__init__(gold)
        self.rates = p, hit, alarm, mend

    async def sample(self, request: Request) -> Sample:
        p, hit, alarm, mend = self.rates
        draw = np.random.default_rng(request.seed).random(2)
        prompt = "".join(map(chr, request.prompt_ids))
        if "Verdict:" not in prompt:
            said, finish = f"{ANSWER}{7 if draw[0] < p else 8}.\nVerdict:", ""
        else:
            right = f"{ANSWER}7" in prompt
            flagged = draw[0] < (alarm if right else hit)
            said, finish = " correct", END
            if flagged:
                said = f" incorrect\n{ANSWER}{7 if draw[1] < mend else 8}."
        ids = self.encode(said + finish)
        return Sample(list(request.prompt_ids), ids, [0.0] * len(ids), said, "stop", request.seed)


def test_first_and_final_accuracy_are_those_of_the_rates() -> None:
    """final = p (1 - alarm) + p alarm mend + (1 - p) hit mend."""
    p, hit, alarm, mend = 0.5, 0.8, 0.1, 0.6
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(1000)]
    engine = Checking({str(q.prompt): "7" for q in problems}, p, hit, alarm, mend)

    async def everything() -> list[list[Trajectory]]:
        policy = Policy(engine, 0, max_tokens=64)
        words = {"check_words": WORDS["check_words"], "incorrect": WORDS["incorrect"]}
        return await asyncio.gather(*(respond(q, policy.for_problem(q), **words) for q in problems))

    found = asyncio.run(everything())
    right = np.array([[t.text.split(ANSWER)[-1][0] == "7" for t in pair] for pair in found])
    triggered = np.array([pair[0].metadata["triggered"] for pair in found])
    assert [[t.metadata["stage"] for t in pair] for pair in found[:2]] == [[1, 2]] * 2
    for seen, expected, n in (
        (right[:, 0].mean(), p, 1000),
        (right[:, 1].mean(), p * (1 - alarm) + p * alarm * mend + (1 - p) * hit * mend, 1000),
        (triggered[~right[:, 0]].mean(), hit, 500),
        (triggered[right[:, 0]].mean(), alarm, 500),
    ):
        assert abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / n)
    whole = next(pair for pair, flagged in zip(found, triggered, strict=True) if flagged)[1].samples[0]
    assert "".join(map(chr, whole.completion_ids)) in (whole.text, whole.text + END)
    assert len(whole.logprobs) == len(whole.completion_ids)


@pytest.mark.parametrize("control", ["method.filter.rows=unmasked", "method.filter.rows=plain", "dataset.form=choice"])
def test_controls_are_overrides(control: str) -> None:
    assert compose(["method=isc", control]).method.name == "isc"


SIZES = ["method=isc", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=8", "dataset.heldout_size=6",
         "tracker=none", "verify.workers=1", "method.train.epochs=1"]  # fmt: skip


def test_a_small_run_reads_its_response_in_two_parts(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    figures = json.loads((tmp_path / "rounds/000/metrics.json").read_text())
    assert {"evaluate/accuracy", "evaluate/accuracy@t1", "evaluate/accuracy@t2"} <= figures.keys()
    rows = list(store.read_records(tmp_path / "rounds/000/examples.parquet", Example))
    assert {bool(e.metadata["right"]) for e in rows} == {True, False}
    assert all((0 in (e.mask or [])) != e.metadata["right"] for e in rows)


@pytest.mark.slow
def test_a_run_killed_in_training_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    drive(tmp_path, "method=isc rounds=1 method.train.epochs=1 method.generate.n=3", ["train:1"])
