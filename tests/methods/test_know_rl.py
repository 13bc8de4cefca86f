"""KnowRL: the seeds and requests, which tasks are new, what a consensus is worth, the guards, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from selfimprove import run, store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods import know_rl as method
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.scores import Scores
from selfimprove.types import Attempt, Example, Memory, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Context
from tests.forks import drive

LABELS = ["feasible", "infeasible"]
ASK = "{tasks}\nAnother {label} one."
CONTEXT = Context(Policy(ScriptedEngine({}), 0), None, None)  # type: ignore[arg-type]


VERIFIER = bind(compose(["method=know_rl"]).method.verifier, "verifier")  # type: ignore[arg-type]


class Sure(ScriptedEngine):
    """An engine that finds every token sure."""

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        return [0.0] * len(completion_ids)


def seed_task(name: str, label: str) -> Problem:
    return Problem(name, f"{name}?", label, metadata={"question": name, "options": LABELS})


SEEDS = [seed_task("a", "feasible"), seed_task("b", "feasible"), seed_task("c", "B"), seed_task("d", "infeasible")]


def sample(text: str, finish: Any = "stop") -> Sample:
    return Sample([1], [2], [-0.5], text, finish, 0)


def attempts(problem: Problem, texts: list[str], finish: Any = "stop") -> list[Attempt]:
    found = [Trajectory(problem.id, [sample(t, finish)], id=f"{problem.id}/{i}") for i, t in enumerate(texts)]
    return [Attempt(problem, t, Verdict(t.id, "wrong", 0.0)) for t in found]


def assessed(name: str, feasible: int, of: int = 8) -> list[Attempt]:
    """A task with so many assessments that say feasible, as the method's verifier judges them."""
    problem = Problem(name, name, metadata={"question": name, "options": LABELS, "origin": f"from-{name}"})
    texts = ["feasible"] * feasible + ["infeasible"] * (of - feasible)
    found = [Trajectory(name, [sample(t)], id=f"{name}/{i}") for i, t in enumerate(texts)]
    outcomes = asyncio.run(VERIFIER(problem, found, CONTEXT))
    return [
        Attempt(problem, t, Verdict(t.id, o.status, o.reward, o.extracted))
        for t, o in zip(found, outcomes, strict=True)
    ]


def test_an_assessment_is_rewarded_for_saying_what_most_say() -> None:
    group = assessed("x", 6)
    assert [a.verdict.reward for a in group] == [1.0] * 6 + [0.0] * 2
    assert method.agreement(group) == ("feasible", 0.75)
    assert method.agreement(assessed("y", 1)) == ("infeasible", 0.875)
    assert method.agreement(attempts(SEEDS[0], ["?", "!"])) == (None, 0.0)


def test_guards_drop_tasks_without_agreement_and_balance_labels() -> None:
    groups = [assessed("f1", 8), assessed("f2", 7), assessed("f3", 6), assessed("i1", 2), assessed("half", 4)]
    options: dict[str, Any] = {"seed": 0, "baseline": "leave_one_out", "scale": "none"}
    rows = list(method.agreed(groups, share=0.6, balance=True, **options))
    kept = {row.problem_id for row in rows}
    assert "i1" in kept
    assert len(kept) == 2
    assert "half" not in kept
    bare = list(method.agreed(groups, share=0.0, balance=False, **options))
    assert {row.problem_id for row in bare} == {"f1", "f2", "f3", "i1", "half"}
    of_i1 = [row.advantages for row in rows if row.problem_id == "i1"]
    assert of_i1 == [[pytest.approx(-6 / 7)]] * 2 + [[pytest.approx(2 / 7)]] * 6  # 0 - 6/7 and 1 - 5/7
    assert not list(method.agreed(groups[:2], share=0.6, balance=True, **options)), "a label has no task"


def test_requests_show_tasks_of_their_label_also_those_of_earlier_rounds() -> None:
    memory = [
        Memory("k", "e", metadata={"label": "infeasible", "share": 1.0}),
        Memory("l", "f", metadata={"label": "infeasible", "share": 0.7}),
    ]
    found = method.introspections(SEEDS, ask=ASK, count=40, shots=2, share=0.8, memory=memory, seed=0)
    assert [p.metadata["wanted"] for p in found[:3]] == ["feasible", "infeasible", "feasible"]
    shown = {
        label: {t for p in found if p.metadata["wanted"] == label for t in p.metadata["shown"]} for label in LABELS
    }
    assert shown == {"feasible": {"a", "b"}, "infeasible": {"c", "d", "e"}}
    assert found[0].prompt in ("a\nb\nAnother feasible one.", "b\na\nAnother feasible one.")
    with pytest.raises(ConfigError, match="there are 2 feasible tasks, and 3 are shown"):
        method.introspections(SEEDS, ask=ASK, count=2, shots=3, share=0.8, memory=memory, seed=0)


