"""What methods can ask of a round: a verifier of groups, passes, a probe that tunes it, effects of statuses."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.session import Session
from selfimprove.types import Example, Trajectory, Verdict
from tests import loop_parts

SIZES = ["dataset.train_size=12", "dataset.heldout_size=4", "hardware.shard=5", "tracker=none", "verify.workers=1"]
SEEN = ["method.filter._target_=tests.loop_parts.seen_statuses", "~method.filter.per_problem"]
ASKS = [
    "method.generate._target_=tests.loop_parts.asks_its_verifier",
    "~method.generate.n",
    "~method.generate.temperature",
]


def start(path, *overrides):
    return run.start(compose([*SIZES, *overrides]), path)


def records(path, kind):
    return list(store.read_records(path, kind))


def test_a_group_verifier_sees_all_of_a_problem_asks_the_policy_and_is_paid_for(tmp_path):
    loop_parts.opened.clear()
    loop_parts.closed.clear()
    summary = start(tmp_path, "rounds=2", "++method.verifier._target_=tests.loop_parts.longest")
    assert loop_parts.opened == [12], "it stays open for later rounds"
    assert len(loop_parts.closed) == 1
    for number in ("000", "001"):
        trajectories = records(tmp_path / "rounds" / number / "trajectories.parquet", Trajectory)
        verdicts = records(tmp_path / "rounds" / number / "verdicts.parquet", Verdict)
        longest: dict[str, int] = {}
        for t in trajectories:
            longest[t.problem_id] = max(longest.get(t.problem_id, 0), len(t.text))
        for t, v in zip(trajectories, verdicts, strict=True):
            assert t.id == v.trajectory_id
            assert (v.status == "correct") == (len(t.text) == longest[t.problem_id])
    for entry in summary["rounds"]:
        metrics = json.loads((tmp_path / "rounds" / f"{entry['round']:03d}" / "metrics.json").read_text())
        assert metrics["verify/calls"] == 12
        assert 0 < metrics["verify/tokens/sampled"] <= 3 * 12
        asked = metrics["generate/tokens/sampled"] + metrics["verify/tokens/sampled"]
        assert entry["tokens"]["sampled"] == asked
    assert not any(v.status not in ("correct", "wrong") for v in verdicts)


def test_answers_are_checked_once_while_others_are_still_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(Session, "cores_are_free", True)  # as with a GPU
    calls = tmp_path / "calls"
    start(
        tmp_path / "run",
        "rounds=1",
        "method.generate._target_=tests.loop_parts.waits_for_a_verdict",
        "~method.generate.n",
        "~method.generate.temperature",
        f"+method.generate.file={calls}",
        "++method.verifier._target_=tests.loop_parts.leaves_a_line",
        f"++method.verifier.file={calls}",
    )
    verdicts = records(tmp_path / "run" / "rounds" / "000" / "verdicts.parquet", Verdict)
    assert len(verdicts) == len(calls.read_text().split()) == 12


def test_a_round_of_several_passes_samples_each_with_what_the_one_before_trained(tmp_path):
    summary = start(tmp_path, "rounds=2", "method.parts=3")
    assert [entry["round"] for entry in summary["rounds"]] == [0, 1]
    assert all(entry["trajectories"] == 12 * 4 for entry in summary["rounds"])
    problems = Counter()
    for number in range(6):
        folder = tmp_path / "rounds" / f"{number // 3:03d}.{number % 3}"
        trajectories = records(folder / "trajectories.parquet", Trajectory)
        assert {t.samples[0].version for t in trajectories} == {number}
        assert all(t.id.startswith(f"r{number // 3}.{number % 3}/") for t in trajectories)
        assert (folder / "evaluation").exists() == (number % 3 == 2)
        problems.update({t.problem_id for t in trajectories})
    assert len(problems) == 12
    assert set(problems.values()) == {2}, "every problem once a round"
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["round"], line.get("part")) for line in logged if line["phase"] == "generate"] == [
        (r, p) for r in range(2) for p in range(3)
    ]
    first = [line["examples"] for line in logged if line["phase"] == "filter" and line["round"] == 0]
    assert summary["rounds"][0]["examples"] == sum(first)


def test_what_a_probe_finds_on_dev_problems_sets_the_round(tmp_path):
    start(
        tmp_path,
        "rounds=1",
        "dataset.dev_size=5",
        "++method.probe._target_=tests.loop_parts.at_two_temperatures",
        "++method.adapt._target_=tests.loop_parts.hottest",
    )
    folder = tmp_path / "rounds" / "000"
    surface = {
        row["temperature"]: row["correct"] for row in pq.read_table(folder / "adapt/surface.parquet").to_pylist()
    }
    dev = records(folder / "adapt" / "trajectories.parquet", Trajectory)
    assert len(dev) == 5 * 4
    assert {t.samples[0].temperature for t in dev} == {0.5, 1.5}
    chosen = min(surface, key=surface.__getitem__)
    assert {t.samples[0].temperature for t in records(folder / "trajectories.parquet", Trajectory)} == {chosen}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["adapt/generate.temperature"] == chosen
    assert metrics["adapt/correct"] == surface[chosen]
    trained_on = {e.problem_id for e in records(folder / "examples.parquet", Example)}
    assert not trained_on & {t.problem_id for t in dev}


def test_a_probe_without_dev_problems_is_refused(tmp_path):
    overrides = [
        "++method.probe._target_=tests.loop_parts.at_two_temperatures",
        "++method.adapt._target_=tests.loop_parts.hottest",
    ]
    with pytest.raises(ConfigError, match=r"dataset\.dev_size"):
        start(tmp_path, *overrides)
    assert not any(tmp_path.iterdir())


def test_a_solver_can_ask_its_verifier(tmp_path):
    start(tmp_path, "rounds=1", *ASKS)
    folder = tmp_path / "rounds" / "000"
    trajectories = records(folder / "trajectories.parquet", Trajectory)
    verdicts = records(folder / "verdicts.parquet", Verdict)
    assert [t.metadata["status"] for t in trajectories] == [v.status for v in verdicts]
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = sum(len(t.samples[0].completion_ids) for t in trajectories)
    assert metrics["generate/tokens/sampled"] > kept, "answers that were tried and not kept are paid for"


@pytest.mark.parametrize("outcomes", ["{wrong:keep}", "{wrong:-1,unparseable:drop,timeout:0.25}"])
def test_what_a_status_does_to_training_is_configured_and_counted(tmp_path, outcomes):
    loop_parts.seen.clear()
    start(
        tmp_path,
        "rounds=1",
        "verify.stop_above=1",
        "++method.verifier._target_=tests.loop_parts.every_status",
        f"verify.outcomes={outcomes}",
        *SEEN,
    )
    (seen,) = loop_parts.seen
    counts = Counter(v.status for v in records(tmp_path / "rounds/000/verdicts.parquet", Verdict))
    metrics = json.loads((tmp_path / "rounds/000/metrics.json").read_text())
    dropped = {"timeout", "error"} if outcomes == "{wrong:keep}" else {"unparseable", "error"}
    assert Counter(status for status, _ in seen) == {s: n for s, n in counts.items() if s not in dropped}
    for status in dropped:
        assert metrics[f"filter/dropped/{status}"] == counts[status] > 0
    assert f"{counts['error']} error" in (tmp_path / "run.log").read_text()
    rewards = dict(seen)
    if outcomes != "{wrong:keep}":
        assert rewards == {"correct": 1.0, "wrong": -1.0, "timeout": 0.25}
    else:
        assert rewards == {"correct": 1.0, "wrong": 0.0, "unparseable": 0.0}


def test_samples_differ_from_round_to_round(tmp_path):
    start(tmp_path, "rounds=2", *SEEN)
    first, second = (records(tmp_path / "rounds" / n / "trajectories.parquet", Trajectory) for n in ("000", "001"))
    assert [t.samples[0].version for t in second] == [0] * len(second), "nothing was trained"
    same = sum(a.samples[0].seed == b.samples[0].seed for a, b in zip(first, second, strict=True))
    assert same == 0


def test_the_base_samples_every_round_where_the_method_says_so_and_training_goes_on(tmp_path):
    """The offline arm: weights of a round are trained from those of the round before, answers are the base's."""
    start(tmp_path, "rounds=2", "method.sampler=base")
    rounds = [tmp_path / "rounds" / n for n in ("000", "001")]
    for folder in rounds:
        trajectories = records(folder / "trajectories.parquet", Trajectory)
        assert {t.samples[0].version for t in trajectories} == {0}
    (greedy,) = {t.samples[0].version for t in records(rounds[1] / "evaluation/trajectories.parquet", Trajectory)}
    assert greedy == 2
