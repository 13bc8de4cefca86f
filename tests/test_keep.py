"""Policies that are not kept: a run is the same without them, and they can be made again."""

import shutil

import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.plan import plan
from tests.forks import drive

TINY = (
    "method=grpo rounds=1 method.parts=5 dataset.train_size=10 dataset.heldout_size=4 dataset.levels=[2,3] "
    "method.generate.n=4 method.train.batch_size=8 verify.workers=1 tracker=none model.max_tokens=40"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose every policy is kept, and the same with one in three."""
    folders = {}
    for keep in (1, 3):
        folders[keep] = tmp_path_factory.mktemp("runs") / str(keep)
        run.start(compose([*TINY.split(), f"method.keep={keep}"]), folders[keep])
    return folders


def trained(folder):
    return {path.parent.name: store.read_json(path)["outputs"] for path in folder.glob("rounds/*/train.manifest.json")}


def on_disk(folder):
    return sorted(f"{p.parent.name}/{p.name}" for p in folder.glob("rounds/*/*") if p.name in ("policy", "state"))


def test_every_kth_policy_stays_and_the_newest(finished):
    passes = [f"000.{i}" for i in range(5)]
    assert on_disk(finished[1]) == [f"{name}/{kind}" for name in passes for kind in ("policy", "state")]
    assert on_disk(finished[3]) == [f"{name}/{kind}" for name in ("000.2", "000.4") for kind in ("policy", "state")]
    assert trained(finished[1]) == trained(finished[3]), "what is kept changes nothing else"
    assert all(set(outputs) == {"policy", "state"} for outputs in trained(finished[3]).values())


def unfinished(folder, copy):
    """A copy of a run whose evaluation and last policy are still to come."""
    shutil.copytree(folder, copy)
    for path in ("rounds/000.4/evaluate.manifest.json", "rounds/000.4/handover.manifest.json", "summary.json"):
        (copy / path).unlink()
    return copy


@pytest.mark.parametrize("lost", [["000.4"], ["000.4", "000.2"]])
def test_a_policy_that_is_lost_is_made_again_without_sampling(finished, tmp_path, monkeypatch, lost):
    copy = unfinished(finished[3], tmp_path / "run")
    for name in lost:
        weights = copy / "rounds" / name / "policy" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    before = [store.file_digest(p) for p in sorted(copy.glob("rounds/*/trajectories.parquet"))]
    assert run.resume(copy)["status"] == "complete"
    assert on_disk(copy) == on_disk(finished[3])
    for name in ("000.2", "000.4"):
        for kind in ("policy", "state"):
            place = f"rounds/{name}/{kind}"
            assert store.file_digest(copy / place) == store.file_digest(finished[3] / place)
    assert [store.file_digest(p) for p in sorted(copy.glob("rounds/*/trajectories.parquet"))] == before
    lines = (copy / "metrics.jsonl").read_text().count('"phase": "train"')
    assert lines == (finished[3] / "metrics.jsonl").read_text().count('"phase": "train"')


def test_a_policy_that_was_let_go_of_is_made_again_where_it_is_asked_for(finished, tmp_path):
    from selfimprove.report.display import Display
    from selfimprove.session import Session, Weights, base_policies
    from selfimprove.types import Problem
    from selfimprove.update import restore

    copy = tmp_path / "run"
    shutil.copytree(finished[3], copy)
    config = compose([*TINY.split(), "method.keep=3"])
    problems = list(store.read_records(copy / "problems.parquet", Problem))
    found = store.Run(copy)
    split = {name: [p for p in problems if p.split == name] for name in ("train", "test")}
    session = Session(config, found, Display(copy, config), split["train"], split["test"], base_policies(config))
    step = plan(config)[1]
    hashes = found.made(step, "train")
    assert not (found.folder(step) / "policy").exists()
    restore(session, Weights(str(found.folder(step) / "policy"), step.number + 1, hashes["policy"]))
    assert {name: store.file_digest(found.folder(step) / name) for name in hashes} == hashes
    assert on_disk(copy) == sorted([*on_disk(finished[3]), "000.1/policy", "000.1/state"])
    assert hashes == trained(finished[1])["000.1"]
    session.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep", "points"),
    [(1, ["manifest:2/train"]), (3, ["train:2"]), (3, ["manifest:2/train", "manifest:3/generate"])],
)
def test_a_run_that_keeps_few_policies_survives_kills(tmp_path, keep, points):
    drive(tmp_path, f"{TINY} method.parts=4 dataset.train_size=8 method.keep={keep}", points)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method.generate.temperature=0.7"],
            r"method\.generate\.temperature=0\.7: .* a policy gradient.*: set it to 1",
        ),
        (["method.start=base"], r"method\.train\.carry=true: goes on from the last policy"),
        (
            ["hardware.training.processes=2", "hardware.training.strategy=fsdp2"],
            r"hardware\.training\.strategy=fsdp2: method\.train\.carry=true needs ddp",
        ),
    ],
)
def test_what_cannot_be_trained_so_is_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as refused:
        compose(["method=grpo", *overrides])
    assert "\n" not in str(refused.value)
