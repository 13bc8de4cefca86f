"""Stages, roles, made problems, memory, supplies and scores: what a method can be made of besides four slots."""

import json
from collections import Counter
from pathlib import Path

import pytest

from selfimprove import run, scores, store
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.plan import plan
from selfimprove.types import Example, Memory, Problem, Trajectory
from tests.forks import drive

SEARCH = f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]"
SIZES = ["dataset.train_size=12", "dataset.heldout_size=8", "hardware.shard=8", "tracker=none", "verify.workers=1"]


def configured(*overrides):
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from selfimprove import config

    with initialize_config_dir(version_base="1.3", config_dir=str(config.CONF)):
        composed = hydra_compose("config", overrides=[SEARCH, *SIZES, *overrides], return_hydra_config=False)
    return config.check(composed)


def records(path, kind):
    return list(store.read_records(path, kind))


def test_passes_are_planned_once_and_their_labels_sort_in_their_order():
    passes = plan(configured("method=two_stages", "rounds=2"))
    assert [p.label for p in passes] == [
        "000.0_ask", "000.1_learn.0", "000.1_learn.1", "001.0_ask", "001.1_learn.0", "001.1_learn.1",
    ]  # fmt: skip
    assert sorted(p.label for p in passes) == [p.label for p in passes]
    assert [p.ends_round for p in passes] == [False, False, True] * 2
    assert [(p.turn, p.turns) for p in passes if p.stage == "learn"] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    first = plan(configured("method=two_stages", "rounds=3", "+method.stages.ask.when=first"))
    assert Counter(p.stage for p in first) == {"ask": 1, "learn": 6}


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("staged")
    run.start(configured("method=two_stages", "rounds=2"), folder)
    return folder


def test_a_stage_learns_from_problems_that_another_made(staged):
    made = records(staged / "rounds/000.0_ask/made.parquet", Problem)
    assert made
    assert all(p.split == "train" and p.id.startswith("r0.ask/") for p in made)
    tried = {t.id for t in records(staged / "rounds/000.0_ask/trajectories.parquet", Trajectory)}
    assert {p.metadata["origin"] for p in made} <= tried
    parts = [records(staged / f"rounds/000.1_learn.{i}/trajectories.parquet", Trajectory) for i in (0, 1)]
    asked = [{t.problem_id for t in part} for part in parts]
    assert asked[0] | asked[1] == {p.id for p in made}
    assert not asked[0] & asked[1]
    assert {t.samples[0].version for t in parts[1]} == {2}, "the part before trained what generates here"


def test_what_a_pass_remembers_the_next_ones_see(staged):
    assert {m.key for m in records(staged / "rounds/000.0_ask/memory.parquet", Memory)} == {"passes", "right"}
    before = records(staged / "rounds/000.0_ask/trajectories.parquet", Trajectory)
    after = records(staged / "rounds/000.1_learn.0/trajectories.parquet", Trajectory)
    later = records(staged / "rounds/001.1_learn.1/trajectories.parquet", Trajectory)
    assert before[0].metadata["memory"] == {}
    assert after[0].metadata["memory"]["passes"] == 1
    assert later[0].metadata["memory"]["passes"] == 2
    assert after[0].metadata["step"] == [0, "learn", 0]
    assert after[0].metadata["length"] == 4
    assert len({t.metadata["seed"] for t in (*before, *after, *later)}) == len(
        {t.id.rpartition("/")[0] for t in (*before, *after, *later)}
    )


def test_figures_of_a_named_stage_carry_its_name(staged):
    metrics = json.loads((staged / "rounds/000.1_learn.1/metrics.json").read_text())
    assert {"ask.make/problems", "ask.remember/memories", "learn.train/loss", "evaluate/accuracy"} <= metrics.keys()
    assert "train/loss" not in metrics
    summary = json.loads((staged / "summary.json").read_text())
    counted = [json.loads(line) for line in (staged / "metrics.jsonl").read_text().splitlines()]
    for row in summary["rounds"]:
        mine = [line for line in counted if line["round"] == row["round"]]
        assert row["examples"] == sum(line["examples"] for line in mine if line["phase"] == "filter")
        assert row["trajectories"] == sum(line["trajectories"] for line in mine if line["phase"] == "generate")
    assert {line["pass"] for line in counted} == {-1, 0, 1, 2, 3, 4, 5}


def test_two_roles_learn_from_the_same_attempts_each_at_its_own_version(tmp_path):
    run.start(configured("method=two_roles", "rounds=2"), tmp_path)
    first = records(tmp_path / "rounds/000.0_solve/trajectories.parquet", Trajectory)
    second = records(tmp_path / "rounds/001.0_solve/trajectories.parquet", Trajectory)
    assert {(s.role, s.version) for t in first for s in t.samples} == {("policy", 0), ("critic", 0)}
    assert {(s.role, s.version) for t in second for s in t.samples} == {("policy", 1), ("critic", 2)}
    assert not (tmp_path / "rounds/000.1_criticise/trajectories.parquet").exists()
    ids = {t.id for t in first}
    assert {e.trajectory_ids[0] for e in records(tmp_path / "rounds/000.1_criticise/examples.parquet", Example)} == ids
    for folder in ("000.0_solve", "000.1_criticise"):
        handed = json.loads((tmp_path / "rounds" / folder / "handover.manifest.json").read_text())["metrics"]
        assert handed["gap"] < 1e-4 < handed["moved"]
    metrics = json.loads((tmp_path / "rounds/000.0_solve/generate.manifest.json").read_text())["metrics"]
    assert metrics["calls@critic"] == 24
    assert metrics["calls"] == 36


