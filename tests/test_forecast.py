"""Forecasts: of a whole run by small ones (`doctor --probe`), and of the rest of a run by its first round."""

import math

import pytest

from selfimprove import forecast, integrity, store
from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.errors import ConfigError, Damaged
from selfimprove.forecast import CHANGE, SPEED, Work, expect
from selfimprove.plan import Pass
from selfimprove.probing import Probe, _grown, _in_a_pass, _next, _spaced, probe, read, small_runs
from selfimprove.probing import forecast as forecast_of
from selfimprove.report import expected
from selfimprove.report.expected import Expected
from selfimprove.report.html import _forecast as table_of
from selfimprove.report.runs import RunData
from selfimprove.report.statistics import Z
from tests.waiting import PATIENCE


def work(phase, number, problems, seconds, once=0.0, stage="", **tokens):
    return Work((stage, phase), number, Pass(0, 0), problems, seconds, tokens, once)


def of(works, phase, problems, times=1.0, rounds=3, spread=0.0):
    found = expect(works, {("", phase): (problems, times)}, rounds, spread)
    return found.seconds[phase], found.tokens


def test_seconds_lie_between_the_slope_of_two_small_runs_and_the_average_of_the_larger():
    works = [work("generate", run, n, 1 + 0.1 * n, sampled=20.0 * n) for run, n in enumerate((8, 64))]
    seconds, tokens = of(works, "generate", 512, times=3, rounds=3)
    further, average = 3 * (1 + 51.2), 3 * 7.4 * 8
    assert seconds.value == pytest.approx((further + average) / 2)
    assert seconds.low == pytest.approx(further / math.exp(Z * math.hypot(CHANGE, SPEED)))
    assert seconds.high == pytest.approx(average * math.exp(Z * math.hypot(CHANGE, SPEED)))
    assert tokens["sampled"].value == pytest.approx(3 * 20 * 512)
    assert tokens["sampled"].high == pytest.approx(3 * 20 * 512 * math.exp(Z * CHANGE))
    wider, _ = of(works, "generate", 512, times=3, rounds=3, spread=0.3)
    assert wider.value == seconds.value
    assert wider.low < seconds.low
    assert of(works, "generate", 64)[0].value == pytest.approx(7.4)


def test_what_does_not_grow_with_the_problems_is_not_scaled():
    fixed = [work("train", run, n, 5.0 + 0.001 * n, trained=1000.0) for run, n in enumerate((8, 64))]
    seconds, tokens = of(fixed, "train", 500, rounds=1)
    assert seconds.value == pytest.approx(5.064)
    assert tokens["trained"].value == 1000
    rows = [work("train", run, n, 2 + 0.01 * n, trained=10.0 * n) for run, n in enumerate((8, 64))]
    assert of(rows, "train", 640)[1]["trained"].value == pytest.approx(6400)
    assert of([work("handover", 0, 8, 0.5)], "handover", 500, times=4)[0].value == pytest.approx(2)


def test_what_is_done_once_is_counted_once():
    works = [work("evaluate", 0, 1, 9.0), work("evaluate", 0, 1, 1.0), work("evaluate", 1, 10, 1.0)]
    assert of(works, "evaluate", 10, times=4)[0].value == pytest.approx(8 + 4)
    works = [work("train", 0, 1, 1.0, once=6.0, trained=10.0), work("train", 1, 10, 1.0, trained=10.0)]
    assert of(works, "train", 10, times=3)[0].value == pytest.approx(6 + 3)
    assert of(works, "train", None, times=3)[0].value == pytest.approx(3)  # of a run that has begun


def test_the_problems_of_a_pass_are_known_for_parts_rules_and_attempts_of_other_stages(tmp_path):
    config = compose(["method=score", "dataset.train_size=400"])
    sizes = {"train": 400, "dev": 0, "test": 500, "also": 0}
    small = Probe(config, [(tmp_path, sizes | {"train": 100}, 1.0)], sizes, 0.0)
    works = [work("generate", 0, 16, 1.0, stage="one")]
    assert _in_a_pass(small, works, "one") == 16  # drawn, `count` of them
    halved = Probe(config, [(tmp_path, sizes | {"train": 4}, 1.0)], sizes, 0.0)
    assert _in_a_pass(halved, [work("generate", 0, 4, 1.0, stage="one")], "one") == 16
    parts = Probe(compose(["method=grpo", "method.parts=8"]), small.runs, sizes, 0.0)
    assert _in_a_pass(parts, [], "") == 50


def test_the_next_small_run_fits_the_time_that_is_left():
    assert _next([(1, 2.0)], 500, 40) == 8
    assert _next([(1, 10.0)], 500, 40) == 4
    assert _next([(1, 50.0)], 500, 40) == 0
    assert _next([(1, 1.0)], 1, 40) == 0
    assert _next([(1, 1.0), (8, 2.0)], 20, 40) == 20
    assert _next([(8, 4.0), (64, 20.0)], 500, 30) == 97
    assert _next([(8, 4.0), (64, 20.0)], 500, 22) == 0
    spent = {"learn": [(1, 9.0), (8, 10.0)], "test": [(1, 0.1), (8, 0.2)]}
    assert _grown(spent, {"learn": 500, "test": 500}, 30) == {"learn": 22, "test": 64}
    assert _grown(spent, {"learn": 8, "test": 500}, 30) == {"learn": 8, "test": 64}
    assert _grown(spent, {"learn": 500, "test": 500}, 12) is None
    assert _grown({"learn": [(1, 1.0)], "test": [(1, 0.1)]}, {"learn": 1, "test": 1}, 30) == {"learn": 1, "test": 1}
    assert _grown({"learn": [(1, 0.0)], "test": [(1, 4.0)]}, {"learn": 0, "test": 24}, 30) == {"learn": 1, "test": 8}
    assert _spaced(list(range(10)), 4) == [0, 2, 5, 7]


