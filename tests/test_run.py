"""A whole run through the command line, and what it leaves."""

import json
import re

import pyarrow.parquet as pq
import pytest
import yaml

from selfimprove import store
from selfimprove.cli import _main
from selfimprove.types import Example, Problem, Sample, Trajectory, Verdict
from tests.conftest import HELDOUT, SMALL, TRAIN, run_here
from tests.kill_driver import contents


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cli_module):
    """A finished run of two rounds, and what it printed."""
    run = tmp_path_factory.mktemp("run") / "run"
    return run, cli_module("run", *SMALL, "rounds=2", "eval.samples=4", f"hydra.run.dir={run}")


def test_the_folder_holds_what_the_design_says(finished):
    run, _ = finished
    files = ("config.yaml", "environment.json", "problems.parquet", "run.log", "metrics.jsonl", "summary.json")
    for name in (*files, "report.html"):
        assert (run / name).is_file(), name
    for number in ("000", "001"):
        folder = run / "rounds" / number
        for name in ("trajectories.parquet", "verdicts.parquet", "examples.parquet", "metrics.json"):
            assert (folder / name).is_file(), name
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in (folder / "policy").iterdir()}
    leftovers = [str(f) for f in run.rglob("*") if f.name.endswith((".parts", ".new"))]
    assert not leftovers


def test_the_summary_has_the_documented_form(finished):
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert (summary["method"], summary["model"], summary["dataset"], summary["seed"]) == (
        "rejection_sampling",
        "tiny",
        "arithmetic",
        0,
    )
    for part in (summary["base"], summary["final"]):
        assert part["accuracy_low"] <= part["accuracy"] <= part["accuracy_high"]
        assert part["n"] == HELDOUT
        assert {"mean@4", "pass@4", "maj@4"} <= part.keys()
    for number, row in enumerate(summary["rounds"]):
        assert row["round"] == number
        assert row["trajectories"] == TRAIN * 4 == sum(row["verdicts"].values())
        assert min(row["tokens"][kind] for kind in ("prompt", "sampled", "trained")) > 0
        assert row["seconds"].keys() == {"generate", "verify", "filter", "train", "handover", "evaluate"}
        assert row["evaluation"]["n"] == HELDOUT


def test_every_example_traces_to_its_sample_problem_verdict_and_policy(finished):
    run, _ = finished
    problems = {p.id: p for p in store.read_records(run / "problems.parquet", Problem)}
    for number in (0, 1):
        folder = run / "rounds" / f"{number:03d}"
        trajectories = {t.id: t for t in store.read_records(folder / "trajectories.parquet", Trajectory)}
        verdicts = {v.trajectory_id: v for v in store.read_records(folder / "verdicts.parquet", Verdict)}
        assert trajectories.keys() == verdicts.keys()
        examples = list(store.read_records(folder / "examples.parquet", Example))
        assert examples
        for example in examples:
            (name,) = example.trajectory_ids
            sample: Sample = trajectories[name].samples[-1]
            assert verdicts[name].status == "correct"
            assert (example.prompt_ids, example.completion_ids) == (sample.prompt_ids, sample.completion_ids)
            assert len(sample.logprobs) == len(sample.completion_ids)
            assert all(logprob <= 0 for logprob in sample.logprobs)
            assert sample.version == number
            assert problems[example.problem_id].split == "train"


def test_held_out_problems_are_only_evaluated_on(finished):
    run, _ = finished
    problems = list(store.read_records(run / "problems.parquet", Problem))
    heldout = {p.id for p in problems if p.split == "test"}
    assert not {json.dumps(p.prompt) for p in problems if p.id in heldout} & {
        json.dumps(p.prompt) for p in problems if p.id not in heldout
    }
    for number in ("000", "001"):
        folder = run / "rounds" / number
        assert not heldout & set(pq.read_table(folder / "trajectories.parquet")["problem_id"].to_pylist())
        assert set(pq.read_table(folder / "evaluation" / "trajectories.parquet")["problem_id"].to_pylist()) == heldout


def test_the_log_is_plain_lines_and_ends_with_what_to_do_next(finished):
    run, done = finished
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert re.search(r"base +\d+\.\d % \[", done.stderr)
    assert f"selfimprove eval {run}" in done.stderr
    assert not re.search(r"Warning|Traceback|Loading weights|it/s\]", done.stderr), done.stderr


