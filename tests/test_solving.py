"""`selfimprove eval method=NAME` end to end: what is chosen, what it is compared with, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from selfimprove import solving, store
from selfimprove.cli import _main
from selfimprove.config import compose, reads_gold
from selfimprove.errors import ConfigError
from selfimprove.filter.distinct import answered, distinct
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.conftest import TRAIN, run_here

SCRIPTED = [
    "engine=scripted",
    "engine.p_correct=0.3",
    "engine.p_improve=0.4",
    "engine.p_degrade=0.05",
    "engine.wrong_values=3",
    "dataset.train_size=0",
    "dataset.heldout_size=40",
    "verify.workers=1",
    "hardware.shard=8",
]
SOLVER = ["method=dser", "method.generate.chains=3", "method.generate.iterations=4"]
WORDS = ["critique@method.generate.critique=default", "model.max_length=10000"]


def test_a_solver_is_compared_with_plain_samples_of_as_many_tokens(cli, tmp_path):
    done = cli("eval", *SOLVER, *WORDS, *SCRIPTED, "--dir", "e", "--out", "figures.json")
    assert "dser minus this" in done.stdout
    assert "vote; reads no gold answer" in done.stdout
    assert done.stdout.isascii(), "no terminal: plain text, the chart too"
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {key: summary[key] for key in figures if key != "checksum"} == {
        k: v for k, v in figures.items() if k != "checksum"
    }
    assert (summary["kind"], summary["status"], summary["n"]) == ("eval", "complete", 40)
    assert [row["stage"] for row in summary["curve"]] == [0, 1, 2, 3, 4]
    assert summary["calls"] == 40 * 3 * (1 + 2 * 4)
    assert summary["curve"][-1]["tokens"] * 40 == pytest.approx(summary["tokens"]["sampled"])
    assert summary["curve"][-1]["accuracy"] == summary["accuracy"]
    assert summary["curve"][-1]["accuracy"] > summary["curve"][0]["accuracy"], "0.3 grows to 8/9 of the chains"

    baseline = summary["baseline"]
    plain = pq.read_table(tmp_path / "e" / "baseline" / "trajectories.parquet").to_pylist()
    spent: dict[str, list[int]] = {}
    for row in plain:
        spent.setdefault(row["problem_id"], []).append(len(row["samples"][0]["completion_ids"]))
    budget = summary["tokens"]["sampled"] / 40
    assert all(sum(lengths) >= budget > sum(lengths[:-1]) for lengths in spent.values())
    assert baseline["n"] == len(plain) / 40
    assert baseline["temperature"] == 0.6, "the solver's"
    assert baseline["pass"]["accuracy"] >= baseline["maj"]["accuracy"]
    assert baseline["maj"]["difference"] == pytest.approx(summary["accuracy"] - baseline["maj"]["accuracy"])
    assert baseline["maj"]["difference_low"] <= baseline["maj"]["difference"] <= baseline["maj"]["difference_high"]
    assert len(baseline["maj"]["curve"]) == 5
    again = cli("resume", "e")
    assert "nothing to do" in again.stderr
    assert again.stdout == done.stdout
    assert "already holds" in cli("eval", *SOLVER, *WORDS, *SCRIPTED, "--dir", "e", check=2).stderr


KILLED = """
import os, signal, sys
from selfimprove.policy.scripted import ScriptedEngine
from selfimprove.solving import evaluate_solver
from pathlib import Path
sample, left = ScriptedEngine.sample, [int(sys.argv[1])]
async def counted(self, request):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return await sample(self, request)
ScriptedEngine.sample = counted
evaluate_solver(None, sys.argv[3:], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("calls", [600, 1500])  # of the solver's 1080, and of the baseline's
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, calls):
    words = [*SOLVER, *WORDS, *SCRIPTED]
    whole = solving.evaluate_solver(None, words, tmp_path / "whole")
    folder = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(calls), str(folder), *words], cwd=tmp_path, env=os.environ, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert solving.is_evaluation(folder)
    assert store.read_json(folder / "summary.json")["status"] == "running"
    assert list(folder.glob("*/trajectories.parts/*.parquet")), "whole shards are kept"
    resumed = solving.resume(folder)
    for name in ("solver/trajectories", "solver/verdicts", "baseline/trajectories", "baseline/verdicts"):
        assert pq.read_table(folder / f"{name}.parquet").equals(pq.read_table(tmp_path / "whole" / f"{name}.parquet"))
    without = [{**s, "seconds": 0, "baseline": {**s["baseline"], "seconds": 0}} for s in (whole, resumed)]
    assert without[0] == without[1]
    assert len(store.read_json(folder / "environment.json")["resumed"]) == 1


def test_a_choice_by_rewards_says_what_they_read_and_has_best_of_n_beside_it(tmp_path):
    best = ["method.answer._target_=selfimprove.verify.answers.best", "~method.answer.window"]
    words = [*SOLVER, *WORDS, *SCRIPTED, *best, "method.generate.iterations=1"]
    summary = solving.evaluate_solver(None, words, tmp_path / "gold")
    assert summary["selection"] == "best; reads gold answers"
    assert summary["baseline"]["best"]["accuracy"] == summary["baseline"]["pass"]["accuracy"]
    summary = solving.evaluate_solver(None, [*words, "verifier=consensus"], tmp_path / "agreement")
    assert summary["selection"] == "best; reads no gold answer"
    assert summary["baseline"]["best"]["accuracy"] < summary["baseline"]["pass"]["accuracy"]
    grades = pq.read_table(tmp_path / "agreement" / "solver" / "grades.parquet")
    assert grades.num_rows == pq.read_table(tmp_path / "agreement" / "solver" / "verdicts.parquet").num_rows


