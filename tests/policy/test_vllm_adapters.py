"""vLLM with adapters that go along with requests, on two replicas, on a CPU: `make test-vllm`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from selfimprove.errors import ConfigError
from selfimprove.policy.vllm import VllmEngine, engine_args, replicas_of
from selfimprove.types import Sample
from tests import served
from tests.served import CLOSE, PREAMBLE, TINY, answers, gap, greedy, questions

pytestmark = pytest.mark.vllm

TIGHT = 1e-4  # nats, between vLLM and PEFT in float32


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [served.adapter(tmp_path_factory.mktemp("adapter"), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(loop: asyncio.Runner) -> Iterator[VllmEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        options = served.model(lora=6), served.hardware(sleep=True)
        made = VllmEngine(TINY, *options, eager=True, adapters="request", replicas=2)
        yield made
        made.close()


async def on_each(engine: VllmEngine, prompts: list[str]) -> list[list[list[Sample]]]:
    """Greedy answers by each replica, one a prompt."""
    llm, generate = engine._llm, engine._llm.generate
    found = []
    for rank in range(2):
        llm.generate = lambda *args, rank=rank, **options: generate(*args, data_parallel_rank=rank, **options)
        found.append(await answers(engine, prompts, temperature=0.0))
    llm.generate = generate
    return found


def test_each_version_of_an_adapter_answers_and_scores_as_peft_does_on_all_replicas(loop, engine, adapters) -> None:
    prompts = questions(12, PREAMBLE)
    for wanted in (TINY, *adapters, TINY, adapters[0]):
        engine.load(wanted)
        reference = served.reference(wanted)
        greedy(loop, engine, prompts[:1])  # so that it has started
        for groups in loop.run(on_each(engine, prompts)):
            samples = [group[0] for group in groups]
            assert gap(loop, samples, reference) < TIGHT
            assert gap(loop, samples, engine) < TIGHT  # many prompts scored at once


def test_whole_weights_reach_all_replicas_and_an_adapter_comes_back_after_sleep(
    loop, engine, adapters, tmp_path
) -> None:
    other = served.other_weights(tmp_path)
    prompts = questions(12, PREAMBLE)
    for wanted in (other, TINY, adapters[1]):
        loop.run(engine.sleep())
        engine.load(wanted)
        greedy(loop, engine, prompts[:1])
        for groups in loop.run(on_each(engine, prompts)):
            assert gap(loop, [group[0] for group in groups], served.reference(wanted)) < CLOSE


def test_an_adapter_that_there_is_no_room_for_is_refused(engine, tmp_path) -> None:
    large = served.adapter(tmp_path / "large", seed=0, rank=16)
    with pytest.raises(ConfigError, match="rank 16"):
        engine.load(large)
    wanted = served.model(lora=8)
    head = wanted.model_copy(update={"lora": wanted.lora.model_copy(update={"target_modules": ["q_proj", "lm_head"]})})
    with pytest.raises(ConfigError, match="output head"):
        engine_args(TINY, head, served.hardware(), adapters="request")
    with pytest.raises(ConfigError, match=r"model\.lora\.r=600"):
        engine_args(TINY, served.model(lora=600), served.hardware(), adapters="request")


def test_arguments_follow_the_configuration() -> None:
    card = served.hardware(device="cuda", gpus=8, memory_gb=80, sleep=True)
    args = engine_args(TINY, served.model(lora=16), card, memory=0.8, parallel=2, adapters="request")
    assert (args.tensor_parallel_size, args.data_parallel_size, args.gpu_memory_utilization) == (2, 4, 0.8)
    assert args.enable_sleep_mode
    assert args.enable_prefix_caching
    assert (args.max_lora_rank, args.max_loras) == (16, 1)
    assert "lm_head" not in args.lora_target_modules
    assert {"q_proj", "down_proj"} <= set(args.lora_target_modules)
    merging = engine_args(TINY, served.model(lora=16), card, parallel=8)
    assert (merging.data_parallel_size, merging.enable_lora) == (1, False)
    assert engine_args(TINY, served.model(), served.hardware()).data_parallel_size == 1


def test_more_gpus_than_there_are_is_refused() -> None:
    card = served.hardware(device="cuda", gpus=2)
    assert replicas_of(card) == 2
    with pytest.raises(ConfigError, match=r"engine\.parallel.*hardware\.gpus is 2"):
        replicas_of(card, parallel=4)
    with pytest.raises(ConfigError, match=r"engine\.replicas: 2 x 2"):
        replicas_of(card, parallel=2, replicas=2)
