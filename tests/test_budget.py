"""A budget stops a run at a round's end, survives kills and resumes, and can be raised."""

import json
import sys

import pytest
import yaml

from selfimprove import run, store
from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.plan import plan
from selfimprove.summary import Summary
from selfimprove.types import STATUSES
from tests.conftest import HELDOUT, SMALL, environment_of
from tests.forks import Command
from tests.waiting import wait_for


def write(folder, phase, seconds, **metrics):
    manifest = {"metrics": metrics, "seconds": seconds, "outputs": {}}
    store.write_json(folder / f"{phase}.manifest.json", manifest)


@pytest.fixture
def two_rounds(tmp_path):
    """The manifests of two rounds: 150 sampled tokens each for learning, 99 more in evaluations, 21 s in all."""
    write(tmp_path / "base", "evaluate", 1.0, **{"tokens/sampled": 33})
    for number in ("000", "001"):
        folder = tmp_path / "rounds" / number
        write(folder, "generate", 5.0, **{"tokens/sampled": 100})
        write(folder, "verify", 2.0, **{"tokens/sampled": 50}, **{f"verdicts/{status}": 1 for status in STATUSES})
        write(folder, "evaluate", 3.0, **{"tokens/sampled": 33})
    return store.Run(tmp_path)


def reached(config, run):
    """What is said of the budget after each of the first two passes."""
    summary = Summary(config, run)
    for step in plan(config)[:2]:
        summary.begin(step)
        yield summary.over_budget()


@pytest.mark.parametrize(
    ("budget", "first", "second"),
    [
        ("sampled_tokens=151", None, "budget.sampled_tokens=151 is reached: 300 after round 1"),
        ("sampled_tokens=150", "budget.sampled_tokens=150 is reached: 150 after round 0", "300"),
        ("sampled_tokens=301", None, None),
        ("seconds=20.5", None, "budget.seconds=20.5 is reached: 21 after round 1"),
        ("seconds=11", "budget.seconds=11.0 is reached: 11 after round 0", "21"),
        ("cost=0.07", "budget.cost=0.07 is reached: 0.11 after round 0", "0.21"),  # 36 an hour
        ("cost=0.15", None, "budget.cost=0.15 is reached: 0.21 after round 1"),
        ("rounds=2", None, "budget.rounds=2 is reached: 2 after round 1"),
        ("rounds=null", None, None),
    ],
)
def test_what_is_counted(two_rounds, budget, first, second):
    config = compose([f"budget.{budget}", "rounds=3", "hardware.price_per_hour=36"])
    for said, expected in zip(reached(config, two_rounds), (first, second), strict=True):
        assert (said is None) if expected is None else (said is not None and expected in said)


def test_a_round_of_several_passes_is_one_round(tmp_path):
    config = compose(["budget.rounds=1", "rounds=3", "method.parts=2"])
    assert list(reached(config, store.Run(tmp_path))) == [None, "budget.rounds=1 is reached: 1 after round 0.1"]


def test_resume_changes_budgets_and_nothing_else():
    config = compose(["budget.seconds=10"])
    assert run.with_budget(config, ["budget.seconds=null", "budget.sampled_tokens=1e6"]).budget.model_dump() == {
        "sampled_tokens": 1_000_000,
        "seconds": None,
        "rounds": None,
        "cost": None,
    }
    assert run.with_budget(config, []) is config
    for word, said in (("rounds=9", "resume takes budget.sampled_tokens"), ("budget.x=1", "budget.x: unknown key")):
        with pytest.raises(ConfigError, match=said):
            run.with_budget(config, [word])
    with pytest.raises(ConfigError, match=r"budget\.cost=5: needs hardware\.price_per_hour"):
        run.with_budget(config, ["budget.cost=5"])
    with pytest.raises(ConfigError, match=r"budget\.rounds=0: input should be greater"):
        run.with_budget(config, ["budget.rounds=0"])


def test_a_run_stops_is_killed_and_goes_on_with_a_higher_budget(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert _main(["run", *SMALL, "rounds=3", "budget.rounds=1", f"hydra.run.dir={folder}"]) == 0
    said = capfd.readouterr().err
    assert "stopped (budget.rounds=1 is reached: 1 after round 0)" in said
    assert "selfimprove resume run budget.rounds=2" in said
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], len(summary["rounds"])) == ("stopped", 1)
    trained = store.read_json(folder / "rounds/000/train.manifest.json")

    spent = run.resume(folder)  # nothing is left of the budget: it says so, and does nothing
    assert "budget.rounds=1 is reached" in spent["reason"]
    assert not (folder / "rounds/001").exists()

    words = ["resume", str(folder), "budget.rounds=null", "budget.sampled_tokens=1500"]
    process = Command(tmp_path, environment_of(tmp_path), words)
    wait_for((folder / "rounds/001/generate.manifest.json").exists, process)
    process.kill()
    process.communicate()
    assert yaml.safe_load((folder / "config.yaml").read_text())["budget"]["sampled_tokens"] == 1500

    summary = run.resume(folder)  # the tokens of before the kill count: about 1,100 a round
    assert summary["reason"].startswith("budget.sampled_tokens=1500 is reached"), summary
    assert summary["final"]["n"] == HELDOUT
    sampled = [row["tokens"]["sampled"] for row in summary["rounds"]]
    assert sum(sampled[:-1]) < 1500 <= sum(sampled)
    assert store.read_json(folder / "rounds/000/train.manifest.json") == trained
