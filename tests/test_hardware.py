"""Every hardware with every model that speaks: the configuration, TRL's arguments and vLLM's, as a run makes them.

No GPU is needed, but for one question: TRL's configurations refuse bfloat16 without CUDA. Here that question is
answered with yes.
"""

import functools
from types import SimpleNamespace

import pytest

from selfimprove import config as configuration
from selfimprove import memory
from selfimprove.binding import options_of
from selfimprove.config import CONF, compose
from selfimprove.policy.models import resolve
from selfimprove.schema import Config

HARDWARE = sorted(path.stem for path in (CONF / "hardware").glob("*.yaml"))
MODELS = sorted(
    {path.stem for path in (CONF / "model").glob("*.yaml")} - {"categorical", "points", "digits_vit", "fashion_vit"}
)
SHOULD = ("cpu", "cpu_vllm", "gpu_24gb", "gpu_80gb", "gpu_8x80gb")


def composed(hardware: str, model: str) -> Config:
    # engine=ray and its like need no cluster for this: nothing is started
    path = [f"model.path={resolve('tiny', 'package')}"] if model == "other" else []
    return compose([f"hardware={hardware}", f"model={model}", *path])


@functools.cache
def node(train: str) -> dict:
    return compose([f"train={train}"]).train


def test_the_hardware_that_the_readme_names_is_there():
    assert set(SHOULD) <= set(HARDWARE)


@pytest.mark.parametrize("hardware", HARDWARE)
def test_a_hardware_goes_with_every_model_and_its_trl_arguments_can_be_made(hardware, monkeypatch, tmp_path):
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    from selfimprove.train import TrainContext, arguments

    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    for model in MODELS:
        plain = composed(hardware, model).model_dump(by_alias=True)
        for train, make in (("sft", SFTConfig), ("dpo", DPOConfig)):
            config = configuration.check(plain | {"train": node(train)})
            chosen, how = config.hardware, config.hardware.training
            context = TrainContext(
                start="",
                base="",
                out=tmp_path,
                seed=0,
                device=chosen.device,
                dtype=config.model.dtype,
                micro_batch=chosen.micro_batch,
                gradient_checkpointing=chosen.gradient_checkpointing,
                lora=config.model.lora and config.model.lora.model_dump(),
                log=lambda record: None,
                training=how,
            )
            options = options_of(config.stages[""].train)
            made = make(**arguments(context, str(tmp_path), 640, options))
            assert made.bf16 == (config.model.dtype == "bfloat16")
            assert made.gradient_checkpointing == chosen.gradient_checkpointing
            assert made.per_device_train_batch_size <= chosen.micro_batch
            steps = made.per_device_train_batch_size * made.gradient_accumulation_steps * how.processes
            assert steps == options["batch_size"], "a batch is what was asked for, over all processes"


@pytest.mark.parametrize("hardware", [name for name in HARDWARE if name.startswith("gpu")])
def test_a_gpu_config_says_what_the_estimate_needs_and_takes_turns(hardware):
    config = compose([f"hardware={hardware}", "model=tiny"])
    assert config.hardware.memory_gb
    assert config.hardware.gpus >= config.hardware.training.processes
    assert config.hardware.sleep
    assert config.hardware.training.own_process
    assert config.engine["name"] == "vllm"
    assert config.model.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("hardware", "model", "more", "fits"),
    [
        *(("gpu_24gb", model, [], True) for model in ("qwen2_5_0_5b", "qwen2_5_7b", "llama3_1_8b", "mistral7b")),
        *(("gpu_80gb", model, ["train=dpo"], True) for model in ("qwen2_5_7b", "llama3_1_8b", "mistral7b")),
        ("gpu_24gb", "mistral7b", ["train=dpo"], False),
        ("gpu_24gb", "mistral7b", ["train=dpo", "hardware.micro_batch=1"], True),
        ("gpu_24gb", "llama3_1_8b", ["train=dpo", "hardware.micro_batch=1"], True),
        ("gpu_80gb", "mistral7b", ["model.lora=null"], False),
        *(("gpu_8x80gb", model, ["model.lora=null"], True) for model in ("qwen2_5_7b", "llama3_1_8b", "mistral7b")),
        ("gpu_8x80gb", "mistral7b", ["model.lora=null", "hardware.training.strategy=ddp"], False),
    ],
)
def test_what_docs_hardware_says_fits_does_by_the_estimate(hardware, model, more, fits):
    found = memory.estimate(compose([f"hardware={hardware}", f"model={model}", *more]))
    assert found.fits == fits
    assert found.sequences >= 1