SMALL = ["dataset.levels=[2]", "dataset.heldout_size=3", "model.max_tokens=24", "verify.workers=1"]


@pytest.mark.parametrize(
    "words",
    [
        ["method=rejection_sampling", "dataset.train_size=3", "rounds=2"],
        ["method=dser", "dataset.train_size=0", "method.generate.chains=2", "method.generate.iterations=2"],
    ],
)
def test_small_runs_tell_of_every_phase(tmp_path, words):
    small_runs([*SMALL, *words], str(tmp_path), PATIENCE, 0.0)
    found = read([*SMALL, *words], tmp_path)
    assert [sizes["test"] for _, sizes, _ in found.runs][:1] == [1]
    cost, disk = forecast_of(found)
    assert disk > 0
    phases = {"solver", "baseline"} if "method=dser" in words else {"generate", "verify", "train", "evaluate"}
    assert phases < cost.seconds.keys()
    for each in (*cost.tokens.values(), *cost.seconds.values()):
        assert each.low <= each.value <= each.high


def test_what_cannot_be_forecast_is_said_in_a_line(capsys, tmp_path):
    assert _main(["doctor", "--probe", "method=nope"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(ConfigError, match="the probe was refused: nope"):
        probe(["nope=1"], tmp_path, PATIENCE)


# Of a run that has begun


@pytest.mark.parametrize(
    ("words", "after"),
    [
        (["rounds=3"], 1),
        (["rounds=3", "method.parts=4"], 4),
        (["rounds=1"], None),
        (["rounds=3", "budget.rounds=1"], None),
        (["method=grpo", "rounds=1"], 4),
        (["method=score", "rounds=1"], 9),  # the first stage has 8 passes
    ],
)
def test_when_a_run_says_what_is_left(words, after):
    assert forecast.due(compose(words)) == after


SIZES = {"train": 10, "dev": 0, "test": 5, "also": 0}


@pytest.fixture
def folder(tmp_path):
    """The manifests of two of three rounds; the second took twice as long."""
    for number in (-1, 0, 1):
        path = tmp_path / (f"rounds/{number:03d}" if number >= 0 else "base")
        where = {"round": number, "pass": number}
        for phase, seconds, metrics in (
            ("generate", 4.0, {"tokens/sampled": 100, "tokens/prompt": 50}),
            ("train", 2.0, {"tokens": 70, "seconds": 2.0}),
            ("evaluate", 1.0, {"tokens/sampled": 33}),
        ):
            if number >= 0 or phase == "evaluate":
                took = seconds * (1 + (number == 1))
                manifest = {"phase": phase, "where": where, "metrics": metrics, "seconds": took, "outputs": {}}
                store.write_json(path / f"{phase}.manifest.json", manifest)
    return tmp_path


def test_the_rest_is_expected_to_be_as_the_first_round(folder):
    found = forecast.left(store.Run(folder), compose(["rounds=3"]), SIZES, 1)
    assert found["tokens"]["sampled"][0] == 200
    assert {phase: each[0] for phase, each in found["seconds"].items()} == {"generate": 8, "train": 4, "evaluate": 2}
    assert "left: 0:14 [0:10, 0:20], 200 [" in expected.line(found, None)
    assert "cost 14.00 [" in expected.line(found, 3600)


def test_a_forecast_is_kept_sealed_and_once_and_stands_beside_the_truth(folder):
    config, kept = compose(["rounds=3"]), store.Run(folder)
    assert expected.compared(folder) is None
    assert forecast.keep(kept, config, SIZES, 2) is None
    assert forecast.keep(kept, config, SIZES, 1)
    before = (folder / integrity.FORECAST).read_bytes()
    assert forecast.keep(kept, config, SIZES, 1) is None
    found = expected.compared(folder)
    assert not found.complete
    rows = {name: (each.value, spent) for name, each, spent in found.rows}
    assert rows["tokens sampled"] == (200, 100)
    assert rows["seconds"] == (14, 14)
    assert rows["seconds train"] == (4, 4)
    assert "after round 0: tokens sampled 200" in expected.summed_up(found)
    (table,) = table_of(RunData(folder))
    assert (table["columns"][-1]["label"], len(table["rows"])) == ("so far", len(found.rows))
    (folder / integrity.FORECAST).write_bytes(before.replace(b"200.0", b"300.0"))
    with pytest.raises(Damaged, match=integrity.FORECAST):
        expected.compared(folder)
    assert forecast.keep(kept, config, SIZES, 1)
    assert (folder / integrity.FORECAST).read_bytes() == before


def test_a_stage_that_has_not_run_is_named(folder):
    config = compose(["rounds=3"])
    found = forecast.left(store.Run(folder), config, SIZES, 1) | {"unseen": ["merge"]}
    assert "without merge, which has not run yet" in expected.line(found, None)


def test_sums_of_nothing_are_zero():
    assert expected.total([]) == Expected(0, 0, 0)
