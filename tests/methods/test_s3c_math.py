"""S3c-Math: which steps are wrong, what of a row bears loss, folds, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.datasets import arithmetic as data
from selfimprove.datasets.passes import fold
from selfimprove.datasets.worked import steps_of
from selfimprove.errors import ConfigError
from selfimprove.methods.s3c_math import corrected, errors, plain
from selfimprove.plan import Pass, plan
from selfimprove.policy import Policy, Request, chat
from selfimprove.policy.models import PACKAGED, load_tokenizer
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.forks import drive

PROBLEM = data.problem(data.Chain(7, (("+", 5), ("*", 3))), "solve")  # 7 + 5 = 12, 12 * 3 = 36, The answer is 36.


@pytest.fixture(scope="module")
def text() -> chat.Tokenizer:
    return chat.Tokenizer(load_tokenizer(str(PACKAGED / "tiny")))


class Spelled(chat.Tokenizer):
    """An engine with the shipped tokenizer that answers by what the prompt ends with."""

    max_length = 512

    def __init__(self, text: chat.Tokenizer, answers: dict[str, str]) -> None:
        super().__init__(text.tokenizer)
        self.answers = answers

    async def sample(self, request: Request) -> Sample:
        shown = self.tokenizer.decode(request.prompt_ids)
        said = next(answer for end, answer in self.answers.items() if shown.endswith(end))
        ids = self.encode(said) if said.endswith("\n") else [*self.encode(said), self.end]
        return Sample([*request.prompt_ids], ids, [0.0] * len(ids), said, "stop", request.seed)

    async def logprobs(self, prompt_ids: Any, completion_ids: Any) -> list[float]:
        return [-1.0] * len(completion_ids)


ANSWERS = {
    "<|assistant|>": "7 + 5 = 13\n",  # another step
    "7 + 5 = 13\n": "13 * 3 = 39\nThe answer is 39.",
    "7 + 5 = 12\n": "12 * 3 = 36\n",  # the true one
    "12 * 3 = 36\n": "The answer is 35.",  # another one, which ends the response
}


def found(text: chat.Tokenizer) -> list[Trajectory]:
    return asyncio.run(errors(PROBLEM, Policy(Spelled(text, ANSWERS), 0, max_tokens=64)))  # type: ignore[arg-type]


def test_only_other_steps_behind_true_ones_are_followed_to_the_end(text: chat.Tokenizer) -> None:
    gold, first, last = found(text)
    assert (gold.text, gold.samples[0].role) == (data.solution(data.Chain.of(PROBLEM.metadata)), "gold")
    assert [s.text for s in first.samples] == ["7 + 5 = 13\n", "13 * 3 = 39\nThe answer is 39."]
    assert [s.text for s in last.samples] == ["The answer is 35."]
    assert [t.metadata["step"] for t in (first, last)] == [0, 2]


def attempts(trajectories: list[Trajectory], *statuses: Any) -> list[Attempt]:
    for i, trajectory in enumerate(trajectories):
        trajectory.id = f"t{i}"
    return [Attempt(PROBLEM, t, Verdict(t.id, s, 0.0)) for t, s in zip(trajectories, statuses, strict=True)]


def shown(text: chat.Tokenizer, example: Example) -> list[tuple[str, int]]:
    """The row's text in runs of equal loss."""
    runs: list[tuple[list[int], int]] = []
    for token, learnt in zip(example.completion_ids, example.mask or [1] * len(example.completion_ids), strict=True):
        if runs and runs[-1][1] == learnt:
            runs[-1][0].append(token)
        else:
            runs.append(([token], learnt))
    return [(text.tokenizer.decode(ids), learnt) for ids, learnt in runs]


OPTIONS: dict[str, Any] = {"reflection": "Wait.", "per_solution": 2, "seed": 0}
WHOLE = "7 + 5 = 12\n12 * 3 = 36\nThe answer is 36.<eos>"


