"""Sealed problems, dev problems for choices, and rates chosen on them: what of a data set a run may see."""

import json
import shutil

import numpy as np
import pytest
from yaml import safe_load

from selfimprove import sides, tune
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.evaluation import evaluate_sealed
from selfimprove.ready import prepare
from selfimprove.report import statistics as st
from selfimprove.report import verdict
from selfimprove.report.compare import compare
from selfimprove.report.runs import RunData
from selfimprove.store import write_sealed
from tests.conftest import run_here
from tests.report.folders import problems, write_run

SMALL = ["dataset.train_size=8", "dataset.heldout_size=10", "verify.workers=1", "tracker=none"]


def ids(found, *splits):
    return [problem.id for problem in found if problem.split in splits]


# Sides


def test_sealed_problems_come_behind_the_held_out_ones_and_change_nothing_else():
    plain = sides.load(compose(SMALL).dataset, 0)
    sealed = sides.load(compose([*SMALL, "dataset.sealed_size=5"]).dataset, 0)
    assert [p for p in sealed if p.split != "sealed"] == plain
    assert len(ids(sealed, "sealed")) == 5
    longer = sides.load(compose([*SMALL, "dataset.heldout_size=15"]).dataset, 0)
    assert ids(sealed, "test", "sealed") == ids(longer, "test")


def test_of_a_held_out_side_without_a_size_the_last_are_sealed_and_some_must_stay(tmp_path):
    rows = [json.dumps({"question": f"What is {i} + 1?", "answer": str(i + 1)}) for i in range(10)]
    (tmp_path / "held.jsonl").write_text("\n".join(rows))
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "Two?", "answer": "2"}))
    own = ["dataset=jsonl", f"dataset.path={tmp_path}/train.jsonl", f"dataset.heldout_path={tmp_path}/held.jsonl"]
    plain, sealed = (sides.load(compose([*own, *more]).dataset, 0) for more in ([], ["dataset.sealed_size=4"]))
    assert ids(sealed, "test", "sealed") == ids(plain, "test")
    assert ids(sealed, "sealed") == ids(plain, "test")[-4:]
    with pytest.raises(ConfigError, match=r"dataset.sealed_size=10: the held-out side has 10 problems"):
        sides.load(compose([*own, "dataset.sealed_size=10"]).dataset, 0)


