"""The transformers engine against transformers itself: ids, log-probabilities, frequencies, failures."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from selfimprove.errors import ConfigError
from selfimprove.policy import Request, slots
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import load_model, resolve
from selfimprove.policy.sampling import uniforms
from selfimprove.types import Sample
from tests.waiting import PATIENCE

BOS, EOS = 0, 1
SIZE = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def make_model(folder: Path, seed: int, **config: Any) -> str:
    """A Llama of random weights, wide enough to have opinions, with a byte-level tokenizer."""
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=258,
        **(SIZE | config),
        max_position_embeddings=256,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.2,
    )
    LlamaForCausalLM(settings).save_pretrained(folder)
    vocabulary = {char: i + 2 for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({"<s>": BOS, "</s>": EOS, **vocabulary}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("model"), seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def engine(folder: str) -> TransformersEngine:
    return TransformersEngine(folder, device="cpu", dtype="float32", max_batch=8)


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(2, 258, rng.integers(1, 40)).tolist()) for _ in range(count)]


def ask(engine: TransformersEngine, requests: list[Request]) -> list[Sample]:
    async def every() -> list[Sample]:
        return await asyncio.gather(*map(engine.sample, requests))

    return asyncio.run(every())


def score(engine: TransformersEngine, samples: list[Sample]) -> list[list[float]]:
    async def every() -> list[list[float]]:
        return await asyncio.gather(*(engine.logprobs(s.prompt_ids, s.completion_ids) for s in samples))

    return asyncio.run(every())


def next_logprobs(engine: TransformersEngine, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return engine.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def test_greedy_is_generate(engine: TransformersEngine) -> None:
    requests = [Request(p, 24, seed=0, temperature=0) for p in prompts(20)]
    for request, sample in zip(requests, ask(engine, requests), strict=True):
        out = engine.model.generate(torch.tensor([request.prompt_ids]), max_new_tokens=24, do_sample=False)
        assert sample.completion_ids == out[0, len(request.prompt_ids) :].tolist()


def test_a_sample_depends_on_its_request_alone(folder: str, engine: TransformersEngine) -> None:
    requests = [
        Request(p, 5 + 3 * (i % 8), seed=i, temperature=(1.0, 0.7, 0.0)[i % 3], top_k=(0, 0, 20, 5)[i % 4])
        for i, p in enumerate(prompts(12) * 3)
    ]
    together = ask(engine, requests)
    backwards = ask(TransformersEngine(folder, dtype="float32", max_batch=31), requests[::-1])[::-1]
    alone = [ask(engine, [request])[0] for request in requests[:9]]
    assert [s.completion_ids for s in together] == [s.completion_ids for s in backwards]
    assert [s.completion_ids for s in together[:9]] == [s.completion_ids for s in alone]
    assert len({tuple(s.completion_ids) for s in together[::12]}) == 3  # one prompt, three seeds


def test_equal_prompts_are_prefilled_once(engine: TransformersEngine) -> None:
    prompt = prompts(1)[0] + (9,) * 20
    samples = ask(engine, [Request(prompt, 4 + i % 6, seed=i) for i in range(40)])  # five times the slots
    assert engine.stats.prefilled_tokens == len(prompt) - 1
    assert [s.logprobs for s in samples] == [pytest.approx(x, abs=1e-4) for x in score(engine, samples)]


def test_a_common_start_is_prefilled_once_and_changes_nothing(
    engine: TransformersEngine, folder: str, other: str
) -> None:
    start = tuple(range(2, 62))
    requests = [Request((*start, *p), 12, seed=i) for i, p in enumerate(prompts(30)) if len(p) > 2]
    requests += [Request(p, 12, seed=99) for p in prompts(5, seed=1)]  # and some that share nothing
    alone = [ask(TransformersEngine(folder, dtype="float32", max_batch=8), [r])[0] for r in requests]
    together = ask(engine, requests)
    assert [s.completion_ids for s in together] == [s.completion_ids for s in alone]
    for sample, single in zip(together, alone, strict=True):
        assert sample.logprobs == pytest.approx(single.logprobs, abs=1e-4)
    assert engine.stats.prefilled_tokens < sum(len(r.prompt_ids) for r in requests) / 2
    engine.load(other)  # what was prefilled with the old weights is forgotten
    fresh = ask(TransformersEngine(other, dtype="float32", max_batch=8), requests)
    assert [s.completion_ids for s in ask(engine, requests)] == [s.completion_ids for s in fresh]


def test_logprobs_are_those_of_a_plain_forward(engine: TransformersEngine) -> None:
    requests = [Request(p, 30, seed=i, temperature=0.5 + i / 10, top_p=0.9) for i, p in enumerate(prompts(30))]
    samples = ask(engine, requests)
    for sample, scored in zip(samples, score(engine, samples), strict=True):
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
        with torch.inference_mode():
            logprobs = engine.model(ids).logits[0].log_softmax(-1)
        start = len(sample.prompt_ids) - 1
        plain = [logprobs[start + i, token].item() for i, token in enumerate(sample.completion_ids)]
        assert sample.logprobs == pytest.approx(plain, abs=1e-4)
        assert scored == pytest.approx(plain, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.5])
def test_frequencies_are_the_softmax(folder: str, temperature: float) -> None:
    engine = TransformersEngine(folder, dtype="float32", max_batch=256)
    prompt, draws = (5, 6, 7), 3000
    samples = ask(engine, [Request(prompt, 1, seed=i, temperature=temperature) for i in range(draws)])
    counts = Counter(s.completion_ids[0] for s in samples)
    probs = (next_logprobs(engine, prompt) / temperature).softmax(-1)
    for token, p in enumerate(probs.tolist()):
        if draws * p > 5:
            assert abs(counts[token] - draws * p) < 4.5 * (draws * p * (1 - p)) ** 0.5


def test_truncation_in_a_mixed_batch(folder: str) -> None:
    engine = TransformersEngine(folder, dtype="float32", max_batch=256)
    prompt, draws = (5, 6, 7), 1500
    base = Request(prompt, 1, seed=0)
    kinds = [replace(base, top_k=3), replace(base, top_p=0.5), replace(base, top_k=4, top_p=0.7, temperature=1.3), base]
    samples = ask(engine, [replace(kind, seed=i) for i in range(draws) for kind in kinds])
    for kind, name in enumerate(kinds):
        probs = (next_logprobs(engine, prompt) / name.temperature).softmax(-1)
        ranked, order = probs.sort(descending=True)
        if name.top_k:
            ranked, order = ranked[: name.top_k], order[: name.top_k]
        ranked = ranked / ranked.sum()
        keep = int((ranked.cumsum(0) < name.top_p).sum()) + 1
        ranked, order = ranked[:keep] / ranked[:keep].sum(), order[:keep]
        counts = Counter(s.completion_ids[0] for s in samples[kind::4])
        if kind < 3:
            assert set(counts) <= set(order.tolist())
            assert len(order) < 258
        token, p = int(order[0]), float(ranked[0])
        assert abs(counts[token] - draws * p) < 4.5 * (draws * p * (1 - p)) ** 0.5


def test_uniforms_are_uniform_and_independent() -> None:
    seeds, positions = np.meshgrid(np.arange(400, dtype=np.uint64), np.arange(50, dtype=np.uint64), indexing="ij")
    draws = uniforms(seeds.ravel(), positions.ravel()).reshape(400, 50)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts, _ = np.histogram(draws, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square of 19: beyond 43.8 once in a thousand
    for a, b in ((draws[:-1], draws[1:]), (draws[:, :-1], draws[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    wide = uniforms(np.array([2**63 - 1, 2**63 - 2], dtype=np.uint64), np.array([0, 0]))
    assert wide[0] != wide[1]


def test_stop_strings_and_length(engine: TransformersEngine) -> None:
    requests = [Request(p, 40, seed=i) for i, p in enumerate(prompts(12, seed=3))]
    free = ask(engine, requests)
    for request, sample in zip(requests, free, strict=True):
        assert sample.finish == ("stop" if sample.completion_ids[-1] == EOS else "length")
        assert len(sample.completion_ids) <= 40
        chars = [c for c in sample.text if c.isascii()]
        if len(sample.text) < 12 or not chars:
            continue
        stop = next(sample.text[i : i + 2] for i in range(5, len(sample.text) - 1) if sample.text[i : i + 2].isascii())
        stopped = ask(engine, [replace(request, stop=("never this", stop))])[0]
        count = len(stopped.completion_ids)
        assert stopped.completion_ids == sample.completion_ids[:count]
        assert stopped.finish == "stop"
        assert stop in stopped.text
        assert stop not in engine.tokenizer.decode(stopped.completion_ids[:-1])


def test_any_of_several_end_tokens_ends(tmp_path: Path) -> None:
    path = make_model(tmp_path, seed=0)
    model = LlamaForCausalLM.from_pretrained(path)
    model.generation_config.eos_token_id = [EOS, *range(200, 258)]
    model.generation_config.save_pretrained(path)
    engine = TransformersEngine(path, dtype="float32", max_batch=16)
    samples = ask(engine, [Request(p, 60, seed=i) for i, p in enumerate(prompts(40))])
    ends = Counter(s.completion_ids[-1] for s in samples if s.finish == "stop")
    assert len(ends) > 3
    assert set(ends) <= engine.eos
    for sample in samples:
        assert engine.eos.isdisjoint(sample.completion_ids[:-1])
        if sample.finish == "stop":
            assert sample.text == engine.tokenizer.decode(sample.completion_ids[:-1], skip_special_tokens=True)


def test_load_full_weights(engine: TransformersEngine, folder: str, other: str) -> None:
    requests = [Request(p, 16, seed=i) for i, p in enumerate(prompts(10))]
    before = ask(engine, requests)
    engine.load(other)
    after = ask(engine, requests)
    fresh = ask(TransformersEngine(other, dtype="float32", max_batch=8), requests)
    assert [s.completion_ids for s in after] == [s.completion_ids for s in fresh]
    assert [s.completion_ids for s in after] != [s.completion_ids for s in before]
    engine.load(folder)
    assert [s.completion_ids for s in ask(engine, requests)] == [s.completion_ids for s in before]


def test_load_refuses_another_architecture(engine: TransformersEngine, tmp_path: Path) -> None:
    before = ask(engine, [Request((2, 3), 8, seed=0)])
    with pytest.raises(ConfigError, match="architecture"):
        engine.load(make_model(tmp_path, seed=1, num_hidden_layers=1))
    assert ask(engine, [Request((2, 3), 8, seed=0)]) == before


def test_load_adapter_replaces_the_one_before(folder: str, other: str, tmp_path: Path) -> None:
    engine = TransformersEngine(folder, dtype="float32", max_batch=8)
    requests = [Request(p, 16, seed=i) for i, p in enumerate(prompts(10))]
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model: Any = get_peft_model(LlamaForCausalLM.from_pretrained(folder), config)
        model.save_pretrained(tmp_path / str(seed))
        engine.load(str(tmp_path / str(seed)))
        samples = ask(engine, requests)
        for sample in samples[:3]:
            ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
            with torch.inference_mode():
                logprobs = model(ids).logits[0, len(sample.prompt_ids) - 1 : -1].log_softmax(-1)
            plain = logprobs.gather(1, torch.tensor(sample.completion_ids)[:, None])[:, 0].tolist()
            assert sample.logprobs == pytest.approx(plain, abs=1e-3)
        outputs.append([s.completion_ids for s in samples])
    fresh = TransformersEngine(str(tmp_path / "2"), dtype="float32", max_batch=8)
    assert [s.completion_ids for s in ask(fresh, requests)] == outputs[1] != outputs[0]
    with pytest.raises(ConfigError, match="was trained on"):
        TransformersEngine(other, dtype="float32").load(str(tmp_path / "1"))


def test_a_failure_reaches_every_waiter(engine: TransformersEngine) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    async def every() -> list[Any]:
        calls: list[Coroutine[Any, Any, Any]] = [engine.sample(Request(p, 8, seed=0)) for p in prompts(20)]
        calls.append(engine.logprobs([2, 3], [4]))
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), PATIENCE)

    hook = engine.model.get_output_embeddings().register_forward_hook(fail)
    assert {type(answer) for answer in asyncio.run(every())} == {MemoryError}
    hook.remove()
    assert ask(engine, [Request((2, 3), 4, seed=0)])[0].completion_ids  # and the engine goes on
    assert engine.stats.waiting == engine.stats.running == 0


def test_cancelled_requests_leave(engine: TransformersEngine) -> None:
    async def main() -> list[Sample]:
        requests = [Request(p, 30, seed=i) for i, p in enumerate(prompts(30))]
        tasks = [asyncio.create_task(engine.sample(request)) for request in requests]
        while engine.stats.steps < 3:
            await asyncio.sleep(0)
        waiting, running = engine.stats.waiting, engine.stats.running
        assert running == 8
        assert waiting == 22
        for task in tasks[1:]:
            task.cancel()
        await asyncio.sleep(0)
        assert engine.stats.waiting <= 1
        kept = await tasks[0]
        assert all(task.cancelled() for task in tasks[1:])
        return [kept]

    request = Request(prompts(30)[0], 30, seed=0)
    assert asyncio.run(main())[0].completion_ids == ask(engine, [request])[0].completion_ids
    assert engine.stats.sampled_tokens < 200
    assert engine.stats.finished == 2


def test_two_thousand_requests_in_32_slots(folder: str) -> None:
    engine = TransformersEngine(folder, dtype="float32", max_batch=32)

    async def solve(i: int, prompt: tuple[int, ...]) -> int:
        first = await engine.sample(Request(prompt, 3 + i % 5, seed=i))
        second = await engine.sample(Request((*prompt, *first.completion_ids), 2, seed=i))
        return len(second.completion_ids)

    async def every() -> list[int]:
        return await asyncio.gather(*(solve(i, p) for i, p in enumerate(prompts(1000))))

    assert set(asyncio.run(every())) <= {1, 2}
    assert engine.stats.peak_rows == 32
    assert engine.stats.finished == 2000
    assert engine.stats.sampled_tokens > 24 * engine.stats.steps  # the batch stays three quarters full


def test_render_and_bad_requests(engine: TransformersEngine) -> None:
    ids = engine.render("ab")
    assert engine.render("<s>ab") == [BOS, *ids]
    assert engine.tokenizer.decode(ids) == "ab"
    engine.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if not loop.last %};{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert engine.tokenizer.decode(engine.render("hi")) == "<s>[user]hi[assistant]"
    dialogue = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes, "}]
    assert engine.tokenizer.decode(engine.render(dialogue)) == "<s>[user]hi;[assistant]yes, "
    for request in (Request((), 4, seed=0), Request((2,) * 250, 7, seed=0)):
        with pytest.raises(ValueError, match="prompt"):
            ask(engine, [request])
    with pytest.raises(ConfigError, match=r"no/such/model.*cannot be loaded"):
        TransformersEngine("no/such/model")


STOP = tuple("abcdefghijklmnopqrstuvwxyz")  # in so many letters that most steps are short


async def grow(engine: TransformersEngine, prompt: tuple[int, ...], seed: int) -> list[tuple[Sample, list[float]]]:
    """A small tree: three steps of a prompt, two of each of those, and what the model says to two endings of each."""

    async def step(start: tuple[int, ...], seed: int) -> tuple[Sample, list[float]]:
        sample = await engine.sample(Request(start, 16, seed, stop=STOP))
        behind = [*start, *sample.completion_ids, 70, 71]
        ends = await asyncio.gather(engine.logprobs(behind, [80, 81, 82]), engine.logprobs(behind, [90]))
        return sample, [*ends[0], *ends[1]]

    first = await asyncio.gather(*(step(prompt, seed + i) for i in range(3)))
    starts = [(*prompt, *sample.completion_ids) for sample, _ in first for _ in range(2)]
    second = await asyncio.gather(*(step(start, seed + 3 + i) for i, start in enumerate(starts)))
    return [*first, *second]


def trees(engine: TransformersEngine, starts: dict[int, tuple[int, ...]]) -> list[list[tuple[Sample, list[float]]]]:
    async def every() -> list[list[tuple[Sample, list[float]]]]:
        return await asyncio.gather(*(grow(engine, start, seed) for seed, start in starts.items()))

    return asyncio.run(every())


def check_same(tree: list[tuple[Sample, list[float]]], other: list[tuple[Sample, list[float]]]) -> None:
    for (sample, scores), (same, others) in zip(tree, other, strict=True):
        assert sample.completion_ids == same.completion_ids
        assert sample.logprobs == pytest.approx(same.logprobs, abs=1e-4)
        assert scores == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("room", [2**28, 2**17])
def test_trees_read_each_token_once_and_depend_on_their_requests_alone(
    engine: TransformersEngine, folder: str, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(slots, "KEPT_BYTES", room)  # 2**17: 255 tokens, which is two trees of the twelve
    starts = {100 * i: (*range(2, 42), *p) for i, p in enumerate(prompts(12))}
    together = trees(engine, starts)
    read, forgot = engine.stats.prefilled_tokens, room == 2**17
    assert (read > sum(map(len, starts.values()))) == forgot
    assert sum(s.finish == "stop" for tree in together for s, _ in tree) > 60  # of 108
    for tree, (seed, start) in zip(together, starts.items(), strict=True):
        single = TransformersEngine(folder, dtype="float32", max_batch=8)
        check_same(tree, trees(single, {seed: start})[0])
        for sample, scores in tree:
            ids = [*sample.prompt_ids, *sample.completion_ids, 70, 71]
            with torch.inference_mode():
                rows = engine.model(torch.tensor([[*ids, 80, 81]])).logits[0, len(ids) - 1 :].log_softmax(-1)
            plain = [rows[0, 80], rows[1, 81], rows[2, 82], rows[0, 90]]
            assert scores == pytest.approx([value.item() for value in plain], abs=1e-4)


def test_load_forgets_the_steps_that_were_kept(engine: TransformersEngine, other: str) -> None:
    start = (*range(2, 42), 7)

    async def across() -> list[tuple[Sample, list[float]]]:
        await grow(engine, start, 0)
        engine.load(other)  # at once, before the engine has noticed that nothing is left to do
        return await grow(engine, start, 0)

    fresh = TransformersEngine(other, dtype="float32", max_batch=8)
    check_same(asyncio.run(across()), trees(fresh, {0: start})[0])


def test_who_slept_holds_no_cache_and_answers_as_before(engine: TransformersEngine) -> None:
    """The weights' way to the host and back is the same call on a CPU, where it moves nothing."""
    requests = [Request(p, 30, seed=i) for i, p in enumerate(prompts(12))]

    async def asked() -> list[list[int]]:
        return [s.completion_ids for s in await asyncio.gather(*map(engine.sample, requests))]

    async def slept_between() -> None:
        before = await asked()
        assert engine._cache.bytes > 0
        await engine.sleep()
        assert engine._cache.bytes == 0
        assert await asked() == before
        again = asyncio.create_task(asked())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in flight"):
            await engine.sleep()
        assert await again == before

    asyncio.run(slept_between())


def test_scores_share_a_long_start(engine: TransformersEngine) -> None:
    """Eight questions of two endings each: the template is read once, each question once."""
    template = list(range(2, 82))
    asked = [([*template, *([100 + i] * 40), *p], [80 + j, 81, 82]) for i, p in enumerate(prompts(8)) for j in (0, 1)]
    asked += [(list(p), [5]) for p in prompts(3, seed=5)]

    async def every() -> list[list[float]]:
        return await asyncio.gather(*(engine.logprobs(prompt, ending) for prompt, ending in asked))

    for (prompt, ending), scores in zip(asked, asyncio.run(every()), strict=True):
        with torch.inference_mode():
            rows = engine.model(torch.tensor([[*prompt, *ending]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert scores == pytest.approx(rows.gather(1, torch.tensor(ending)[:, None])[:, 0].tolist(), abs=1e-4)
    assert engine.stats.prefilled_tokens == 80 + sum(len(prompt) - 80 for prompt, _ in asked[:16:2])


def test_a_model_whose_files_lack_weights_is_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(resolve("tiny", "package"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"is not whole: its files lack the weights of model\.layers\.0\.mlp"):
        load_model(str(folder))