def test_a_wrong_step_bears_no_loss_and_all_else_does(text: chat.Tokenizer) -> None:
    group = attempts(found(text), "correct", "wrong", "wrong")
    rows = {e.metadata.get("step"): shown(text, e) for e in corrected([group], text=text, **OPTIONS)}
    assert rows == {
        None: [(WHOLE, 1)],
        0: [("7 + 5 = 13\n", 0), (f"Wait.\n{WHOLE}", 1)],
        2: [("7 + 5 = 12\n12 * 3 = 36\n", 1), ("The answer is 35.\n", 0), ("Wait.\nThe answer is 36.<eos>", 1)],
    }
    unmasked = list(corrected([group], text=text, rows="unmasked", **OPTIONS))
    assert all(learnt for e in unmasked for _, learnt in shown(text, e))
    assert sorted(e.completion_ids for e in unmasked) == sorted(
        e.completion_ids for e in corrected([group], text=text, **OPTIONS)
    )
    assert [shown(text, e) for e in corrected([group], text=text, rows="plain", **OPTIONS)] == [[(WHOLE, 1)]] * 3
    assert [shown(text, e) for e in plain([group])] == [[(WHOLE, 1)]]


def test_a_step_that_reaches_the_answer_or_was_cut_off_is_not_wrong(text: chat.Tokenizer) -> None:
    group = attempts(found(text), "correct", "correct", "unparseable")
    assert [e.metadata.get("step") for e in corrected([group], text=text, **OPTIONS)] == [None, 2]
    group[2].trajectory.samples[0].finish = "length"
    assert len(list(corrected([group], text=text, **OPTIONS))) == 1
    assert (
        len(list(corrected([attempts(found(text), *["wrong"] * 3)], text=text, **OPTIONS | {"per_solution": 1}))) == 2
    )


def test_worked_solutions_of_each_kind() -> None:
    own = Problem("p", "", metadata={"solution": "Tim has 2*3=<<2*3=6>>6.\n\nSo 6.\n#### 6"})
    assert steps_of(own) == ["Tim has 2*3=6.", "So 6.", "The answer is 6."]
    assert steps_of(PROBLEM)[0] == "7 + 5 = 12"
    with pytest.raises(ValueError, match="no worked solution"):
        steps_of(Problem("p", ""))


def test_each_round_is_a_fold_and_the_last_one_learns() -> None:
    passes = plan(compose(["method=s3c_math", "rounds=3"]))
    assert [p.label for p in passes] == [
        *("000.0_author", "000.1_err", "001.0_author", "001.1_err"),
        *("002.0_author", "002.1_err", "002.2_learn"),
    ]
    problems = [Problem(f"p{i}", "") for i in range(7)]
    for number in range(3):
        step = Pass(number, number)
        held = fold(problems, step=step, folds=3, held=True, by="round")
        assert [p.id for p in held] == [f"p{i}" for i in range(number, 7, 3)]
        assert not {p.id for p in held} & {p.id for p in fold(problems, step=step, folds=3, by="round")}


SIZES = ["method=s3c_math", "rounds=2", "dataset.levels=[2,5]", "dataset.train_size=8", "dataset.heldout_size=4",
         "tracker=none", "verify.workers=1", "method.train.epochs=1"]  # fmt: skip


def test_a_small_run_learns_from_the_rows_of_all_folds(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    folds = [list(store.read_records(tmp_path / f"rounds/00{k}.1_err/examples.parquet", Example)) for k in (0, 1)]
    learnt = list(store.read_records(tmp_path / "rounds/001.2_learn/examples.parquet", Example))
    assert [e.completion_ids for e in learnt] == [e.completion_ids for rows in folds for e in rows]
    assert any(0 in (e.mask or []) for e in learnt)
    for k in (0, 1):
        taught = store.read_records(tmp_path / f"rounds/00{k}.0_author/examples.parquet", Example)
        assert not {e.problem_id for e in taught} & {e.problem_id for e in folds[k]}
    assert not (tmp_path / "rounds/000.1_err/policy").exists()
    assert "learn.train/loss" in json.loads((tmp_path / "rounds/001.2_learn/metrics.json").read_text())


@pytest.mark.parametrize(
    "control",
    [["method.stages.err.filter.rows=unmasked"], ["method.stages.err.filter.rows=plain"], ["dataset=gsm8k"]],
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=s3c_math", *control]).method.name == "s3c_math"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.stages.err.filter.rows=none", "method.stages.err.filter.rows=none"),
        ("dataset=asdiv", "needs solution"),
        ("dataset.form=choice", "needs solution"),
        ("method.stages.learn.when=never", "method.stages.learn.when"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=s3c_math", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_inside_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    drive(tmp_path, " ".join(SIZES), ["manifest:0/train", "manifest:3/generate"])
