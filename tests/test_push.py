"""`selfimprove push --dry-run`: what would be on the hub, read by the hub's own classes."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from selfimprove.cli import _main
from selfimprove.store import read_json, write_sealed
from tests.conftest import TRAIN, run_here
from tests.report.folders import write_run

TOKEN = "hf_aTokenThatNobodySees"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push") / "run"
    run_here(folder, "rounds=1", "method.generate.n=2")
    known = read_json(folder / "environment.json")
    words = f"/usr/bin/python {Path.home()}/bin/selfimprove run rounds=1 name={TOKEN} model.path={Path.home()}/models/x"
    write_sealed(folder / "environment.json", {**known, "command": f"{words} hydra.run.dir={folder}"})
    return folder


@pytest.fixture
def pushed(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert _main(["push", str(run), "me/better", "--dry-run", str(tmp_path / "out"), "--control", str(run)]) == 0
    return tmp_path / "out"


def test_the_model_card_is_the_runs_summary(run, pushed):
    card = ModelCard.load(pushed / "model" / "README.md")  # raises where the hub's schema is not met
    summary = read_json(run / "summary.json")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", round(100 * summary["final"]["accuracy"], 2))
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "transformers")
    assert card.data.datasets == ["me/better-trajectories"]
    for words in (
        "https://arxiv.org/abs/2312.06585",
        "`arithmetic`",
        f"{100 * summary['final']['accuracy_low']:.1f}, {100 * summary['final']['accuracy_high']:.1f}]",
        f"| sampled tokens | {summary['rounds'][0]['tokens']['sampled']:,} |",
        "    selfimprove run rounds=1 name=<removed> model.path=~/models/x",
        "| `control=None`, seed 0 |",
    ):
        assert words in card.text, words


def test_the_policy_loads_and_leaves_out_what_is_ours(pushed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(pushed / "model").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(pushed / "model").chat_template
    assert not (pushed / "model" / "handover.json").exists()


def test_the_answers_are_a_data_set_of_training_problems_alone(pushed, tmp_path):
    from datasets import load_dataset

    folder = pushed / "trajectories"
    card = DatasetCard.load(folder / "README.md")
    (split,) = card.data.to_dict()["configs"][0]["data_files"]
    rows = load_dataset("parquet", data_files=str(folder / split["path"]), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 2 * TRAIN
    assert {row["status"] for row in rows} <= {"correct", "wrong", "unparseable"}
    problems = {row["problem"] for row in rows}
    assert len(problems) == TRAIN
    assert rows[0]["prompt"][0]["role"] in ("system", "user")
    assert f"{2 * TRAIN} (" in card.text
    assert yaml.safe_load((folder / "run" / "config.yaml").read_text())["method"]["name"] == "rejection_sampling"


def test_no_token_and_no_home_is_in_any_file(pushed):
    for file in pushed.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert TOKEN.encode() not in text, file
            if file.suffix in (".md", ".json", ".yaml"):
                assert str(Path.home()).encode() + b"/" not in text, file
    table = pq.read_table(pushed / "trajectories" / "data" / "train.parquet")
    assert TOKEN not in json.dumps(table.to_pylist())


def test_what_cannot_be_published_is_refused_in_a_line(run, tmp_path, capsys, monkeypatch):
    def said(*words):
        assert _main(["push", *map(str, words)]) == 2
        return capsys.readouterr().err

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "nobody is logged in" in said(run, "me/x")
    assert "me/x/y" in said(run, "me/x/y")
    out = tmp_path / "out"
    assert "only a finished run" in said(
        write_run(tmp_path / "going", [[True], [True]], status="running"), "me/x", "--dry-run", out
    )
    other = write_run(tmp_path / "other", [[True], [True]])
    assert "have different held-out problems" in said(run, "me/x", "--dry-run", out, "--control", other)
    out.mkdir()
    (out / "mine").touch()
    assert "is not empty" in said(run, "me/x", "--dry-run", out)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    weights = copy / "rounds" / "000" / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "model.safetensors" in said(copy, "me/x", "--dry-run", tmp_path / "new")


def test_the_license_of_a_base_is_its_cards_or_has_to_be_said(tmp_path):
    from selfimprove.errors import ConfigError
    from selfimprove.hub.folders import license_of
    from selfimprove.report.runs import RunData

    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    run = RunData(write_run(tmp_path / "run", [[True], [True]], model__name="other", model__path=str(base)))
    with pytest.raises(ConfigError, match="--license"):
        license_of(run)
    (base / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    assert license_of(run) == "mit"


def test_both_folders_are_sent_to_their_repositories(run, tmp_path, capsys, monkeypatch):
    sent = []

    class Api:
        def create_repo(self, name, repo_type, private, exist_ok):
            sent.append((name, repo_type, private))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, repo_id, repo_type, folder_path, commit_message):
            sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())[0]))

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert _main(["push", str(run), "me/better", "--private"]) == 0
    assert capsys.readouterr().out.split() == [
        "https://huggingface.co/me/better",
        "https://huggingface.co/me/better-trajectories",
    ]
    assert sent == [
        ("me/better", "model", True),
        ("me/better", "README.md"),
        ("me/better-trajectories", "dataset", True),
        ("me/better-trajectories", "README.md"),
    ]