def test_the_policy_loads_with_transformers_alone(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished[0] / "rounds" / "001" / "policy"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Start with 7. Add 5."}], return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3).shape[1] > ids["input_ids"].shape[1]


def test_eval_reads_a_run_and_a_model(finished, tmp_path, capsys):
    run, _ = finished
    out = tmp_path / "figures.json"
    assert _main(["eval", str(run), "eval.samples=4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["accuracy"] == json.loads((run / "summary.json").read_text())["final"]["accuracy"]
    assert all(word in printed for word in ("accuracy", "pass@4", "maj@4", "mean@4"))
    assert _main(["eval", "tiny", f"dataset.heldout_size={HELDOUT}", "dataset.train_size=0", "eval.samples=2"]) == 0
    assert "pass@2" in capsys.readouterr().out


def test_one_seed_fixes_the_whole_run(finished, tmp_path):
    again = tmp_path / "again"
    run_here(again, "rounds=2", "eval.samples=4")
    first, second = contents(finished[0]), contents(again)
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()
    other = tmp_path / "other"
    run_here(other, "rounds=1", "seed=1")
    assert contents(other)["rounds/000/trajectories.parquet"] != first["rounds/000/trajectories.parquet"]


def test_a_round_without_examples_keeps_the_policy_and_says_so(tmp_path):
    run = tmp_path / "run"
    # Two tokens hold no answer, so nothing is correct.
    summary = run_here(run, "rounds=2", "+method.generate.max_tokens=2")
    assert "no example was left after the filter" in (run / "run.log").read_text()
    assert summary["status"] == "complete"
    assert len(summary["rounds"]) == 2
    assert summary["final"]["accuracy"] == summary["base"]["accuracy"]
    assert not (run / "rounds" / "000" / "policy").exists()


def test_the_control_keeps_the_rate_and_loses_the_meaning(finished, tmp_path):
    run = tmp_path / "run"
    run_here(run, "rounds=1", "control=shuffled_verdicts")
    true = pq.read_table(finished[0] / "rounds" / "000" / "verdicts.parquet")
    dealt = pq.read_table(run / "rounds" / "000" / "verdicts.parquet")
    assert true["trajectory_id"] == dealt["trajectory_id"]
    assert sorted(true["status"].to_pylist()) == sorted(dealt["status"].to_pylist())
    assert true["status"] != dealt["status"]


@pytest.mark.slow
def test_a_sweep_is_one_folder_and_a_failing_member_does_not_stop_the_others(cli, tmp_path):
    done = cli("run", "-m", *SMALL, "rounds=1", "seed=0,1", "method.generate.n=0,2", "hydra.sweep.dir=sweep", check=2)
    assert done.stderr.count("method.generate.n=0: input should be") == 2
    finished = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/summary.json"))]
    assert [(s["seed"], s["status"]) for s in finished] == [(0, "complete"), (1, "complete")]
    groups = {yaml.safe_load(path.read_text())["group"] for path in (tmp_path / "sweep").glob("*/config.yaml")}
    assert groups == {"sweep"}


def test_checks_that_do_not_end_stop_the_run_with_examples(cli, tmp_path):
    (tmp_path / "slow_check.py").write_text(
        "import time\n"
        "from selfimprove.verify import Outcome\n"
        "def check(text, gold, metadata):\n"
        "    if 'gold' not in text:\n"
        "        time.sleep(60)\n"
        "    return Outcome('correct', 1.0)\n"
        "def reference(gold, metadata):\n"
        "    return 'gold'\n"
    )
    run = tmp_path / "run"
    overrides = [f"hydra.run.dir={run}", "dataset.heldout_size=2", "verify.seconds=1"]
    verifier = ["~dataset.verifier.form", "~dataset.verifier.partial", "dataset.verifier._target_=slow_check.check"]
    done = cli("run", *SMALL, *verifier, *overrides, check=1, PYTHONPATH=str(tmp_path))
    assert re.search(r"2 of 2 checks ended as timeout or error, more than verify.stop_above=0.05; e.g. ", done.stderr)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "timeout" in summary["reason"]
