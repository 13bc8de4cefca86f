"""Every kind of file of a run folder, damaged in every way: `resume` makes it again, or one line names it.

The table of docs/safety.md. The fast suite tries each kind of file in one way with `resume`, and in another with the
commands that read; `pytest -m slow tests/test_damage.py` tries all.
"""

import io
import itertools
import logging
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from selfimprove import run, store, types
from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.errors import ConfigError, Damaged
from selfimprove.policy.models import resolve
from selfimprove.report import html
from selfimprove.types import Trajectory
from tests.kill_driver import contents

TINY = Path(resolve("tiny", "package"))

SIZES = [
    "rounds=2", "dataset.levels=[2,3]", "dataset.train_size=6", "dataset.heldout_size=5", "hardware.shard=2",
    "dataset@eval.also=arithmetic", "eval.also.heldout_size=3", "method.generate.n=2", "model.max_tokens=24",
    "verify.workers=1", "tracker=none", "hardware.training.checkpoint_steps=1", "method.train.batch_size=2",
]  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


WAYS = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": cut,
    "flipped": flip,
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
}

# What nobody reads: what was said, and the page that is made of the rest.
UNREAD = ("run.log", "report.html", ".lock")


def turns(names, ways=tuple(WAYS), offset=0):
    """Each file in one way, so that each way meets many kinds."""
    return [(name, ways[(i + offset) % len(ways)]) for i, name in enumerate(names)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run.start(compose(SIZES), folder)
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The same run, stopped between the parts of its first round's samples, and between steps of its training."""
    return {kind: stopped(tmp_path_factory.mktemp(kind) / "run", kind) for kind in ("sampling", "training")}


def stopped(folder, kind, *overrides):
    def raising(function, counts):
        calls = itertools.count(1)

        def call(self, *arguments, **keywords):
            found = function(self, *arguments, **keywords)
            if counts(self, *arguments) and next(calls) == 2:
                raise Stop
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        if kind == "sampling":
            counts = lambda parts, *_: "rounds" in str(parts.path)  # noqa: E731
            patch.setattr(store.Parts, "add", raising(store.Parts.add, counts))
        else:
            counts = lambda _, record: record["phase"] == "train" and "step" in record  # noqa: E731
            patch.setattr(store.Run, "log", raising(store.Run.log, counts))
        with pytest.raises(Stop):
            run.start(compose([*SIZES, *overrides]), folder)
    return folder


class Stop(BaseException):
    """What no handler of ours takes for a fault."""


def damaged(folder, target, name, way):
    """A copy of a run folder in which one file is damaged."""
    shutil.copytree(folder, target)
    WAYS[way](target / name)
    return target


def resumed(folder, caplog):
    """What `resume` in this process ends with, if not well, and its warnings."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "selfimprove"):
        try:
            run.resume(folder)
        except (Damaged, ConfigError) as problem:
            return str(problem), caplog.messages
    return "", caplog.messages


def compared(folder):
    """What a resumed run has to have in common with one that was left alone."""
    found = contents(folder)
    found.pop("config.yaml")
    return found


def different(found, expected):
    return [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]


def mends(folder, target, name, way, expected, caplog):
    """Damage a file and resume; raises AssertionError unless the run ends as `expected` or the file is named."""
    problem, said = resumed(damaged(folder, target, name, way), caplog)
    where = f"{name}, {way}: {problem} {said}"
    if name == "config.yaml":
        assert str(target) in problem, where
        assert name in problem, where
        assert "\n" not in problem, where
        return
    assert not problem, where
    found = compared(target)
    assert not [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)], where
    assert any(name.rpartition("/")[2] in line or Path(name).parent.name in line for line in said), (
        f"in silence: {where}"
    )


def reads(folder, target, name, way, expected):
    """Damage a file and read the folder; raises AssertionError unless all prints as `expected` or the file is named."""
    damaged(folder, target, name, way)
    for command, right in expected.items():
        code, out, err = said(command, target)
        where = f"{command}: {name}, {way}: {code} {out[-300:]} {err}"
        assert "Traceback" not in out + err, where
        if code == 0:
            assert out == right, where
        else:
            assert code in (1, 2), where
            assert len(err.strip().splitlines()) == 1, where
            assert Path(name).name in err, where


PAGE = Path(html.__file__).parent / "page" / "page.css"  # stands for plotly, which is large


def said(command, folder):
    """Exit code, output and errors of a command that reads a run folder; of a report also what the page is made of."""
    page = folder.with_name("page.html")
    words = [command, str(folder), *(["--out", str(page)] if command == "report" else [])]
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        pytest.MonkeyPatch.context() as p,
    ):
        p.setattr(html, "_packed", lambda data: data.decode())
        p.setattr(html, "_plotly", lambda: folder / "config.yaml")
        code = _main(words)
    text = out.getvalue()
    if command == "report" and code == 0:
        text += re.sub(r"\d\d:\d\d|\d{4}-\d\d-\d\d", "", page.read_text())
    return code, text.replace(str(folder.parent), ""), err.getvalue()


# Each file meets one way of damage; the ways go round.
KINDS = [
    "config.yaml", "environment.json", "metrics.jsonl", "problems.parquet", "also.parquet", "prepare.manifest.json",
    "summary.json", "weights.json", "base/evaluate.manifest.json", "base/evaluation/scores.parquet",
    "base/evaluation/trajectories.parquet", "base/evaluation/verdicts.parquet", "base/also/trajectories.parquet",
    "base/also/verdicts.parquet", "base/also.manifest.json", "rounds/000/trajectories.parquet",
    "rounds/000/verdicts.parquet", "rounds/000/examples.parquet", "rounds/000/generate.manifest.json",
    "rounds/000/verify.manifest.json", "rounds/000/filter.manifest.json", "rounds/000/train.manifest.json",
    "rounds/000/handover.manifest.json", "rounds/000/evaluate.manifest.json", "rounds/000/also.manifest.json",
    "rounds/000/metrics.json", "rounds/000/policy/model.safetensors", "rounds/000/policy/config.json",
    "rounds/000/policy/generation_config.json", "rounds/000/policy/tokenizer.json",
    "rounds/000/policy/tokenizer_config.json", "rounds/000/policy/chat_template.jinja",
    "rounds/000/policy/handover.json", "rounds/000/evaluation/scores.parquet",
    "rounds/000/evaluation/trajectories.parquet", "rounds/000/evaluation/verdicts.parquet",
    "rounds/000/also/trajectories.parquet", "rounds/000/also/verdicts.parquet", "forecast.json",
]  # fmt: skip


CHECKED = [name for name in KINDS if not name.startswith("rounds/000/policy")]


def test_every_kind_of_file_is_tried(whole):
    found = {str(p.relative_to(whole)) for p in whole.rglob("*") if p.is_file() and p.name not in UNREAD}
    assert {name for name in found if not name.startswith("rounds/001")} == set(KINDS)


@pytest.mark.parametrize(("name", "way"), turns(KINDS))
def test_resume_makes_again_what_is_damaged_in_a_complete_run(whole, tmp_path, name, way, caplog):
    mends(whole, tmp_path / "run", name, way, compared(whole), caplog)


def test_resume_names_the_policy_that_is_damaged(whole, tmp_path, caplog):
    """It is made again, bit for bit, and what was sampled from it stays."""
    folder = damaged(whole, tmp_path / "run", "rounds/001/policy/model.safetensors", "flipped")
    problem, said = resumed(folder, caplog)
    assert not problem
    assert sum("is made again" in line for line in said) == 1
    assert compared(folder) == compared(whole)


@pytest.fixture(scope="module")
def printed(whole, tmp_path_factory):
    """What the commands that read print of a whole run."""
    found = {command: said(command, whole) for command in ("compare", "report")}
    assert [code for code, _, _ in found.values()] == [0, 0], found
    return {command: out for command, (_, out, _) in found.items()}


@pytest.mark.parametrize(("name", "way"), turns(CHECKED, offset=2))
def test_readers_name_what_is_damaged(whole, tmp_path, name, way, printed):
    reads(whole, tmp_path / "run", name, way, printed)


def test_eval_names_what_is_damaged_of_the_policy(whole, tmp_path):
    files = ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    for name, way in turns(files, offset=1):
        folder = damaged(whole, tmp_path / name, f"rounds/001/policy/{name}", way)
        code, _, err = said("eval", folder)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert f"policy/{name}" in err


# A run that was interrupted


UNFINISHED = {
    "sampling": ["key", "000000000-000000002-*.parquet", "000000002-000000004-*.parquet"],
    "training": ["key", "probe.json", "checkpoint-*/optimizer.pt", "checkpoint-*/whole.json"],
}


@pytest.mark.parametrize(
    ("kind", "pattern", "way"),
    [(kind, *turn) for i, (kind, found) in enumerate(UNFINISHED.items()) for turn in turns(found, offset=i)],
)
def test_resume_makes_again_what_is_damaged_of_a_phase_that_is_not_done(
    whole, interrupted, tmp_path, kind, pattern, way, caplog
):
    below = {"sampling": "rounds/000/trajectories.parts", "training": "rounds/000/policy.parts"}[kind]
    names = sorted(str(p.relative_to(interrupted[kind])) for p in interrupted[kind].glob(f"{below}/{pattern}"))
    assert names, f"no {pattern}"
    for number, name in enumerate(names):
        target = tmp_path / str(number)
        problem, said = resumed(damaged(interrupted[kind], target, name, way), caplog)
        assert not problem, (name, said)
        assert not different(compared(target), compared(whole)), (name, said)


# What the run does not hold itself, and what another version wrote


def test_a_base_model_that_has_changed_is_named_before_anything_is_done(tmp_path):
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    folder = stopped(tmp_path / "run", "sampling", f"model.path={base}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    flip(base / "model.safetensors")
    with pytest.raises(Damaged, match=r"base/model\.safetensors: is not what .* began with"):
        run.resume(folder)
    changed = [path.name for path, data in before.items() if path.read_bytes() != data]
    assert set(changed) <= {"environment.json", "run.log", ".lock"}
    flip(base / "model.safetensors")
    assert run.resume(folder)["status"] == "complete"


def test_files_of_a_newer_version_are_refused_and_of_an_older_one_read(tmp_path, monkeypatch):
    one = Trajectory("p", [], {"a": 1}, "r0/p/0")
    monkeypatch.setattr(types, "SCHEMA", types.SCHEMA + 1)
    store.write_records(tmp_path / "t.parquet", [one], Trajectory)
    store.write_sealed(tmp_path / "a.json", {"a": 1})
    store.write_config(tmp_path / "config.yaml", "a: 1\n")
    monkeypatch.undo()
    for read, name in (
        (lambda path: list(store.read_records(path, Trajectory)), "t.parquet"),
        (store.read_json, "a.json"),
        (store.read_config, "config.yaml"),
    ):
        with pytest.raises(Damaged, match=rf"{name}: is of a newer version of selfimprove"):
            read(tmp_path / name)
    store.write_records(tmp_path / "t.parquet", [one], Trajectory)
    table = pq.read_table(tmp_path / "t.parquet").drop_columns(["metadata"]).replace_schema_metadata(None)
    pq.write_table(table, tmp_path / "old.parquet")
    assert [t.metadata for t in store.read_records(tmp_path / "old.parquet", Trajectory)] == [{}]
    store.write_json(tmp_path / "old.json", {"a": 1})
    assert store.read_json(tmp_path / "old.json") == {"a": 1}


# All of it


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_in_every_way(whole, tmp_path, name, way, caplog, printed):
    mends(whole, tmp_path / "resumed" / "run", name, way, compared(whole), caplog)
    if name in CHECKED:
        reads(whole, tmp_path / "read" / "run", name, way, printed)