def test_a_gpu_that_sampler_and_trainer_hold_together_counts_both():
    def peak(*more):
        return memory.estimate(compose(["hardware=gpu_80gb", "model=mistral7b", *more]))

    turns, both = peak(), peak("hardware.sleep=false")
    assert turns.peak == sum(turns.sampler.values())
    assert both.peak == sum(both.sampler.values()) + sum(both.trainer.values())
    assert turns.fits
    assert not both.fits


@pytest.mark.parametrize(
    ("more", "strategy"),
    [
        ([], "ddp"),  # an adapter
        (["model.lora=null"], "fsdp2"),
        (["hardware.training.strategy=zero3"], "zero3"),
        (["hardware.training.processes=1", "model.lora=null"], "ddp"),
    ],
)
def test_adapters_are_shared_by_ddp_and_whole_models_by_fsdp(more, strategy):
    config = compose(["hardware=gpu_8x80gb", "model=mistral7b", *more])
    assert config.training_of().strategy == strategy
    if len(more) < 2:
        assert memory.estimate(config).fits


@pytest.mark.parametrize(
    ("more", "models", "together"),
    [
        (["verifier=judge"], 0, False),  # the policy itself
        (["verifier=judge", "verifier.model=base"], 1, False),
        (["verifier=judge", "verifier.model=m", "verifier.server=http://localhost", "verifier.key_env=null"], 0, False),
        (["method=upo", "model=mistral7b"], 2, True),  # its solver asks for rewards as it goes
    ],
)
def test_what_a_verifier_opens_is_counted(more, models, together):
    config = compose(["model=mistral7b", "hardware=gpu_80gb", *more])
    found = memory.estimate(config)
    assert found.second.get("weights", 0) == models * 2 * config.model.shape.parameters
    assert found.asked == together
    if together:
        assert found.peak == sum(found.sampler.values()) + sum(found.second.values())
        assert not found.fits
        assert memory.advice(config) == ["engine.memory=0.5"]


@pytest.mark.vllm
@pytest.mark.parametrize("hardware", HARDWARE)
def test_vllm_takes_the_arguments_that_every_pair_makes(hardware):
    from selfimprove.policy.vllm import engine_args

    for model in MODELS:
        config = composed(hardware, model)
        engine = memory.engine_of(config)
        if engine["name"] != "vllm":
            continue
        options = {key: engine[key] for key in ("memory", "parallel", "replicas", "eager", "adapters")}
        # The folder of the tiny model stands for weights that are on the hub: only its config.json is read.
        folder = resolve("tiny", "package")
        chosen = SimpleNamespace(**dict(config.model) | {"max_length": 512})
        made = engine_args(folder, chosen, config.hardware, **options)
        assert made.dtype == config.model.dtype
        assert made.max_num_seqs == config.hardware.max_batch
        assert made.tensor_parallel_size * made.data_parallel_size <= max(1, config.hardware.gpus)
        if config.hardware.device == "cpu":
            checked = made.create_engine_config()
            assert checked.scheduler_config.max_num_seqs == config.hardware.max_batch
        else:
            assert made.enable_sleep_mode == config.hardware.sleep
            assert made.gpu_memory_utilization == engine["memory"]
