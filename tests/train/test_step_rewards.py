"""Process reward models: where the loss is, by hand; what a verifier reads of them; that training can be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_rows import LORA, rows, timeless
from transformers import AutoModelForTokenClassification, AutoTokenizer

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.filter.labels import labelled_answers, labelled_steps
from selfimprove.policy.chat import Tokenizer
from selfimprove.schema import Training
from selfimprove.store import file_digest
from selfimprove.train import TrainContext, unfinished
from selfimprove.train.steps import steps
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Opening
from selfimprove.verify.steps import resource, separated
from tests.train.test_checkpoints import die_at, killed

Make = Callable[..., TrainContext]


def labelled(n: int) -> list[Example]:
    """Rows with one to three labelled steps, the last token among them."""
    found = rows(n)
    for i, example in enumerate(found):
        last = len(example.completion_ids) - 1
        ends = sorted({0, last // 2, last})[-(1 + i % 3) :]
        example.metadata = {"step_ends": ends, "step_labels": [(i + k) % 2 for k in range(len(ends))]}
    return found


def losses(folder: str | Path, data: list[Example]) -> tuple[list[float], list[bool]]:
    """Of each labelled step -log p(label), and whether p is above one half, one row at a time."""
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32)
    found, right = [], []
    for e in data:
        with torch.no_grad():
            logits = model(torch.tensor([[*e.prompt_ids, *e.completion_ids]])).logits[0]
        for end, label in zip(e.metadata["step_ends"], e.metadata["step_labels"], strict=True):
            z = logits[len(e.prompt_ids) + end]
            found.append(F.cross_entropy(z[None], torch.tensor([label])).item())
            right.append(bool(z.argmax() == label))
    return found, right


@pytest.fixture
def tuned(context: Make) -> str:
    """A model whose head is no longer near its start."""
    target = context("tuned")
    steps(labelled(8), target, batch_size=4, learning_rate=1e-2)
    return str(target.out)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_the_loss_by_hand(tuned: str, context: Make, micro_batch: int) -> None:
    data, logged = labelled(7), list[dict[str, float]]()
    target = context(start=tuned, micro_batch=micro_batch, log=logged.append)
    result = steps(data, target, batch_size=8, learning_rate=1e-6)
    expected, right = losses(tuned, data)
    assert len(expected) > len(data)
    assert logged[0]["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert result["tokens"] == sum(len(e.prompt_ids) + len(e.completion_ids) for e in data)
    if micro_batch == 8:
        assert result["pair_accuracy"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("lora", [None, LORA])
def test_labels_are_learnt_and_a_verifier_reads_them(context: Make, lora: Any) -> None:
    data = labelled(6)
    target = context(lora=lora)
    first = steps(data, context("first", lora=lora), batch_size=6, learning_rate=3e-3)
    last = steps(data, target, batch_size=6, learning_rate=1e-2, epochs=60)
    assert last["loss"] < first["loss"] / 2
    model = SimpleNamespace(name="tiny", path="package", dtype="float32", trust_remote_code=False)
    opening = Opening(model, SimpleNamespace(device="cpu", max_batch=4), [])  # type: ignore[arg-type]
    scorer = resource(opening, model=str(target.out))
    assert scorer is not None
    for e in data:
        places = [len(e.prompt_ids) + end for end in e.metadata["step_ends"]]
        logits = asyncio.run(scorer.logits([*e.prompt_ids, *e.completion_ids], places))
        said = [int(good > bad) for bad, good in logits]
        assert said == e.metadata["step_labels"]


def test_a_killed_phase_ends_with_the_same_bytes(context: Make, tmp_path: Path) -> None:
    data = labelled(14)

    def phase(target: TrainContext) -> Any:
        return steps(data, target, batch_size=4, learning_rate=1e-3, epochs=3)

    def kept(log: Any) -> TrainContext:
        parts = unfinished(tmp_path / "killed.parts", "key")
        return context("killed", training=Training(checkpoint_steps=3), parts=parts, log=log)

    expected = phase(context("alone"))
    assert killed(lambda: phase(kept(die_at(5))))
    target = kept(lambda figures: None)
    result = phase(target)
    assert file_digest(target.out) == file_digest(context("alone").out)
    assert timeless(result) == timeless(expected)


def test_rows_without_labels_are_refused(context: Make) -> None:
    with pytest.raises(ValueError, match="there are no rows"):
        steps([], context(), learning_rate=1e-3)
    for metadata in ({}, {"step_ends": [0], "step_labels": [2]}, {"step_ends": [99], "step_labels": [1]}):
        row = rows(1)[0]
        row.metadata = metadata
        with pytest.raises(ValueError, match="no steps with a label of 0 or 1"):
            steps([row], context(), learning_rate=1e-3)
    weighted = labelled(1)
    weighted[0].weight = 2.0
    with pytest.raises(ConfigError, match="a weight or a mask"):
        steps(weighted, context(), learning_rate=1e-3)


def test_a_role_of_another_kind_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="give the method a role of `kind: token`") as refused:
        compose(["method=magicore_rewards", "method.stages.steps.role=outcome"])
    assert "\n" not in str(refused.value)


# Rows of labelled solutions


def attempts(verdicts: list[tuple[str, str, list[float] | None]]) -> list[Attempt]:
    problem = Problem("p", [{"role": "user", "content": "Start with 7."}], metadata={"question": "Start with 7."})
    found = []
    for i, (text, status, rewards) in enumerate(verdicts):
        sample = Sample([1, 2], [3 + i], [0.0], text, "stop", i)
        verdict = Verdict(f"t{i}", status, float(status == "correct"), step_rewards=rewards)  # type: ignore[arg-type]
        found.append(Attempt(problem, Trajectory("p", [sample], id=f"t{i}"), verdict))
    return found


def test_rows_are_what_the_verifier_reads_with_a_label_a_step() -> None:
    from selfimprove.studies.tiny import SHIPPED

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    group = attempts(
        [
            ("7 + 5 = 12\n\n12 * 3 = 35\nThe answer is 35.", "wrong", [1.0, 0.0, 0.0]),
            ("7 + 5 = 12\n12 * 3 = 36\nThe answer is 36.", "correct", None),
            ("7 + 5 = 12\n12 * 3 = 36\nThe answer is 36.", "correct", None),
            ("?", "timeout", None),
            (" \n", "unparseable", None),
        ]
    )
    found = list(labelled_steps([group], per_problem=8, text=Tokenizer(tokenizer), seed=0))
    assert [e.metadata["step_labels"] for e in found] == [[1, 0, 0], [1, 1, 1]], "each text once"
    for example, attempt in zip(found, group, strict=False):
        lines = [line for line in attempt.trajectory.text.splitlines() if line]
        ids, ends = separated(tokenizer, "Start with 7.", lines, "\n")
        assert [*example.prompt_ids, *example.completion_ids] == ids
        assert [len(example.prompt_ids) + end for end in example.metadata["step_ends"]] == ends
    assert len(list(labelled_steps([group], per_problem=1, text=Tokenizer(tokenizer), seed=0))) == 1
    answers = list(labelled_answers([group], per_problem=8, seed=0))
    assert [(e.completion_ids, e.metadata["label"]) for e in answers] == [([3], 0), ([5], 1)]
