"""The run folder: what is written comes back, whole or not at all."""

import os
import signal
import subprocess
import sys
import textwrap

import pyarrow.parquet as pq
import pytest

from selfimprove import store
from selfimprove.errors import ConfigError
from selfimprove.plan import Pass
from selfimprove.types import Example, Problem, Sample, Trajectory, Verdict

SAMPLE = Sample([1, 2], [3, 4], [-0.5, -1.25], "a b", "stop", 2**62, 0.7, "policy", 3)
RECORDS = [
    Problem("p", [{"role": "user", "content": "é?"}], None, "test", {"options": ["a", "b"]}),
    Problem("q", "plain text", "7"),
    Trajectory("p", [SAMPLE, SAMPLE], {"node": 3}, "r0/p/1"),
    Verdict("r0/p/1", "wrong", 0.0, "7", [1.0, 0.0], None),
    Verdict("r0/p/1", "error", 0.0, None, None, "gold cannot be read"),
    Example("p", ["r0/p/1"], [1], [2, 3], None, [1, 0], 0.5, {"depth": 1}),
    Example("p", ["r0/p/1", "r0/p/2"], [1], [2, 3], [4]),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(tmp_path, record):
    path = tmp_path / "records.parquet"
    assert store.write_records(path, [record] * 3, type(record)) == 3
    assert list(store.read_records(path, type(record), chunk=2)) == [record] * 3


def test_reading_can_start_at_any_row(tmp_path):
    rows = [Verdict(str(i), "correct", 1.0) for i in range(10)]
    store.write_records(tmp_path / "v.parquet", rows, Verdict, chunk=4)
    for start in range(11):
        assert list(store.read_records(tmp_path / "v.parquet", Verdict, chunk=3, start=start)) == rows[start:]


def test_a_block_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    store.write_text(path, "old")

    def fail() -> None:
        with store.new_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_parts_continue_where_they_stopped_and_keep_their_order(tmp_path):
    path = tmp_path / "v.parquet"
    rows = [Verdict(str(i), "correct", 1.0) for i in range(25)]
    first = store.Parts(path, "key", Verdict)
    first.add(0, 10, rows[:10])
    again = store.Parts(path, "key", Verdict)
    assert again.done == 10
    again.add(10, 20, rows[10:20])
    again.add(20, 25, rows[20:])
    again.finish()
    assert list(store.read_records(path, Verdict)) == rows
    assert pq.read_table(path).num_rows == 25  # one plain file for any reader


def test_parts_of_another_configuration_are_thrown_away(tmp_path):
    store.Parts(tmp_path / "v.parquet", "old", Verdict).add(0, 5, [Verdict("x", "wrong", 0.0)])
    assert store.Parts(tmp_path / "v.parquet", "new", Verdict).done == 0


def test_a_part_may_hold_no_records(tmp_path):
    parts = store.Parts(tmp_path / "t.parquet", "key", Trajectory)
    parts.add(0, 5, [])
    assert parts.done == 5
    parts.finish()
    assert store.count_records(tmp_path / "t.parquet") == 0


FIRST = Pass(number=0, round=0, label="000", prefix="r0")


def test_a_phase_is_done_only_while_its_key_and_its_files_fit(tmp_path):
    run = store.Run(tmp_path)
    store.write_text(run.folder(FIRST) / "examples.parquet", "x")
    run.finish(FIRST, "filter", "key", ["examples.parquet"], {"examples": 1}, 0.1)
    assert run.done(FIRST, "filter", "key") is not None
    assert run.done(FIRST, "filter", "other") is None
    store.write_text(run.folder(FIRST) / "examples.parquet", "changed")
    assert run.done(FIRST, "filter", "key") is None


def test_a_phase_stays_done_when_what_it_wrote_is_let_go_of(tmp_path):
    run = store.Run(tmp_path)
    weights = run.folder(FIRST) / "policy" / "weights"
    store.write_text(weights, "x")
    run.finish(FIRST, "train", "key", ["policy"], {}, 0.1)
    assert run.whole(FIRST, "train")
    run.let_go(FIRST, "train")
    assert not weights.parent.exists()
    assert not run.whole(FIRST, "train")
    assert run.done(FIRST, "train", "key") is not None
    store.write_text(weights, "y")
    assert not run.whole(FIRST, "train"), "made again, and not as it was"
    store.write_text(weights, "x")
    assert run.whole(FIRST, "train")
    run.discard(FIRST, "train")
    assert not (run.folder(FIRST) / "policy.let_go").exists()


def test_the_log_loses_the_lines_that_are_not_to_stay_and_one_that_was_cut_short(tmp_path):
    run = store.Run(tmp_path)
    store.write_text(run.folder(FIRST) / "out", "x")
    run.log({"pass": 0, "phase": "filter", "examples": 1})
    run.finish(FIRST, "filter", "key", ["out"], {}, 0.1)
    run.log({"pass": 0, "phase": "train", "step": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"pass": 0, "pha\xff')  # a kill in the middle of a line
    run.trim_log(lambda line: run.manifest(FIRST, line["phase"]) is not None)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"pass": 0, "phase": "filter", "examples": 1}\n'


def test_a_folder_in_use_is_refused_and_a_killed_owner_frees_it(tmp_path):
    code = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from selfimprove.store import Run
        with Run(Path({str(tmp_path)!r})).lock():
            print("locked", flush=True); time.sleep(600)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=f"in use by process {owner.pid}"), store.Run(tmp_path).lock():
            pass
        os.kill(owner.pid, signal.SIGKILL)
    with store.Run(tmp_path).lock():
        pass


def test_a_folder_is_free_when_its_run_has_ended_though_a_forked_process_has_its_file(tmp_path):
    with store.Run(tmp_path).lock():
        if (child := os.fork()) == 0:
            signal.pause()
    try:
        with store.Run(tmp_path).lock():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it has the file still"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
