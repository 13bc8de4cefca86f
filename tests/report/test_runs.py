"""The data layer: what a run folder holds, read by column."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from folders import problems, write_answers, write_run

from selfimprove import types
from selfimprove.errors import ConfigError
from selfimprove.policy.models import PACKAGED, load_model
from selfimprove.report import runs
from selfimprove.report.runs import RunData, find
from selfimprove.store import write_json
from tests.counting import lines

BASE, AFTER = [True, False, False], [True, True, False]


def test_runs_are_found_in_and_below_folders_each_once(tmp_path):
    one = write_run(tmp_path / "sweep" / "0_a", [BASE, AFTER])
    two = write_run(tmp_path / "sweep" / "1_b", [BASE, AFTER])
    (one / "wandb" / "files").mkdir(parents=True)
    (one / "wandb" / "files" / "config.yaml").write_text("a: 1")
    assert find([tmp_path]) == [one, two]
    assert find([two, tmp_path / "sweep"]) == [two, one]
    for wrong, said in ((tmp_path / "nowhere", "no such folder"), (one / "rounds", "no run folder")):
        with pytest.raises(ConfigError, match=said):
            find([wrong])


def test_evaluations_tokens_seconds_and_verdicts(tmp_path):
    answers = [["0", "no"], ["1", "1"], [None, "no"]]
    run = RunData(write_run(tmp_path / "r", [BASE, AFTER, AFTER], sampled=answers, seed=3))
    assert run.heldout[0] == {"test-0": 1.0, "test-1": 0.0, "test-2": 0.0}
    assert [sum(found.values()) for found in run.heldout] == [1, 2, 2]
    assert run.sampled[0] == {"test-0": (2, 1), "test-1": (2, 2), "test-2": (2, 0)}
    assert run.sampled[1] == {}
    table = run.answers(0)
    assert table.num_rows == 9
    assert set(table["sampled_tokens"].to_pylist()) == {10}  # of both samples of a trajectory
    assert set(table["prompt_tokens"].to_pylist()) == {6}
    assert table["extracted"].to_pylist()[:3] == ["0", "0", "no"]
    assert run.tokens[1] == {"prompt": 300, "sampled": 1000, "scored": 0, "trained": 100}
    assert run.seconds[0]["generate"] == 2.0
    assert run.verdicts[0] == {"correct": 3, "wrong": 1}
    assert (run.seed, run.method, run.complete, len(run.rounds)) == (3, "rejection_sampling", True, 2)
    assert run.also == run.drift == []


def test_an_unfinished_run_has_what_is_whole(tmp_path):
    path = write_run(tmp_path / "r", [BASE, AFTER, AFTER], status="running")
    (path / "rounds" / "001" / "evaluate.manifest.json").unlink()
    run = RunData(path)
    assert len(run.heldout) == 2
    assert not run.ended
    (path / "summary.json").unlink()
    bare = RunData(path)
    assert (bare.status, bare.tokens, bare.summary) == ("not started", [], {})


@pytest.mark.parametrize(
    ("reason", "ended"), [("SIGTERM", False), ("budget.seconds=3 is reached: 4 after round 0", True)]
)
def test_a_run_ends_by_its_own_rules_and_not_by_a_signal(tmp_path, reason, ended):
    path = write_run(tmp_path / "r", [BASE, AFTER], status="stopped")
    write_json(path / "summary.json", json.loads((path / "summary.json").read_text()) | {"reason": reason})
    assert RunData(path).ended is ended


def test_a_damaged_file_is_one_line(tmp_path):
    path = write_run(tmp_path / "r", [BASE, AFTER])
    (path / "base" / "evaluation" / "verdicts.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"verdicts\.parquet: cannot be read"):
        _ = RunData(path).heldout


def test_parameters_are_counted_from_headers_as_the_loaded_model_counts_them(tmp_path):
    model = load_model(str(PACKAGED / "tiny"))
    counted = sum(parameter.numel() for parameter in model.parameters())
    run = RunData(write_run(tmp_path / "r", [BASE, AFTER]))
    assert run.parameters == counted
    assert run.flops[0] == {
        "prompt": 2.0 * counted * 300,
        "sampled": 2.0 * counted * 1000,
        "scored": 0.0,
        "trained": 6.0 * counted * 100,
    }
    assert runs.parameters(tmp_path) is None


def test_a_run_is_read_by_column_and_each_file_once(tmp_path, monkeypatch):
    heldout, rng = problems(500), np.random.default_rng(0)
    path = write_run(tmp_path / "r", [rng.random(500) < 0.5 for _ in range(6)], heldout=heldout)
    opened = Counter()
    real = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda file: opened.update([file]) or real(file))
    run = RunData(path)

    def load():
        assert len(run.heldout) == 6
        assert len(run.problems) == 505
        assert len(run.rounds) == 5

    assert lines(load, types) == 0, "no record becomes an object"
    assert len(opened) == 6 * 2 + 1
    assert set(opened.values()) == {1}
    assert lines(load, runs) < 50, "what was read is kept"
    assert lines(lambda: RunData(path).heldout, runs) < 6 * 500 * 8, "a few lines an answer"


def test_answers_that_do_not_belong_together_are_refused(tmp_path):
    write_answers(tmp_path / "a", problems(3), BASE)
    write_answers(tmp_path / "b", problems(2), BASE)
    (tmp_path / "a" / "verdicts.parquet").write_bytes((tmp_path / "b" / "verdicts.parquet").read_bytes())
    with pytest.raises(ConfigError, match="3 trajectories and 2 verdicts"):
        runs.answers(tmp_path / "a")


def test_figures_of_training_are_over_the_steps_of_the_run(tmp_path):
    run = write_run(tmp_path / "r", [[True, False]] * 2, method__stages={"b": {"role": "critic"}})
    for label, stage, losses in (("000.0_a.0", "a", [0.5, 0.4]), ("000.0_a.1", "a", [0.3]), ("000.1_b", "b", [0.9])):
        (run / "rounds" / label).mkdir(parents=True)
        steps = [{"step": i, "progress": 0.5, "loss": loss} for i, loss in enumerate(losses, start=1)]
        trained = {"where": {"stage": stage}, "metrics": {"steps": len(losses)}, "steps": steps}
        write_json(run / "rounds" / label / "train.manifest.json", trained)
        filtered = {"metrics": {"exploit/available_reward": losses[0] / 2}}
        write_json(run / "rounds" / label / "filter.manifest.json", filtered)
    assert RunData(run).steps == {
        "loss": [(1, 0.5), (2, 0.4), (3, 0.3)],
        "reward": [(1, 0.25), (3, 0.15)],
        "critic: loss": [(4, 0.9)],
        "critic: reward": [(4, 0.45)],
    }
