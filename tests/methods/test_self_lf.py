"""SELF: what teacher and policy say to an answer, which rows are made of it, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfimprove import run, store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.generate.critique import Critique
from selfimprove.made import Made
from selfimprove.methods import self_lf as method
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, NO, VERIFY, YES, ScriptedEngine
from selfimprove.ready import require_verifiers
from selfimprove.types import Attempt, Example, Message, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Context, Outcome
from tests.forks import drive

SHOWN: list[Message] = [{"role": "user", "content": "{question}"}, {"role": "assistant", "content": "{solution}"}]
CRITIQUE = Critique(
    [*SHOWN, {"role": "user", "content": VERIFY}],
    [*SHOWN, {"role": "user", "content": "{review}"}],
    YES,
    NO,
)
PROBLEM = Problem("p", "Question?", "7")


def scripted(count: int = 1, **rates: Any) -> tuple[list[Problem], Policy]:
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(count)]
    return problems, Policy(ScriptedEngine({str(p.prompt): "7" for p in problems}, **rates), 0, max_tokens=64)


async def teach(chat: list[Message], *, temperature: float, max_tokens: int | None, seed: int) -> str:
    if chat[-1]["content"] == VERIFY:
        return YES if chat[1]["content"] == f"{ANSWER}7" else NO
    return f"{ANSWER}7"


@pytest.mark.parametrize(("p_correct", "said", "refined"), [(1.0, YES, False), (0.0, NO, True)])
def test_the_teacher_says_what_is_wrong_and_refines_only_that(p_correct: float, said: str, refined: bool) -> None:
    problems, policy = scripted(p_correct=p_correct)
    options: dict[str, Any] = {"critique": CRITIQUE, "temperature": 1.0, "roles": {}, "seed": 0}
    (found,) = asyncio.run(method.taught(problems[0], policy, tools={"teacher": teach}, **options))
    r, f, better = found.samples
    assert (f.text, f.role, r.role) == (said, "teacher", "policy")
    assert better.text == f"{ANSWER}7"
    assert found.metadata == {"accepted": True, "refined": refined}
    assert "".join(map(chr, f.prompt_ids)).endswith(VERIFY)
    assert better.completion_ids == [*map(ord, better.text), policy.engine.end]
    assert (better is r) != refined


def test_refined_accuracy_and_precision_are_those_of_the_rates() -> None:
    """P(r^ right) = p tpr + p (1 - tpr) (1 - spoil) + (1 - p) (1 - fpr) mend; and what own_word then accepts."""
    p, tpr, fpr, mend, spoil, n = 0.5, 0.9, 0.3, 0.6, 0.2, 2000
    problems, policy = scripted(n, p_correct=p, tpr=tpr, fpr=fpr, p_improve=mend, p_degrade=spoil)

    async def everything() -> list[tuple[Trajectory, Outcome]]:
        async def one(problem: Problem) -> tuple[Trajectory, Outcome]:
            own = policy.for_problem(problem)
            (found,) = await method.refined(problem, own, critique=CRITIQUE, temperature=1.0)
            (outcome,) = await method.own_word(problem, [found], Context(own, None, None), critique=CRITIQUE)  # type: ignore[arg-type]
            return found, outcome

        return list(await asyncio.gather(*map(one, problems)))

    found = asyncio.run(everything())
    right = np.array([t.text == f"{ANSWER}7" for t, _ in found])
    accepted = np.array([o.status == "correct" for _, o in found])
    kept, mended, spoilt = p * tpr, (1 - p) * (1 - fpr) * mend, p * (1 - tpr) * (1 - spoil)
    all_right = kept + spoilt + mended
    true = kept + (spoilt + mended) * tpr
    false = (1 - p) * fpr + (1 - all_right - (1 - p) * fpr) * fpr
    for seen, expected in (
        (right.mean(), all_right),
        (accepted.mean(), true + false),
        (right[accepted].mean(), true / (true + false)),
    ):
        assert abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / (n / 2))
    assert all(o.reward == (o.status == "correct") for _, o in found)
    assert all((t.samples[0] is t.samples[2]) == t.metadata["accepted"] for t, _ in found)


def test_feedback_without_a_verdict_is_no_acceptance() -> None:
    problems, policy = scripted(p_correct=0.0)
    mute = Critique(CRITIQUE.verify, CRITIQUE.refine, "Right", "Wrong")
    (found,) = asyncio.run(method.refined(problems[0], policy, critique=mute, temperature=1.0))
    context: Any = Context(policy, None, None)  # type: ignore[arg-type]
    (outcome,) = asyncio.run(method.own_word(problems[0], [found], context, critique=mute))
    assert (found.metadata["accepted"], outcome.status, outcome.reward) == (False, "unparseable", 0.0)


def attempt(name: str, *samples: tuple[int, Any], refined: bool = True, status: Any = "correct") -> Attempt:
    """An attempt whose samples have their number as completion, behind a prompt of their own."""
    made = [Sample([1, 100 + i], [i], [0.0], str(i), finish, 0) for i, finish in samples]
    trajectory = Trajectory("p", made, {"accepted": True, "refined": refined}, id=name)
    return Attempt(PROBLEM, trajectory, Verdict(name, status, 1.0))


def rows(examples: Any) -> list[tuple[list[int], list[int], float]]:
    return [(e.prompt_ids, e.completion_ids, e.weight) for e in examples]


def test_the_rows_of_the_meta_stage_are_its_three_terms() -> None:
    whole = attempt("t", (1, "stop"), (2, "stop"), (3, "stop"))
    f, refine, direct = ([1, 102], [2], 1.0), ([1, 103], [3], 1.0), ([1, 101], [3], 0.5)
    assert rows(method.meta_rows([[whole]], beta=0.5)) == [f, refine, direct]
    assert rows(method.meta_rows([[whole]], beta=0)) == [f, refine]
    right = attempt("t", (1, "stop"), (2, "stop"), (1, "stop"), refined=False)
    assert rows(method.meta_rows([[right]], beta=0.5)) == [f, ([1, 101], [1], 0.5)]
    cut = attempt("t", (1, "length"), (2, "length"), (3, "stop"))
    assert rows(method.meta_rows([[cut]], beta=0.5)) == [refine, direct]


def made(tmp_path: Path, count: int) -> Made:
    examples = [Example("m", [f"m{i}"], [9], [9, i]) for i in range(count)]
    store.write_records(tmp_path / "examples.parquet", examples, Example)
    found = Made()
    found.add("meta", tmp_path, {"examples.parquet": "hash"})
    return found


def test_the_filter_keeps_what_is_accepted_and_mixes_in_meta_rows(tmp_path: Path) -> None:
    groups = [
        [attempt(f"t{i}", (1, "stop"), (2, "stop"), (10 + i, "stop"), status="correct" if i % 3 else "wrong")]
        for i in range(12)
    ]
    groups.append([attempt("cut", (1, "stop"), (2, "stop"), (99, "length"))])
    options: dict[str, Any] = {"mix": 0.2, "made": made(tmp_path, 30), "seed": 0}
    found = list(method.self_rows(groups, **options))
    assert rows(found[:8]) == [([1, 101], [10 + i], 1.0) for i in range(12) if i % 3]
    assert len(found) == 10, "8 accepted rows and a fifth of all from the meta stage"
    assert all(e.completion_ids[0] == 9 for e in found[8:])
    assert [len(list(method.self_rows(groups, keep=k, **options | {"mix": 0.0}))) for k in ("all", "random")] == [12, 8]
    few = list(method.self_rows(groups, **options | {"made": made(tmp_path, 1)}))
    assert len(few) == 9
    refused = [[attempt("t", (1, "stop"), (2, "stop"), (3, "stop"), status="wrong")]]
    assert list(method.self_rows(refused, **options)) == []


SIZES = ["method=self_lf", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=10", "dataset.heldout_size=5",
         "tracker=none", "verify.workers=1", "method.train.epochs=1"]  # fmt: skip


def test_a_small_run_has_figures_of_both_answers_and_of_its_verdicts(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    figures = json.loads((tmp_path / "rounds/000.1_evolve/metrics.json").read_text())
    assert {"evaluate/accuracy@t1", "evaluate/accuracy@t2", "evolve.verify/gold/right"} <= figures.keys()
    assert figures["meta.verify/gold/precision"] == 1.0, "the teacher knows all answers"
    meta = list(store.read_records(tmp_path / "rounds/000.0_meta/examples.parquet", Example))
    own = list(store.read_records(tmp_path / "rounds/000.1_evolve/examples.parquet", Example))
    assert {e.metadata["row"] for e in meta} >= {"feedback", "direct"}
    assert {e.metadata["row"] for e in own} >= {"self"}
    taught, evolved = ({e.problem_id for e in found if e.metadata["row"] != "feedback"} for found in (meta, own[:1]))
    assert not taught & evolved


def test_prompts_of_its_own_are_learnt_from_without_gold_answers(tmp_path: Path) -> None:
    ask = ["method.stages.ask.problems.count=4", "method.stages.ask.make.words=[1,100]", "rounds=2"]
    ask += ["method.stages.ask.problems.ask='{first}'", "method.stages.ask.verifier.ngram=50"]
    run.start(compose([*SIZES, "method=self_lf_instruct", *ask]), tmp_path)
    found = list(store.read_records(tmp_path / "rounds/001.1_evolve/trajectories.parquet", Trajectory))
    assert found
    assert all(t.problem_id.startswith("r0.ask/") for t in found)
    figures = json.loads((tmp_path / "rounds/001.2_ask/metrics.json").read_text())
    assert "evolve.verify/gold/right" not in figures, "no gold answer is known"


@pytest.mark.parametrize(
    "control",
    [
        ["method.filter.keep=all"],
        ["method.filter.keep=random"],
        ["method.filter.mix=0"],
        ["method.stages.meta.filter.beta=0"],
        ["~method.stages.evolve", "rounds=1"],
        ["method.answer=null"],
        ["~method.tools.teacher", "+method.roles.teacher={}", "dataset=asdiv"],
        ["teacher@method.tools.teacher=server", "method.tools.teacher.url=http://localhost:1/v1",
         "method.tools.teacher.model=m", "dataset=asdiv"],
    ],
)  # fmt: skip
def test_controls_and_teachers_are_overrides(control: list[str]) -> None:
    assert compose(["method=self_lf", *control]).method.name == "self_lf"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["method.filter.mix=1"], "method.filter.mix=1"),
        (["method.filter.keep=best"], "method.filter.keep=best"),
        (["dataset=asdiv"], "method.tools.teacher=selfimprove.generate.tutor.arithmetic needs steps, solution"),
        (["~method.tools.teacher"], "method=self_lf needs a teacher"),
        (["method.stages.meta.problems.between=[0,2]"], "method.stages.meta.problems.between"),
        (["teacher@method.tools.teacher=server"], "method.tools.teacher.url: needs a value"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=self_lf", *wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_without_its_key_is_refused_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ["teacher@method.tools.teacher=server", "method.tools.teacher.url=http://x/v1"]
    config = compose(["method=self_lf", *server, "method.tools.teacher.model=m"])
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        require_verifiers(config)
    assert bind(config.method.tools["teacher"], "method.tools.teacher")


@pytest.mark.slow
def test_a_run_killed_inside_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(SIZES)
    drive(tmp_path, small, ["manifest:0/generate", "manifest:1/verify", "train:2"])