def test_a_train_problem_like_a_sealed_one_is_left_out(tmp_path):
    words = "A baker makes {} loaves in the morning and twice as many in the afternoon. How many are there by night?"
    held = [{"question": "What is the square of 6?", "answer": "36"}, {"question": words.format(12), "answer": "36"}]
    train = [{"question": words.format("12 big"), "answer": "36"}]
    train += [{"question": f"What is the name of the number behind {i}?", "answer": "1"} for i in range(20)]
    for name, rows in (("train", train), ("held", held)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ["dataset=jsonl", f"dataset.path={tmp_path}/train.jsonl", f"dataset.heldout_path={tmp_path}/held.jsonl"]
    own += ["verify.workers=1", "overlap.share=0.5"]
    _, sealed = (prepare(compose([*own, *more])) for more in ([], ["dataset.sealed_size=1"]))
    assert len(ids(sealed[0], "sealed")) == 1
    assert len(sealed[1]) == 1


def test_a_run_for_choices_needs_dev_problems_and_says_whose_accuracy_it_is():
    with pytest.raises(ConfigError, match=r"eval\.side=dev: there is no dev problem"):
        prepare(compose([*SMALL, "eval.side=dev"]))
    config = compose([*SMALL, "eval.side=dev", "dataset.dev_size=6"])
    found, _ = prepare(config)
    assert {p.split for p in sides.evaluated(config, found)} == {"dev"}
    assert config.eval.called == "dev"


# The verdict


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two small runs of the table of probabilities, with 30 sealed problems."""
    folder = tmp_path_factory.mktemp("sealed")
    for seed in (0, 1):
        small = ["experiment=curated_categorical", "rounds=1", "dataset.train_size=20", "dataset.heldout_size=20"]
        run_here(folder / f"s{seed}", *small, "dataset.sealed_size=30", f"seed={seed}", "verify.workers=1")
    return folder


def test_no_answer_to_a_sealed_problem_is_sampled_by_a_run(runs):
    run = RunData(runs / "s0")
    assert len(run.prompts("sealed")) == 30
    assert not set(run.prompts("sealed")) & {name for scores in run.heldout for name in scores}


def test_the_verdict_is_by_sealed_problems_and_a_second_look_is_marked(runs, tmp_path):
    here = shutil.copytree(runs, tmp_path / "runs")
    asked = []

    def evaluate(path):
        asked.append(path.name)
        evaluate_sealed(path)

    plain = compare([here], by="seed")
    found = verdict.with_sealed(plain, evaluate, "selfimprove compare runs --sealed")
    assert asked == ["s0", "s1"]
    assert found.tables[1:] == plain.tables
    assert "First look" in found.tables[0].note
    assert "p of the changes from base" in found.tables[0].note  # no group is the baseline
    again = verdict.with_sealed(plain, evaluate, "selfimprove compare runs --sealed")
    assert asked == ["s0", "s1"]  # what is known is not asked again
    assert again.tables[0].rows == found.tables[0].rows
    assert "LOOK 2: they were first read" in again.tables[0].note
    path = here / "s0" / "sealed" / "final" / "base" / "evaluation" / "scores.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    mended = verdict.with_sealed(plain, evaluate, "x")
    assert asked == ["s0", "s1", "s0"]
    assert mended.tables[0].rows == found.tables[0].rows
    write_sealed(here / "s1" / "sealed" / "policy.json", {"evaluate": "that of an earlier policy"})
    verdict.with_sealed(plain, evaluate, "x")
    assert asked == ["s0", "s1", "s0", "s1"]  # the run went on since


def test_runs_without_sealed_problems_or_with_others_are_refused(runs, tmp_path):
    write_run(tmp_path / "a", [[True, False], [True, True]])
    with pytest.raises(ConfigError, match=r"a has no sealed problems; a run has them with dataset.sealed_size=N"):
        verdict.with_sealed(compare([tmp_path]), evaluate_sealed, "x")


def test_p_values_are_those_of_the_interval_and_corrected_by_holm():
    assert st.p_value(st.Estimate(1.96, 0.0, 3.92, 9)) == pytest.approx(0.05, abs=1e-4)
    assert st.p_value(st.Estimate(-2.5758, -4.5358, -0.6158, 9)) == pytest.approx(0.01, abs=1e-4)
    assert st.p_value(st.Estimate(0.0, -1.0, 1.0, 9)) == 1
    assert st.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert st.holm([0.5, 0.9]) == [1.0, 1.0]


# Rates


def trial(path, method, rate, solved, seed=100, **more):
    dev = problems(4, "dev")
    return write_run(
        path, [[False] * 4, solved], method__name=method, method__train={"learning_rate": rate}, seed=seed,
        heldout=dev, eval__side="dev", **more,
    )  # fmt: skip


def test_each_method_gets_the_rate_that_is_best_on_dev(tmp_path):
    for rate, right in ((1e-5, 1), (3e-5, 3), (1e-4, 3)):
        trial(tmp_path / f"a{rate}", "grpo", rate, np.arange(4) < right)
    for rate, right in ((1e-5, 0), (3e-5, 1), (1e-4, 4)):
        trial(tmp_path / f"b{rate}", "rloo", rate, np.arange(4) < right)
    choices, unit = tune.choose(tmp_path)
    assert [(c.method, c.rate, c.at_edge) for c in choices] == [("grpo", 3e-5, False), ("rloo", 1e-4, True)]
    assert choices[0].means == {1e-5: 0.25, 3e-5: 0.75, 1e-4: 0.75}
    tune.write(choices, unit, tmp_path, tmp_path / "rates.yaml")
    assert safe_load((tmp_path / "rates.yaml").read_text()) == {"grpo": 3e-5, "rloo": 1e-4}
    assert "1e-05: 25.0 %, 3e-05: 75.0 %, 0.0001: 75.0 %" in (tmp_path / "rates.yaml").read_text()


def test_unequal_trials_and_runs_that_saw_held_out_problems_are_refused(tmp_path):
    trial(tmp_path / "a", "grpo", 1e-5, [True] * 4)
    trial(tmp_path / "b", "grpo", 1e-4, [True] * 4)
    trial(tmp_path / "c", "rloo", 1e-5, [True] * 4)
    with pytest.raises(ConfigError, match=r"method=rloo was not tried at learning rate 0.0001 with seed 100"):
        tune.choose(tmp_path)
    trial(tmp_path / "c2", "rloo", 1e-5, [False] * 4)
    with pytest.raises(ConfigError, match=r"method=rloo was tried twice at 1e-05 with seed 100"):
        tune.choose(tmp_path)
    shutil.rmtree(tmp_path / "c2")
    trial(tmp_path / "c3", "rloo", 1e-4, [False] * 4, rounds=7)
    with pytest.raises(
        ConfigError, match=r"the runs differ in rounds: a sweep of rates may differ only in method, rate and seed"
    ):
        tune.choose(tmp_path)
    write_run(tmp_path / "d", [[True], [True]], method__train={"learning_rate": 1e-5})
    with pytest.raises(
        ConfigError, match=r"d: was evaluated on held-out problems; rates are chosen with eval.side=dev"
    ):
        tune.choose(tmp_path)


def test_chosen_rates_are_what_a_method_trains_with_unless_the_user_says_otherwise():
    words = ["method=rloo", "+rates.rloo=0.5"]
    assert compose(words).method.train["learning_rate"] == 0.5
    assert compose([*words, "method.train.learning_rate=0.25"]).method.train["learning_rate"] == 0.25
    assert compose(["method=rloo", "+rates.grpo=0.5"]).method.train["learning_rate"] == 1e-4
