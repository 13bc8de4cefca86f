"""What a user gets wrong: exit code 2, one line that names file or key, no traceback, and nothing left behind.

The tables are of kinds, with a few of each. What can be asked without Hydra is asked so, for composing takes a third of
a second; the rest goes through the command line, in this process.
"""

import copy
import json
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from selfimprove import cli
from selfimprove import config as configuration
from selfimprove.datasets.jsonl import load
from selfimprove.errors import ConfigError
from selfimprove.fit import require_files
from selfimprove.policy.models import require_device

TINY = Path(configuration.__file__).parent / "models" / "tiny"
SMALL = ["dataset.train_size=8", "dataset.heldout_size=4", "rounds=1", "tracker=none", "verify.workers=1"]


@pytest.fixture(scope="module")
def raw():
    """The default configuration as plain data."""
    config = configuration.compose(["+method.train.warmup_ratio=0.1", "+method.train.max_grad_norm=1"])
    return config.model_dump(by_alias=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files named for what is wrong with them."""
    folder = tmp_path_factory.mktemp("files")
    rows = [{"question": f"What is {i} + {i * 7 % 13}?", "answer": str(i + i * 7 % 13)} for i in range(30)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    first = '{"question": "What is 1 + 1?", "answer": '
    contents: dict[str, str | bytes] = {
        "good.jsonl": lines,
        "empty.jsonl": "",
        "blank.jsonl": "\n\n  \n",
        "list.jsonl": json.dumps(rows),
        "table.csv": "question,answer\na,1\n",
        "deep.jsonl": f"{first}{'[' * 100_000}{']' * 100_000}}}\n",
        "nested.jsonl": f'{first}"2", "more": {"[" * 300}{"]" * 300}}}\n',
        "digits.jsonl": f"{first}{'9' * 5000}}}\n",
        "nan.jsonl": f"{first}NaN}}\n",
        "infinity.jsonl": f"{first}1e999}}\n",
        "surrogate.jsonl": '{"question": "What is \\ud800 + 1?", "answer": "1"}\n',
        "surrogate_beside.jsonl": f'{first}"2", "note": "\\udfff"}}\n',
        "nul.jsonl": '{"question": "What is \\u0000 + 1?", "answer": "1"}\n',
        "utf16.jsonl": lines.encode("utf-16"),
        "latin1.jsonl": '{"question": "größer?", "answer": "1"}\n'.encode("latin-1"),
        "cut.parquet": b"PAR1 and no more",
        "text.PARQUET": "hello",
        "cut.jsonl.gz": b"\x1f\x8b\x08 and no more",
        "tool.jsonl": '{"question": [{"role": "tool", "content": "x"}], "answer": "1"}\n',
        "answered.jsonl": '{"question": [{"role": "assistant", "content": "x"}], "answer": "1"}\n',
        "texts.jsonl": '{"question": ["a", "b"], "answer": "1"}\n',
        "object.jsonl": '{"question": "Who?", "answer": {"style": "rule", "ground_truth": "1"}}\n',
        "shards/a-00.jsonl": lines,
        "shards/a-01.jsonl": lines,
        "full/file.txt": "x",
        "no_yaml/config.yaml": "a: [",
        "binary/config.yaml": b"\x00\x01",
        "no_utf8/config.yaml": "a: ö".encode("latin-1"),
        "no_keys/config.yaml": "- a\n",
        "no_run/config.yaml": "a: 1\n",
        "outputs.jsonl": '{"id": "a", "gold": "1", "completion": "The answer is 1."}\n',
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "nothing").mkdir()
    for name, change in MODELS.items():
        shutil.copytree(TINY, folder / name)
        change(folder / name)
    return folder


def renamed(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def of_another_size(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 999}))


def without_tokenizer(model: Path) -> None:
    for file in model.glob("*token*"):
        file.unlink()


MODELS = {  # what is wrong with a model's folder
    "no_config": lambda model: (model / "config.json").unlink(),
    "cut_config": lambda model: (model / "config.json").write_text("{"),
    "list_config": lambda model: (model / "config.json").write_text("[]"),
    "no_weights": lambda model: (model / "model.safetensors").unlink(),
    "empty_weights": lambda model: (model / "model.safetensors").write_bytes(b""),
    "cut_weights": lambda model: (model / "model.safetensors").write_bytes(
        (TINY / "model.safetensors").read_bytes()[:90_000]
    ),
    "noise_weights": lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 100),
    "missing_shard": renamed,
    "other_size": of_another_size,
    "no_tokenizer": without_tokenizer,
    "cut_tokenizer": lambda model: (model / "tokenizer.json").write_text("{"),
}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("method.train.learning_rate", ["nan", float("nan"), float("inf"), 1e30, -1, 0, True, "fast", None]),
        ("method.train.epochs", [float("nan"), float("inf"), -1, 0, 1e9]),
        ("method.train.batch_size", [0, -4, 1.5, True, 10**12]),
        ("method.train.warmup_ratio", [float("nan"), -0.1, 2]),
        ("method.train.max_grad_norm", [float("nan"), -1]),
        ("method.train.schedule", ["step"]),
        ("method.generate.n", [0, -1, 1.5, True, 10**9]),
        ("method.generate.temperature", [float("nan"), float("inf"), -0.1, True]),
        ("method.generate.max_tokens", [0, 10_000]),
        ("method.filter.per_problem", [0, True]),
        ("seed", [True, -1, 1.5, 2**70]),
        ("rounds", [True, 0, float("nan"), 10**9]),
        ("name", ["", " ", ".", "..", "../x", "a/b", "/tmp", "x" * 300, "a\nb", 1]),
        ("model.max_length", [0, 1, 12]),
        ("model.max_tokens", [0, 600]),
        ("model.dtype", ["float8"]),
        ("model.lora", [True, {"r": 0, "alpha": 8}, {"r": 10**9, "alpha": 8}]),
        ("model.learning_rate.sft", [float("nan"), -1, 5]),
        ("eval.samples", [-1, 10**9]),
        ("eval.temperature", [float("nan"), float("inf"), -1]),
        ("eval.max_tokens", [0, 100_000]),
        ("verify.seconds", [float("nan"), float("inf"), 0, -1, 1e300]),
        ("verify.memory_mb", [0, 1]),
        ("verify.workers", [0, 100_000]),
        ("verify.stop_above", [float("nan"), 2]),
        ("verify.drop_gold_above", [-1]),
        ("verify.drop_long_above", [1.5]),
        ("verify.outcomes", [{"wrong": float("nan")}, {"wrong": True}, {"correct": "keep"}]),
        ("overlap.share", [float("nan"), 2]),
        ("overlap.ngram", [0]),
        ("budget.seconds", [float("nan"), float("inf"), 0]),
        ("handover.tolerance", [float("nan"), 0]),
        ("hardware.max_batch", [0]),
        ("hardware.micro_batch", [True]),
        ("dataset.train_size", [-1, 0.5, True]),
        ("dataset.name", ["../x"]),
        ("group", ["\udcff"]),
        ("engine._target_", ["os.system", "no.such"]),
        ("tracker._target_", ["os.getcwd"]),
    ],
)
def test_values_out_of_range(raw, key, values):
    for value in values:
        changed = copy.deepcopy(raw)
        OmegaConf.update(node := OmegaConf.create(changed, flags={"allow_objects": True}), key, value)
        with pytest.raises(ConfigError) as refused:
            configuration.check(OmegaConf.to_container(node))
        assert key in str(refused.value), (value, str(refused.value))
        assert "\n" not in str(refused.value)


def test_options_of_training_that_do_not_go_together(raw):
    changed = copy.deepcopy(raw)
    changed["train"] = {"_target_": "selfimprove.train.dpo.dpo", "learning_rate": 1e-5, "label_smoothing": 0.1}
    with pytest.raises(ConfigError, match=r"train\.label_smoothing is 0\.1 and train\.loss is sigmoid"):
        configuration.check(changed)
    changed["train"] |= {"label_smoothing": 0.0, "beta": 0}
    with pytest.raises(ConfigError, match=r"train\.beta=0: input should be greater than 0"):
        configuration.check(changed)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.jsonl", "No such file"),
        ("good.jsonl/x", "Not a directory"),
        ("nothing", "is a folder; it must be one file"),
        ("shards", "it has 2, the first is a-00.jsonl"),
        ("empty.jsonl", "no row"),
        ("blank.jsonl", "no row"),
        ("list.jsonl", ":1: a JSON object is needed on each line, and this is a list"),
        ("table.csv", ":1: not JSON"),
        ("deep.jsonl", ":1: is nested too deeply"),
        ("nested.jsonl", ":1: is nested too deeply"),
        ("digits.jsonl", ":1: cannot be read (Exceeds the limit"),
        ("nan.jsonl", ":1: field 'answer' (dataset.answer_field) is no number"),
        ("infinity.jsonl", ":1: field 'answer' (dataset.answer_field) is no number"),
        ("surrogate.jsonl", ":1: has half a surrogate pair"),
        ("surrogate_beside.jsonl", ":1: has half a surrogate pair"),
        ("nul.jsonl", ":1: field 'question' (dataset.prompt_field) is a text with a NUL"),
        ("utf16.jsonl", "it is UTF-16"),
        ("latin1.jsonl", "it is no UTF-8 text"),
        ("cut.parquet", "cannot be read as Parquet"),
        ("text.PARQUET", "cannot be read as Parquet"),
        ("cut.jsonl.gz", "cannot be read"),
        ("tool.jsonl", "message 1 has the role 'tool'"),
        ("answered.jsonl", "the last message must be the user's"),
        ("texts.jsonl", "is a list, and not of messages"),
        ("object.jsonl", "answer.ground_truth"),
        ("/dev/zero", "is a device or a pipe"),
    ],
)
def test_files_of_problems(files, name, said):
    with pytest.raises(ConfigError) as refused:
        load(path=str(files / name), prompt="{question}", seed=0)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "has no config.json"),
        ("no_config", "has no config.json"),
        ("cut_config", "config.json cannot be read"),
        ("list_config", "it is not a JSON object"),
        ("no_weights", "has no weights (model.safetensors or pytorch_model.bin)"),
        ("empty_weights", "model.safetensors cannot be read"),
        ("cut_weights", "model.safetensors cannot be read"),
        ("noise_weights", "model.safetensors cannot be read"),
        ("missing_shard", "model-2.safetensors cannot be read (it is not there)"),
        ("other_size", "they are of two models"),
        ("no_tokenizer", "has no tokenizer"),
    ],
)
def test_models_that_lack_something(files, name, said):
    with pytest.raises(ConfigError) as refused:
        require_files(files / name)
    assert said in str(refused.value)
    assert refused.value.key == "model.path"


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    require_device("cpu")
    with pytest.raises(ConfigError, match=r"hardware\.device=cuda: PyTorch finds no GPU on this machine"):
        require_device("cuda")


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command line in an empty folder, in this process: its one line on standard error, of exit code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*words: str) -> str:
        assert cli._main([*map(str, words)]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("selfimprove: ")
        assert not list(tmp_path.iterdir())
        return line

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["=1"], "=1: the key is missing"),
        (["rounds"], "KEY=VALUE is needed"),
        (["nope=1"], "nope: unknown key"),
        (["model=null"], "model=null: a run needs one"),
        (["tracker=null"], "tracker=none"),
        (["model=1"], "model=1: the name of one choice is needed"),
        (["dataset=[gsm8k,asdiv]"], "the name of one choice is needed"),
        (["~hardware"], "a run needs one"),
        (["hydra=null"], "Config group override"),
        (["dataset.verifier={}"], "changes nothing"),
        (["dataset.path=a=b.jsonl"], "\"dataset.path='a=b.jsonl'\""),
        (["dataset.path=größe.jsonl"], "\"dataset.path='größe.jsonl'\""),
        (["dataset.path=a,b.jsonl"], "\"dataset.path='a,b.jsonl'\"; a list is dataset.path=[a,b.jsonl]"),
        (["seed=range(1,3)"], "is a sweep"),
        (["rounds=${rounds}"], "Recursive interpolation"),
        (["name=../../../escape"], "name=../../../escape: must be the name of a folder"),
        ([f"name={'x' * 300}"], "must be the name of a folder"),
        (["hydra.run.dir="], "hydra.run.dir: is empty"),
        (["hydra.run.dir=/dev/null/x"], "hydra.run.dir: /dev/null/x cannot be made (Not a directory)"),
        (["hydra.run.dir=/proc/x"], "hydra.run.dir: /proc/x cannot be made"),
        (["hydra.run.dir=FILES/full"], "holds 'file.txt', and a run needs a folder of its own"),
        (["hydra.run.dir=FILES/good.jsonl"], "cannot be made (File exists)"),
        (["--foo"], "unrecognized arguments: --foo"),
        (["--cfg=nope"], "invalid choice: 'nope'"),
        (["--resolve"], "--resolve"),
        (["--experimental-rerun=x"], "selfimprove resume"),
        (["hydra.sweep.dir=/dev/null/x", "-m"], "hydra.sweep.dir=/dev/null/x"),
        (["rounds=0", "seed=0,1", "-m"], "rounds=0: input should be greater"),
        (["hardware.training.strategy=zero3"], "strategy=zero3: divides a model among processes"),
        (["model.path=/nonexistent"], "model '/nonexistent' cannot be loaded"),
        (["model=other", "model.path=FILES/cut_weights"], "model.safetensors cannot be read"),
        (["model=other", "model.path=FILES/cut_tokenizer"], "the tokenizer in"),
        (["verifier=code"], "gold answers of training fail it"),
        (["verifier=choice"], "metadata has no list `options`"),
        (["dataset=jsonl", "dataset.path=FILES/nan.jsonl"], "nan.jsonl:1: field 'answer'"),
        (
            ["dataset=jsonl", "dataset.path=FILES/good.jsonl", "dataset.heldout_path=FILES/good.jsonl"],
            "has no train problem left (of 30 left out, row-",
        ),
        (
            ["dataset=jsonl", "dataset.path=FILES/good.jsonl", "model.max_length=20", "model.max_tokens=9"],
            "30 of 30 prompts do not fit the model's window (more than verify.drop_long_above=0.1)",
        ),
        (["dataset=jsonl", "dataset.path=FILES/good.jsonl", "verifier@dataset.verifier=code"], "holds no tests"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_command_lines_of_run(files, refused, words, said):
    sized = SMALL[2:] if "dataset=jsonl" in words else SMALL
    assert said in refused("run", *sized, *(word.replace("FILES", str(files)) for word in words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("nosuch", "invalid choice: 'nosuch'"),
        ("methods --foo", "unrecognized arguments: --foo"),
        ("resume", "the following arguments are required"),
        ("resume FILES/nothing", "no run folder"),
        ("resume FILES/good.jsonl", "Not a directory"),
        ("resume FILES/no_yaml", "no_yaml/config.yaml: is damaged"),
        ("resume FILES/binary", "binary/config.yaml: is damaged"),
        ("report FILES/no_yaml", "no_yaml/config.yaml: is damaged"),
        ("report FILES/no_run", "is not the configuration of a run"),
        ("eval FILES/no_utf8", "no_utf8/config.yaml: is damaged"),
        ("eval FILES/no_keys", "is no run's configuration"),
        ("eval FILES/no_weights", "has no weights"),
        ("eval tiny nope=1", "nope: unknown key"),
        ("eval tiny --out FILES/missing/x.json", "its folder is not there"),
        ("eval tiny method=dser --dir /dev/null/x", "/dev/null is no folder"),
        ("show FILES/no_yaml --problem x", "no_yaml/config.yaml: is damaged"),
        ("show FILES/no_run --problem x --round y", "invalid int value: 'y'"),
        ("compare FILES/nothing", "no run folder here or below"),
        ("verify FILES/missing verifier=math", "No such file"),
        ("verify FILES/outputs.jsonl", "which verifier?"),
        ("verify FILES/outputs.jsonl verifier=math verify.seconds=nan", "verify.seconds=nan"),
        ("verify FILES/outputs.jsonl verifier=math --out FILES/nothing", "it is a folder"),
        ("verify FILES/no_yaml", "no_yaml/config.yaml: is damaged"),
        ("compare FILES/nothing.jsonl FILES/good.jsonl", "nothing.jsonl: no such file"),
        ("push FILES/no_yaml me/x --dry-run FILES/out", "only a finished run is published"),
        ("serve model=tiny", "which method?"),
        ("serve method=dser --port 0", "--port is 1 to 65535"),
        ("doctor model=other model.path=FILES/cut_config", "config.json cannot be read"),
        ("doctor rounds=0", "rounds=0"),
        ("study bstar --out FILES/missing/x.json", "its folder is not there"),
    ],
)
def test_other_command_lines(files, refused, words, said):
    assert said in refused(*words.replace("FILES", str(files)).split())
