"""Auto-Evolve: reading plans, how often the model is asked, which plan is kept, and that a run keeps to one plan."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from selfimprove import run, store
from selfimprove.methods.auto_evolve import applied, parse
from selfimprove.studies import Lab
from selfimprove.studies.auto_evolve import answer, evolve, scripted, stated
from selfimprove.studies.made.planner import (
    MODULES,
    STAGE1,
    TASKS,
    Planner,
    careful,
    checked,
    document,
    hasty,
    level_of,
    mixture,
    questions,
    structure,
)
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem, Trajectory
from tests.conftest import TRAIN, run_here


@pytest.mark.parametrize(
    ("text", "plan", "reading"),
    [
        ('{"a": "b"}', '{"a": "b"}', "valid"),
        ('Here it is:\n```json\n{"a": {"b": [1, 2]}}\n```\nGood luck.', '{"a": {"b": [1, 2]}}', "valid"),
        ('{"a": "b"}\nOr better:\n{"a": "c"}', '{"a": "b"}', "valid"),
        ("{" * 3000, None, "rejected"),
        ('{"a": "b"', '{"a": "b"}', "repaired"),
        ("{'a': 'b', 'c': 'd',}", '{"a": "b", "c": "d"}', "repaired"),
        ('{"a": "b', '{"a": "b"}', "repaired"),
        ('{"é": "ü"}', '{"é": "ü"}', "valid"),
        ("1. Think. 2. Answer.", None, "rejected"),
        ('["a", "b"]', None, "rejected"),
        ("{}", None, "rejected"),
        ('{"to be filled in": ""}', '{"to be filled in": ""}', "valid"),
        ("The answer is 5 }", None, "rejected"),
        ("", None, "rejected"),
    ],
)
def test_reading_a_plan(text, plan, reading):
    assert parse(text) == (plan, reading)


def test_a_plan_stands_in_the_last_message():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is {structure}?"}]
    found = applied(Problem("p", chat), "{question}\n{structure}", '{"a": "{question}"}')
    assert found == [chat[0], {"role": "user", "content": 'What is {structure}?\n{"a": "{question}"}'}]
    assert applied(Problem("p", "Q?"), "{structure} {question}", "{}") == "{} Q?"
    assert applied(Problem("p", chat), "{question}\n{structure}", None) is chat


def test_each_task_has_its_own_plan_which_all_its_problems_follow():
    problems = questions(40)
    plans, policy = evolve(Planner(problems, p_up=0.5), problems, stated)
    assert set(plans) == set(TASKS)
    assert policy.meter.calls == 4 * (2 + STAGE1["refinements"])
    assert len({plan["structure"] for plan in plans.values()}) > 1
    for group in answer(Planner(problems, p_up=0.5), problems, plans, stated):
        (attempt,) = group
        prompt = "".join(map(chr, attempt.trajectory.samples[0].prompt_ids))
        task = attempt.problem.metadata["task"]
        assert prompt == f"{plans[task]['structure']}\n{attempt.problem.prompt}"
        assert attempt.trajectory.metadata == {"task": task, "planned": True}


def test_a_plan_is_made_of_problems_without_their_answers():
    problems = questions(8)
    seen: list[str] = []

    class Listening(Planner):
        def outcomes(self, prompt):
            seen.append(prompt)
            return super().outcomes(prompt)

    evolve(Listening(problems, 0.5), problems, stated)
    assert len(seen) == 20
    assert all(sum(str(p.prompt) in prompt for p in problems) == STAGE1["examples"] for prompt in seen)
    assert not any(str(p.gold) in prompt.replace(str(p.prompt), "") for prompt in seen for p in problems[2:])


def test_without_a_readable_plan_the_bare_problem_is_asked():
    problems = questions(4)
    engine = Planner(problems, p_up=0.5, valid=0.0)
    plans, _ = evolve(engine, problems, stated)
    assert {plan["structure"] for plan in plans.values()} == {None}
    (attempt,) = answer(engine, problems, plans, stated)[0]
    assert "".join(map(chr, attempt.trajectory.samples[0].prompt_ids)) == problems[0].prompt
    assert attempt.trajectory.metadata["planned"] is False


def test_with_dev_problems_no_plan_is_kept_that_solves_fewer_of_them():
    problems, dev = questions(4), questions(400, "dev")
    plans, _ = evolve(Planner([*problems, *dev], p_up=0.0), problems, stated, dev)
    for plan in plans.values():
        assert level_of(plan["structure"]) == 3, "every refinement was worse"
        assert plan["dev"][0] > max(plan["dev"][1:])
        assert plan["calls"] == 5
    plans, _ = evolve(Planner(problems, p_up=0.0), problems, stated)
    assert {level_of(plan["structure"]) for plan in plans.values()} == {0}


def test_what_the_study_says_of_the_scripted_planner(tmp_path):
    for claim in scripted(Lab(True, tmp_path)):
        assert claim.holds, claim


def test_the_tiny_tasks_are_right_where_careful_and_their_documents_are_of_the_train_side():
    rng = random.Random(0)
    problems = mixture("test", 10)
    assert [p.metadata["task"] for p in problems[:4]] == list(TASKS)
    assert all(checked(careful(p), p).status == "correct" for p in problems)
    guesses = [checked(hasty(p, rng), p).status == "correct" for p in problems]
    assert sum(guesses) < len(guesses) / 2
    heldout = {p.metadata["question"] for p in problems}
    asked = [document(rng) for _ in range(300)]
    assert not any(question in str(prompt) for prompt, _ in asked for question in heldout)
    assert {structure(m) for m in MODULES.values()} <= {learnt for _, learnt in asked}


SHORT = {
    "prompt_generate": '"{problems} Modules?"',
    "prompt_implement": '"{modules} Plan?"',
    "prompt_refine": '"{structure} Better?"',
    "apply": '"{structure} {question}"',
    "examples": 1,
    "refinements": 1,
    "retries": 0,
    "plan_tokens": 8,
}


def test_a_resumed_run_keeps_to_the_plan_that_it_began_with(tmp_path):
    path = tmp_path / "run"
    options = [f"generate.{key}={value}" for key, value in SHORT.items()]
    run_here(path, "generate=auto_evolve", "rounds=1", "dataset.levels=[2]", *options)
    folder = path / "rounds" / "000"
    kept = store.read_json(folder / "prepared.json")
    assert kept["asked"]["calls"] == kept["prepared"][""]["calls"] == 3
    manifest = store.read_json(folder / "generate.manifest.json")
    assert "prepared.json" in manifest["outputs"]
    assert manifest["metrics"]["calls"] == TRAIN + 3
    sampled = sum(t.sampled_tokens for t in store.read_records(folder / "trajectories.parquet", Trajectory))
    assert manifest["metrics"]["tokens/sampled"] == sampled + kept["asked"]["sampled"]

    plan = json.dumps({"step": "kept"})
    kept["prepared"][""]["structure"] = plan
    store.write_json(folder / "prepared.json", kept)
    for name in ("trajectories.parts", "policy"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for file in folder.glob("*.manifest.json"):
        file.unlink()
    summary = store.read_json(path / "summary.json")
    store.write_json(path / "summary.json", summary | {"status": "stopped"})
    run.resume(path)
    engine = shipped()
    for trajectory in store.read_records(folder / "trajectories.parquet", Trajectory):
        assert plan in engine.tokenizer.decode(trajectory.samples[0].prompt_ids)
