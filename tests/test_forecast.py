"""`selfimprove doctor --probe`: the small run's figures scaled to the whole one's problems."""

import pytest

from selfimprove.cli import _main
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.forecast import PROBLEMS, forecast, probe
from selfimprove.store import read_records
from selfimprove.types import Example, Trajectory
from tests.waiting import PATIENCE

WORDS = ["verify.workers=1", "method.train.epochs=2", "dataset.train_size=160", "rounds=3"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return probe(WORDS, tmp_path_factory.mktemp("probe") / "run", PATIENCE)


def test_tokens_are_those_of_the_second_round_for_as_many_problems(small):
    found = forecast(small, compose(WORDS), train=160, heldout=500)
    last = small.path / "rounds" / "001"
    tried = list(read_records(last / "trajectories.parquet", Trajectory))
    rows = list(read_records(last / "examples.parquet", Example))
    scale = 160 / PROBLEMS * 3
    assert found.tokens["sampled"].value == pytest.approx(scale * sum(t.sampled_tokens for t in tried))
    assert found.tokens["prompt"].value == pytest.approx(scale * sum(t.prompt_tokens for t in tried))
    assert found.tokens["trained"].value == pytest.approx(scale * 2 * sum(row.tokens for row in rows))
    tested = list(read_records(last / "evaluation" / "trajectories.parquet", Trajectory))
    expected = 500 / PROBLEMS * 4 * sum(t.sampled_tokens for t in tested)
    assert found.tokens["sampled in evaluations"].value == pytest.approx(expected)
    for each in (*found.tokens.values(), *found.seconds.values()):
        assert each.low <= each.value <= each.high
    once, again = (each["generate"] for each in small.seconds)
    assert found.seconds["generate"].value == pytest.approx(max(0, once - again) + again * scale)
    assert found.disk > 3 * (last / "policy" / "model.safetensors").stat().st_size
    value, low, high = found.price(3.6)
    assert (low <= value <= high, value) == (True, pytest.approx(sum(e.value for e in found.seconds.values()) / 1000))


def test_what_cannot_be_forecast_is_said_in_a_line(capsys, tmp_path):
    assert _main(["doctor", "--probe", "method=score"]) == 2
    assert "has stages" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the probe was refused: nope"):
        probe(["nope=1"], tmp_path / "run", PATIENCE)