def test_only_new_and_whole_tasks_are_assessed() -> None:
    ask = method.request("ask-0", ASK, "feasible", ["Take 3 and add 4 to it now."])
    texts = ["Take 3 and add 4 to it now.", "Take 3 and add 9 to it now.", " Sing. ", "Sing.", ""]
    memory = [Memory("k", "Old one.", metadata={})]
    groups = [attempts(ask, [*texts, "Old one."]), attempts(ask, ["Cut"], "length")]
    options: dict[str, Any] = {"assess": "{question} Can you? {options}", "labels": LABELS, "memory": memory}
    found = list(method.tasks(groups, alike=0.8, **options))
    assert [p.metadata["question"] for p in found] == ["Take 3 and add 9 to it now.", "Sing."]
    assert found[1].prompt == [{"role": "user", "content": "Sing. Can you? A) feasible\nB) infeasible"}]
    assert (found[1].metadata["origin"], found[1].metadata["wanted"]) == ("ask-0/2", "feasible")
    assert len(list(method.tasks(groups, alike=None, **options))) == 5


def test_a_proposal_is_worth_its_share_where_its_label_is_the_one_asked_for() -> None:
    memory = list(method.assessed([assessed("x", 6), assessed("y", 1)], memory=[Memory("old", "o")]))
    assert [(m.key, m.metadata.get("label"), m.metadata.get("share")) for m in memory] == [
        ("old", None, None), ("from-x", "feasible", 0.75), ("from-y", "infeasible", 0.875)]  # fmt: skip
    ask = method.request("ask-0", ASK, "feasible", ["a"])
    proposals = [Trajectory("ask-0", [sample("")], id=name) for name in ("from-x", "from-y", "from-z")]
    found = asyncio.run(method.wanted(ask, proposals, CONTEXT, memory=memory))
    assert [(o.status, o.reward) for o in found] == [("correct", 0.75), ("wrong", 0.0), ("unparseable", 0.0)]


def test_lessons_teach_both_words_and_keep_the_policys_own_answers() -> None:
    found = method.lessons(SEEDS, ask=ASK, shots=2, seed=0)
    assert [p.metadata.get("reply") for p in found[:3]] == ["A", "a", None]
    assert found[1].prompt == "b\nAnother feasible one."
    assert found[2].prompt == "a"
    assert found[6].metadata["reply"] == "B"  # of a gold letter
    (trajectory,) = asyncio.run(method.recite(found[0], Policy(Sure({}), 0), n=2))
    assert trajectory.samples[0].text == "A"
    assert len(trajectory.samples[0].logprobs) == len(trajectory.samples[0].completion_ids)


def test_f1_is_of_the_first_label() -> None:
    scores = Scores(["1", "2", "3", "4", "5"], [1, 0, 1, 0, 0], ["A", "A", "B", "B", None], [None] * 5)
    assert method.figures([scores]) == {"f1": 0.5, "said": 0.5, "answered": 0.8}  # 1 hit, said 2, true 2
    assert method.f1(0, 0, 0) == 0


SIZES = ["method=know_rl", "dataset.train_size=24", "dataset.heldout_size=8", "method.stages.words.train.epochs=2",
         "method.stages.words.generate.n=1", "method.stages.ask.problems.count=4", "method.stages.ask.generate.n=2",
         "method.stages.assess.filter.balance=false", "method.stages.assess.filter.share=0",
         "model.max_tokens=40"]  # fmt: skip


def test_a_small_run_makes_tasks_assesses_them_and_learns_from_both(tmp_path: Path) -> None:
    run.start(compose([*SIZES, "rounds=1", "tracker=none", "verify.workers=1"]), tmp_path)
    made = list(store.read_records(tmp_path / "rounds/000.1_ask/made.parquet", Problem))
    assert made
    assert all(p.gold is None for p in made)
    memories = list(store.read_records(tmp_path / "rounds/000.2_assess/memory.parquet", Memory))
    assert {m.key for m in memories} == {p.metadata["origin"] for p in made}
    for stage, count in (("2_assess", 8 * len(made)), ("3_propose", 8)):
        rows = list(store.read_records(tmp_path / f"rounds/000.{stage}/examples.parquet", Example))
        assert len(rows) <= count
        assert all(len(r.advantages or []) == len(r.completion_ids) for r in rows)
    evaluation = json.loads((tmp_path / "rounds/000.3_propose/metrics.json").read_text())
    assert {"evaluate/f1", "evaluate/said", "evaluate/answered"} <= evaluation.keys()


@pytest.mark.parametrize(
    "control",
    [
        ["method.stages.assess.filter.share=0", "method.stages.assess.filter.balance=false",
         "method.stages.ask.make.alike=null"],
        ["~method.stages.propose"],
        ["~method.stages.words"],
    ],
    ids=str,
)  # fmt: skip
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=know_rl", *control]).method.name == "know_rl"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.generate.temperature=0.5", "set it to 1"),
        ("method.stages.ask.make.alike=2", "method.stages.ask.make.alike=2"),
        ("dataset=arithmetic", "needs options"),
        ("dataset.path=/nowhere.jsonl", "dataset.path"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run.start(compose(["method=know_rl", wrong]), tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    points = ["manifest:1/make", "manifest:2/remember", "manifest:2/train"]
    drive(tmp_path, " ".join([*SIZES, "rounds=2", "hardware.max_batch=1"]), points)
