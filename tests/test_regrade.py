"""`selfimprove verify RUN_DIR`: verdicts that were changed by hand, and what grading again says of them."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from selfimprove.cli import _main
from selfimprove.regrade import regrade
from selfimprove.store import read_json, read_records, write_records, write_sealed
from selfimprove.types import Verdict
from tests.conftest import HELDOUT, TRAIN, run_here

ONE = ["verify.workers=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regrade") / "run"
    run_here(folder, "rounds=1", "method.generate.n=2")
    return folder


def change(folder, phase, verdicts, alter):
    """The verdicts of a phase written again, as an earlier version of a verifier might have had them."""
    path = folder / f"{verdicts}/verdicts.parquet"
    records = list(read_records(path, Verdict))
    alter(records)
    write_records(path, records, Verdict)
    manifest = folder / f"{phase}.manifest.json"
    known = read_json(manifest)
    from selfimprove.digests import Digests, hashes

    names = list(known["outputs"])
    write_sealed(manifest, {**known, **hashes(manifest.parent, names, Digests(folder.parent))})
    return records


def test_nothing_changes_where_the_verifier_is_the_same(run):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    results, said = regrade(run, ONE)
    labels = ["base policy: held-out", "round 0: training", "after round 0: held-out"]
    assert [(found.label, found.n) for found in results] == list(
        zip(labels, [HELDOUT, 2 * TRAIN, HELDOUT], strict=True)
    )
    assert all(not found.changed and not found.other for found in results)
    assert said == []
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_changed_is_counted_with_a_paired_difference_and_written(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)

    def alter(records):
        for verdict in records[:3]:
            verdict.status, verdict.reward = ("wrong", 0.0) if verdict.status == "correct" else ("correct", 1.0)
        records[3].reward += 0.25

    altered = change(copy / "base", "evaluate", "evaluation", alter)
    out = tmp_path / "changed.jsonl"
    assert _main(["verify", str(copy), *ONE, "--out", str(out)]) == 0
    assert "held-out" in capsys.readouterr().out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["trajectory"] for row in rows] == [verdict.trajectory_id for verdict in altered[:4]]
    assert [row["before"]["status"] != row["after"]["status"] for row in rows] == [True, True, True, False]
    base = regrade(copy, ONE)[0][0]
    assert (sum(base.changed.values()), base.other) == (3, 1)
    was = sum(verdict.status == "correct" for verdict in altered) / HELDOUT
    before, after, difference = base.estimates()
    assert before.value == pytest.approx(was)
    assert difference.value == pytest.approx(after.value - was)


def test_another_verifier_grades_all_answers_and_one_that_asks_a_model_is_refused(run, capsys):
    results, _ = regrade(run, ["verifier=consensus", *ONE])
    held = results[0]
    assert {new for _, new in held.moved} <= {"correct", "unparseable"}  # one answer agrees with itself
    assert _main(["verify", str(run), "verifier=judge", *ONE]) == 2
    assert "asks a model" in capsys.readouterr().err


def test_a_damaged_folder_is_named(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    path = copy / "base" / "evaluation" / "verdicts.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    assert _main(["verify", str(copy), *ONE]) == 2
    assert "verdicts.parquet" in capsys.readouterr().err
