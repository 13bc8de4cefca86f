"""Whole runs whose training verifier judges groups."""

import asyncio
import json

import pytest

from selfimprove import store
from selfimprove.types import Problem, Trajectory, Verdict
from selfimprove.verify import arithmetic
from selfimprove.verify.consensus import consensus
from tests.conftest import run_here

VERIFIERS = ["consensus", "steps", "judge_arithmetic"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run folder of each verifier."""
    folder = tmp_path_factory.mktemp("runs")
    sizes = ["rounds=1", "seed=3", "dataset.train_size=16", "dataset.heldout_size=8", "dataset.levels=[3,6]"]
    for name in VERIFIERS:
        run_here(folder / name, *sizes, f"verifier={name}")
    return {name: folder / name for name in VERIFIERS}


def read(run):
    """Problems by id, the round's trajectories in groups, and the verdicts in the same order."""
    problems = {p.id: p for p in store.read_records(run / "problems.parquet", Problem)}
    groups = {}
    for trajectory in store.read_records(run / "rounds/000/trajectories.parquet", Trajectory):
        groups.setdefault(trajectory.problem_id, []).append(trajectory)
    verdicts = list(store.read_records(run / "rounds/000/verdicts.parquet", Verdict))
    assert [v.trajectory_id for v in verdicts] == [t.id for group in groups.values() for t in group]
    assert json.loads((run / "summary.json").read_text())["status"] == "complete"
    return problems, groups, verdicts


def test_consensus_trains_on_agreement_and_not_on_gold(runs):
    problems, groups, verdicts = read(runs["consensus"])
    expected = []
    for name, group in groups.items():
        without_gold = Problem(name, problems[name].prompt)
        options = {"threshold": 0.5, "reward": "majority", "ties": "first"}
        expected += asyncio.run(consensus(without_gold, group, None, **options))
    assert [(v.status, v.extracted) for v in verdicts] == [(o.status, o.extracted) for o in expected]
    kept = [v for v in verdicts if v.status == "correct"]
    by_gold = [v.extracted == problems[v.trajectory_id.split("/")[1]].gold for v in kept]
    assert any(by_gold)
    assert not all(by_gold)  # the majority is wrong at times, and is trained on all the same


def test_steps_are_the_data_sets_own(runs):
    problems, groups, verdicts = read(runs["steps"])
    seen = 0
    texts = [(t.text, problems[name]) for name, group in groups.items() for t in group]
    for verdict, (text, problem) in zip(verdicts, texts, strict=True):
        rewards = arithmetic.check(text, problem.gold, problem.metadata).step_rewards
        assert verdict.step_rewards == rewards
        if verdict.status != "unparseable":
            seen += 1
            assert verdict.reward == min(rewards)
    assert seen > 40


def test_the_policy_judges_itself_and_its_tokens_are_counted(runs):
    problems, groups, verdicts = read(runs["judge_arithmetic"])
    assert all(0 <= v.reward <= 1 for v in verdicts)
    assert len({v.reward for v in verdicts}) > 10
    texts = [(t.text, problems[name]) for name, group in groups.items() for t in group]
    right = [arithmetic.check(text, p.gold, p.metadata).status == "correct" for text, p in texts]
    agree = sum((v.status == "correct") == r for v, r in zip(verdicts, right, strict=True))
    assert agree > 0.75 * len(verdicts)
    manifest = json.loads((runs["judge_arithmetic"] / "rounds/000/verify.manifest.json").read_text())
    assert manifest["metrics"]["calls"] == 2 * len(verdicts)


def test_steps_without_a_source_of_scores_are_refused_before_the_run(cli, tmp_path):
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("run", "dataset=jsonl", "dataset.path=rows.jsonl", "verifier=steps", "tracker=none", check=2)
    assert "set verifier.model to a process reward model" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_with_sleep_a_judge_of_its_own_and_the_sampler_are_never_awake_together(monkeypatch, tmp_path):
    from selfimprove.policy.hf import TransformersEngine

    engines = []
    start, answer = TransformersEngine.__init__, TransformersEngine._answer

    def awake():
        return [engine for engine in engines if engine.model is not None and not engine._asleep]

    def opened(self, *arguments, **options):
        assert not awake()
        start(self, *arguments, **options)
        engines.append(self)

    async def answered(self, future):
        assert not [engine for engine in awake() if engine is not self]
        return await answer(self, future)

    monkeypatch.setattr(TransformersEngine, "__init__", opened)
    monkeypatch.setattr(TransformersEngine, "_answer", answered)
    sizes = ["rounds=1", "dataset.train_size=8", "dataset.heldout_size=4", "method.train.epochs=1"]
    run_here(tmp_path / "run", *sizes, "verifier=judge_arithmetic", "verifier.model=base", "hardware.sleep=true")
    assert len(engines) == 2
    assert awake() == []