@pytest.mark.parametrize(
    ("method", "points"),
    [
        ("two_stages", ["manifest:0/make"]),
        pytest.param("two_stages", ["manifest:1/problems"], marks=pytest.mark.slow),
        pytest.param("two_stages", ["manifest:0/remember"], marks=pytest.mark.slow),
        pytest.param("two_stages", ["manifest:2/generate"], marks=pytest.mark.slow),
        ("two_roles", ["manifest:1/train"]),
        pytest.param("two_roles", ["manifest:0/train"], marks=pytest.mark.slow),
    ],
)
def test_stages_and_roles_survive_kills(tmp_path, method, points):
    drive(tmp_path, f"{SEARCH} method={method} rounds=1", points)


def test_a_score_that_is_a_reward_goes_through_a_run(tmp_path):
    config = configured(
        "rounds=1",
        "++dataset.verifier={_target_:tests.stage_parts.returns}",
        "++dataset.score=return",
        "~dataset.verifier.form",
        "~dataset.verifier.partial",
        "++method.evaluate={_target_:tests.stage_parts.twice}",
        "++method.answer={_target_:selfimprove.verify.answers.last}",
        "++method.figures={_target_:tests.stage_parts.best_so_far}",
        "eval.by=level",
    )
    summary = run.start(config, tmp_path)
    assert summary["unit"] == "return"
    assert summary["base"]["return"] < -1
    assert set(summary["change"]) == {"return", "return_low", "return_high"}
    found = scores.read(tmp_path / "rounds/000/evaluation/scores.parquet")
    assert summary["final"]["return"] == pytest.approx(sum(found.values) / len(found.values))
    assert summary["final"]["return@t1"] == pytest.approx(summary["final"]["return"]), "both turns are the same here"
    assert summary["final"]["evaluations"] == 2
    levels = {p.id: p.metadata["level"] for p in records(tmp_path / "problems.parquet", Problem)}
    assert found.groups == [str(levels[name]) for name in found.problem_ids]
    for level in set(found.groups):
        mine = [v for v, group in zip(found.values, found.groups, strict=True) if group == level]
        assert summary["final"][f"return/level={level}"] == pytest.approx(sum(mine) / len(mine))
    assert "return" in (tmp_path / "run.log").read_text()
    show_everywhere(tmp_path, summary)


def show_everywhere(folder, summary):
    """A score without a scale of 0 to 1 is a number in tables, plots and the report, and not a share."""
    from selfimprove.report.compare import compare, shown
    from selfimprove.report.export import export
    from selfimprove.report.html import _cards, write_report
    from selfimprove.report.runs import RunData

    found = compare([folder])
    table = found.tables[0]
    assert table.title == "Held-out mean return"
    row = dict(zip([label for label, _ in table.columns], table.rows[0], strict=True))
    assert row["final"].value == pytest.approx(summary["final"]["return"])
    assert shown(row["final"], "score").startswith(f"{summary['final']['return']:.4g} [")
    assert {"return_over_rounds.pdf"} <= {path.name for path in export(found, folder / "export")}
    names = [name for name, _, _ in _cards(RunData(folder))]
    assert "final mean return" in names
    assert "final accuracy" not in names
    assert write_report([RunData(folder)], folder / "again.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["method=two_stages", "+method.stages.learn.of=later"],
            r"method\.stages\.learn\.of=later: there is no such stage before",
        ),
        (["method=two_stages", "+method.stages.learn.role=judge"], r"method\.stages\.learn\.role=judge: no such role"),
        (["method=two_stages", "++method.stages.ask.colour=red"], r"method\.stages\.ask\.colour: unknown key"),
        (["method=two_roles", "filter=flipped"], r"filter: method=two_roles has one for its stage solve"),
        (["method=two_stages", "method.stages.learn.parts=0"], r"method\.stages\.learn\.parts=0"),
        (
            ["++method.filter._target_=tests.stage_parts.asks_too_much", "~method.filter.per_problem"],
            r"method\.filter: .* asks for roles",
        ),
        (["++dataset.score=beauty"], r"dataset\.score=beauty: is one of accuracy"),
    ],
)
def test_what_does_not_fit_together_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        configured(*overrides)


def test_a_run_of_an_earlier_version_still_reads(tmp_path):
    from selfimprove import config as configuration

    text = configuration.dump(compose(["method.parts=2"]))
    old = text.replace("  parts: 2", "  refresh: 2") + "on_empty: continue\n"
    (tmp_path / "config.yaml").write_text(old)
    assert configuration.read(tmp_path / "config.yaml").method.parts == 2


def test_figures_by_turn_are_over_the_same_problems():
    from selfimprove.heldout import _by_stage
    from selfimprove.types import Attempt, Verdict
    from selfimprove.units import UNITS

    def group(name, *turns):
        problem = Problem(name, name)
        return [
            Attempt(problem, Trajectory(name, [], {"stage": turn}), Verdict("", status, 0.0)) for turn, status in turns
        ]

    groups = [
        group("p", (1, "correct")),
        group("q", (1, "wrong"), (2, "correct")),
        group("r", (1, "wrong"), (2, "wrong")),
    ]
    figures = _by_stage(iter(groups), UNITS["accuracy"])
    assert figures["accuracy@t1"] == pytest.approx(1 / 3)
    assert figures["accuracy@t2"] == pytest.approx(2 / 3), "a problem that stopped early counts with its last answer"


def test_attempts_that_are_verified_again_need_as_many_parts():
    words = [
        "method=two_roles",
        "+method.stages.solve.parts=2",
        "+method.stages.criticise.verifier._target_=tests.stage_parts.returns",
    ]
    with pytest.raises(ConfigError, match=r"method\.stages\.criticise\.parts must be 2"):
        configured(*words)
