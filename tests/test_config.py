"""What conf/ says fits the code, and what a user gets wrong is one line."""

import re
import sys

import pytest
import yaml

from selfimprove import config as configuration
from selfimprove.binding import bind
from selfimprove.cli import _main
from selfimprove.config import CONF, compose
from selfimprove.errors import ConfigError

GROUPS = ("model", "hardware", "tracker", "engine", "experiment")
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]
METHODS = [path.stem for path in sorted((CONF / "method").glob("*.yaml"))]
DATASETS = [path.stem for path in sorted((CONF / "dataset").glob("*.yaml"))]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_fits_the_schema(group, choice):
    extra = ["model.path=some/model"] if choice == "other" else []
    assert compose([f"{group}={choice}", *extra], needs=choice not in ("scripted", "mender", "templates"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_composes_and_its_keys_are_its_loaders(dataset):
    extra = ["dataset.path=x"] if dataset in ("jsonl", "parquet") else []
    assert compose([f"dataset={dataset}", *extra], needs=False).dataset.name == dataset


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is(method):
    text = (CONF / "method" / f"{method}.yaml").read_text()
    header = text.split(f"name: {method}")[0]
    assert header.startswith("#"), "a method's file opens with its paper, claim and commands"
    assert "selfimprove run" in header or "selfimprove eval" in header
    loaded = yaml.safe_load(text)
    assert {"title", "paper", "kind", "summary", "needs"} <= set(loaded)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=nope", "method=nope: no such choice; there are .*rejection_sampling"),
        ("nope=1", "nope: unknown key"),
        ("method.generate.m=1", "method.generate.m: unknown key"),
        ("+method.generate.m=1", "method.generate.m: unknown key; .* takes n, temperature, max_tokens"),
        ("+model.depth=1", "model.depth: unknown key"),
        ("rounds=many", "rounds=many: input should be a valid integer"),
        ("rounds=0", "rounds=0: input should be greater than or equal to 1"),
        ("method.generate.n=0", "method.generate.n=0: input should be greater"),
        ("method.generate.temperature=-1", "method.generate.temperature=-1: input should be greater"),
        ("method.train.learning_rate=fast", "method.train.learning_rate=fast: input should be a valid number"),
        ("dataset.verifier._target_=no.such", "dataset.verifier._target_=no.such: no such function"),
        ("dataset=jsonl", "dataset.path: needs a value"),
        ("dataset.train_size=0.5", "dataset.train_size=0.5: input should be a valid integer"),
        ("eval.consistency={heads: [[9]]}", r"eval.consistency.heads.0.1=\[9\]: field required"),
        ("engine=scripted", "method=rejection_sampling needs weights, which engine=scripted .* does not give"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=gsm8k", "dataset.heldout_share=2"], "dataset.heldout_share=2: input should be less than or equal"),
        (["dataset=colouring", "dataset.train_size=-1"], "dataset.train_size=-1: input should be greater than or"),
        (["dataset=gsm8k", "+dataset.nope=1"], "dataset.nope: unknown key; .* takes .*heldout_share"),
        (
            ["method=mcts_dpo", "control=shuffled_verdicts"],
            "control=shuffled_verdicts: .* asks its verifier as it goes",
        ),
        (["dataset=alpacaeval", "verifier=math"], "compares with gold answers, which dataset=alpacaeval does not give"),
    ],
)
def test_what_does_not_go_together_is_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)


def test_the_number_that_yaml_takes_for_text_is_a_number():
    node = compose(["method.train.learning_rate='1e-3'"]).method.train
    assert node["learning_rate"] == "1e-3"
    assert bind(node, "method.train").keywords["learning_rate"] == 0.001


def test_a_slot_of_the_command_line_replaces_the_methods():
    config = compose(["verifier=math"])
    assert config.training_verifier["_target_"] == "selfimprove.verify.math.check"
    assert config.dataset.verifier["_target_"] == "selfimprove.verify.arithmetic.check"


def test_secrets_do_not_reach_the_dump(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    config = compose(["name=run-0123456789abcdef", "+tracker.api_key=hunter2hunter2"])
    text = configuration.dump(config)
    assert "0123456789abcdef" not in text
    assert "hunter2" not in text
    assert yaml.safe_load(text)["model"]["max_tokens"], "a key that only sounds like a secret stays"


def test_a_dumped_configuration_reads_back_the_same(tmp_path):
    config = compose(["method=iterative_dpo"])
    (tmp_path / "config.yaml").write_text(configuration.dump(config))
    assert configuration.read(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "method=nope"], "method=nope: no such choice"),
        (
            ["run", "rounds=x"],
            "rounds=x: input should be a valid integer.* \\(conf/config.yaml, or the command line\\)",
        ),
        (["run", "method.filter.per_problem=0"], "per_problem=0.*\\(conf/method/rejection_sampling.yaml"),
        (["run", "dataset.train_size=100000000"], "dataset.train_size"),
        (["resume", "nowhere"], "nowhere: no run folder"),
        (["eval", "nowhere", "nope=1"], "nope: unknown key"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2_before_a_model_loads(cli, tmp_path, arguments, message):
    modules, (said,) = imported(cli(*arguments, check=2, **IMPORTS))
    assert not modules & {"torch", "transformers", "datasets", "scipy"}, "which take seconds"
    assert re.search(message, said)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (None, [], "data.jsonl cannot be read"),
        (['{"question": "a", "answer": "1"}', '{"q": "b"}'], [], "data.jsonl:2: no field 'question'"),
        (['{"question": "a", "answer": "1"}', "{"], [], "data.jsonl:2"),
        (['{"id": 1, "question": "a", "answer": "1"}'] * 2, ["dataset.id_field=id"], "id '1' comes twice"),
        (
            [f'{{"question": "{q}", "answer": "1"}}' for q in "abcdefgh"],
            ["dataset.heldout_path=data.jsonl", "overlap.action=refuse"],
            "8 of 8 train and dev problems nearly equal a held-out one",
        ),
        (
            [f'{{"question": "what is {q}", "answer": "\\\\frac{{1}}{{"}}' for q in "abcdefghijklmnopqrst"],
            [],
            "20 of 20 gold answers fail their own verifier",
        ),
    ],
    ids=["no file", "no field", "no JSON", "same id", "overlap", "gold"],
)
def test_a_data_file_that_cannot_be_used_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capfd, rows, overrides, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    if rows is not None:
        (tmp_path / "data.jsonl").write_text("\n".join(rows) + "\n")
    assert _main(["run", "dataset=jsonl", "dataset.path=data.jsonl", *overrides, "verify.workers=1"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("word", "shown"), [("--help", "resume"), ("methods", "rejection_sampling")])
def test_help_and_the_list_of_methods_load_nothing_that_takes_long(cli, word, shown):
    done = cli(word, **IMPORTS)
    assert shown in done.stdout
    assert not imported(done)[0] & {"torch", "hydra", "numpy", "pyarrow"}


IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}  # Python says on standard error what it imports


def imported(done):
    """The modules that a process imported, and what else it said on standard error."""
    lines = done.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "selfimprove.cli" in modules
    return modules, [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize("word", ["filter=null", "train=null"])
def test_a_slot_that_is_set_to_null_is_the_methods_own(word):
    assert compose([word]) == compose([])
