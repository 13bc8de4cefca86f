"""Which problems a run uses: train and dev problems that nearly equal a held-out one, by `overlap.action`."""

import json
import logging

import pytest

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.ready import prepare

HELD = "A baker makes 12 loaves in the morning and twice as many in the afternoon. How many loaves are there by night?"
ALIKE = HELD.replace("makes", "bakes")
OTHER = "A train leaves at noon with {} people and loses one at each of three stops. How many are on it in the end?"


@pytest.fixture
def data(tmp_path):
    """Overrides for 12 problems of a file, of which one is like the held-out one of another file."""

    def rows(*questions):
        return "".join(json.dumps({"question": q, "answer": "36"}) + "\n" for q in questions)

    (tmp_path / "train.jsonl").write_text(rows(*(OTHER.format(n) for n in range(11)), ALIKE))
    (tmp_path / "held.jsonl").write_text(rows(HELD, "What is the square of 6?"))
    files = [f"dataset.path={tmp_path}/train.jsonl", f"dataset.heldout_path={tmp_path}/held.jsonl"]
    return ["dataset=jsonl", *files, "verify.workers=1", "tracker=none"]


def sides(problems):
    return [{p.metadata["question"] for p in problems if p.split in splits} for splits in (("train", "dev"), ("test",))]


@pytest.mark.parametrize("dev", [0, 12])
def test_a_problem_like_a_held_out_one_is_left_out_and_listed(data, dev):
    problems, dropped = prepare(compose([*data, f"dataset.dev_size={dev}"]))
    own, held = sides(problems)
    assert own == {OTHER.format(n) for n in range(11)}
    assert HELD in held
    ((name, reason),) = dropped.items()
    (like,) = [p.id for p in problems if p.metadata["question"] == HELD]
    assert name not in {p.id for p in problems}
    assert reason.startswith(f"like held-out {like}: ")


def test_it_is_kept_and_named_where_it_is_only_to_be_reported(data, caplog):
    with caplog.at_level(logging.WARNING):
        problems, dropped = prepare(compose([*data, "overlap.action=report"]))
    assert ALIKE in sides(problems)[0]
    assert not dropped
    assert "1 of 12 train and dev problems nearly equal a held-out one" in caplog.text


def test_the_run_is_refused_where_that_is_asked(data):
    with pytest.raises(ConfigError, match="1 of 12 train and dev problems nearly equal"):
        prepare(compose([*data, "overlap.action=refuse"]))


def test_what_counts_as_alike_is_configured(data):
    assert not prepare(compose([*data, "overlap.share=0.99"]))[1]


def test_arrays_need_an_engine_that_reads_them_and_the_other_way_round():
    with pytest.raises(ConfigError, match="engine=transformers: dataset=digit_tasks has problems with arrays"):
        prepare(compose(["dataset=digit_tasks", "tracker=none"]))
    with pytest.raises(ConfigError, match="engine=net: dataset=arithmetic has problems without arrays"):
        prepare(compose(["engine=net", "model=digits_vit", "dataset.train_size=2", "dataset.heldout_size=2"]))