def test_a_training_method_answers_with_its_first_candidate(tmp_path):
    words = [*SCRIPTED, "method=rejection_sampling", "generate.n=4", "generate=best_of_n"]
    summary = solving.evaluate_solver(None, words, tmp_path / "e")
    assert summary["selection"].startswith("first")
    assert summary["accuracy"] < 0.6
    assert len(summary["curve"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "dataset=asdiv"], "eval: of what? a run folder, a model, or method=NAME model=NAME"),
        (["eval", "tiny", "--dir", "x"], "eval --dir: only where a method's solver is evaluated"),
        (["eval", "method=dser", "method.generate.chains=0"], "method.generate.chains=0: input should be greater"),
        (
            ["eval", "method=dser", "dataset=alpacaeval", "verifier=math"],
            "compares with gold answers, which dataset=alp",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert _main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method=dser", r"`selfimprove eval method=dser` evaluates it, `selfimprove run method=rejection_sampling gen"),
        ("verify.outcomes.wrong=maybe", r"^verify\.outcomes\.wrong=maybe: input should be 'keep' or 'drop'"),
        ("dataset.train_size=-3", r"^dataset\.train_size=-3: input should be greater than or equal to 0"),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_key(word, said):
    with pytest.raises(ConfigError, match=said):
        compose([word])


def test_the_list_of_methods_says_which_only_think_longer(capsys):
    assert _main(["methods", "--json"]) == 0
    kinds = {method["name"]: method["kind"] for method in json.loads(capsys.readouterr().out)}
    assert (kinds["dser"], kinds["rejection_sampling"]) == ("test-time method", "training loop")


def test_a_solver_says_what_it_needs_wherever_it_is_used(monkeypatch):
    from selfimprove.methods import dser

    monkeypatch.setattr(dser, "NEEDS", ("options",), raising=False)
    with pytest.raises(ConfigError, match=r"generate=selfimprove\.methods\.dser\.generate needs options"):
        compose(["method=rejection_sampling", "generate=dser"])
    assert compose(["method=rejection_sampling", "generate=dser", "dataset=openbookqa"])
    assert compose(["method=rejection_sampling", "generate=dser", "dataset.form=choice"])


def test_a_judge_that_is_shown_gold_answers_reads_them():
    assert reads_gold({"_target_": "selfimprove.verify.math.check"})
    assert not reads_gold({"_target_": "selfimprove.verify.consensus.consensus"})
    judge = {"_target_": "selfimprove.verify.judge.verify", "prompt": [{"role": "user", "content": "{gold}?"}]}
    assert reads_gold(judge)


def sample(prompt: list[int], completion: list[int]) -> Sample:
    return Sample(prompt, completion, [0.0] * len(completion), "", "stop", 0)


def test_an_example_answers_the_problems_own_prompt():
    draft, review, new = sample([1, 2], [3, 9]), sample([1, 2, 3, 5], [6, 9]), sample([1, 2, 3, 6], [7, 9])
    assert answered(Trajectory("p", [draft])) == ([1, 2], [3, 9])
    assert answered(Trajectory("p", [draft, review, new])) == ([1, 2], [7, 9])
    gone_on = sample([1, 2, 3, 8, 8], [4, 9])  # the end token was taken back, and 8 8 put in
    assert answered(Trajectory("p", [draft, gone_on], {"continued": True})) == ([1, 2], [3, 8, 8, 4, 9])
    group = [
        Attempt(Problem("p", ""), trajectory, Verdict("t", "correct", 1.0))
        for trajectory in (Trajectory("p", [draft]), Trajectory("p", [draft, review, new]), Trajectory("p", [draft]))
    ]
    assert [e.completion_ids for e in distinct(group, 8, 0)] == [[3, 9], [7, 9]]


def test_training_on_what_thinking_found_imitates_answers_to_the_problems_own_prompts(tmp_path):
    run = tmp_path / "run"
    thinking = ["generate=dser", "generate.chains=2", "generate.iterations=1", "generate.temperature=1.0"]
    summary = run_here(run, "method=rejection_sampling", *thinking, "rounds=1")
    found = {t.id: t for t in store.read_records(run / "rounds/000/trajectories.parquet", Trajectory)}
    own = {t.problem_id: t.samples[0].prompt_ids for t in found.values() if len(t.samples) == 1}
    examples = list(store.read_records(run / "rounds/000/examples.parquet", Example))
    assert len(own) == TRAIN
    assert all(e.prompt_ids == own[e.problem_id] for e in examples)
    refined = [e for e in examples if found[e.trajectory_ids[0]].metadata["stage"]]
    assert refined
    for example in refined:
        thought = found[example.trajectory_ids[0]]
        assert example.completion_ids == thought.samples[-1].completion_ids
        assert thought.samples[-1].prompt_ids != example.prompt_ids
    assert summary["status"] == "complete"
