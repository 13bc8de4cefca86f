"""Temporary adapters: what training them gives, that many at once do not meet, and that they leave no trace."""

import asyncio
from dataclasses import replace

import pytest
import torch

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.policy import Policy, Tuning, tune
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import resolve
from selfimprove.policy.tune import Adapters, attached, trained
from selfimprove.types import Problem

PROMPTS = [f"Start with {'1' * (i + 1)}. Add 2." for i in range(6)]


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(resolve("tiny", "package"), device="cpu", max_batch=4)


def tuning(engine, prompt, said="no", **changed):
    row = tuple(engine.render(prompt)), (*engine.encode(said), engine.end)
    return Tuning((row,), **{"epochs": 20, "learning_rate": 1e-2, **changed})


def sampled(engine, adapters, temperature=0.0, prompts=PROMPTS, **options):
    """A sample for each adapter, each of its own prompt, all at once."""

    async def everything():
        policy = Policy(engine, 3, max_tokens=12)
        alone = [policy.for_problem(Problem(f"p{i}", "")) for i in range(len(adapters))]
        asked = zip(alone, adapters, prompts, strict=False)
        return await asyncio.gather(
            *(own.sample(prompt, temperature=temperature, adapter=a, **options) for own, a, prompt in asked)
        )

    return [sample for (sample,) in asyncio.run(everything())]


def scores(engine):
    async def everything():
        ids = engine.encode("17 + 8 = 25")
        return await asyncio.gather(*(engine.logprobs(engine.render(prompt), ids) for prompt in PROMPTS))

    return asyncio.run(everything())


def test_each_request_is_answered_by_its_own_adapter_and_the_others_by_the_base(engine):
    base = sampled(engine, [None] * 6)
    adapters = [
        tuning(engine, PROMPTS[0]),
        None,
        tuning(engine, PROMPTS[2], "yes"),
        None,
        tuning(engine, PROMPTS[4]),
        None,
    ]
    found = sampled(engine, adapters)
    assert [sample.text for sample in found[::2]] == ["no", "yes", "no"]
    assert [s.completion_ids for s in found[1::2]] == [s.completion_ids for s in base[1::2]]
    assert found[0].logprobs[0] > base[0].logprobs[0]


def test_it_leaves_no_trace(engine):
    weights = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    before, answers = scores(engine), sampled(engine, [None] * 6, 1.0)
    sampled(engine, [tuning(engine, prompt) for prompt in PROMPTS], stop=["\n"])
    assert scores(engine) == before
    assert sampled(engine, [None] * 6, 1.0) == answers
    assert all(torch.equal(tensor, weights[name]) for name, tensor in engine.model.state_dict().items())
    assert not engine._adapters.held
    assert not engine._adapters.waiting
    assert not any(module._forward_hooks for module in engine.model.modules())


def test_no_gradient_of_one_adapter_meets_another(engine):
    layers = Adapters(engine.model, engine.vocabulary).layers
    first, second, third = (tuning(engine, PROMPTS[0], said, epochs=5) for said in ("1", "2", "3"))
    (one, _), (again, other) = (trained(engine.model, layers, [first, beside]) for beside in (second, third))
    for name, (a, b) in one.items():
        assert torch.equal(again[name][0], a)
        assert torch.equal(again[name][1], b)
        assert not torch.equal(other[name][1], b)


def test_trained_together_they_are_what_they_are_trained_alone(engine):
    layers = Adapters(engine.model, engine.vocabulary).layers
    said = ["no", "yes", "Start", "1"]
    several = [tuning(engine, PROMPTS[i], said[i], seed=i, epochs=5, learning_rate=1e-3) for i in range(4)]
    together = trained(engine.model, layers, several)
    for one, adapter in zip(several, together, strict=True):
        (alone,) = trained(engine.model, layers, [one])
        for name, (a, b) in alone.items():
            assert torch.allclose(adapter[name][0], a, atol=1e-4)
            assert torch.allclose(adapter[name][1], b, atol=1e-4)


def test_training_lowers_the_loss_as_peft_and_adamw_do(engine):
    """Against PEFT's LoRA with the same A, trained by torch's AdamW at the same rates."""
    from peft import LoraConfig, get_peft_model

    from selfimprove.policy.models import load_model

    one = tuning(engine, PROMPTS[0], epochs=4, warmup=0.5)
    layers = Adapters(engine.model, engine.vocabulary).layers
    (mine,) = trained(engine.model, layers, [one])
    begun = tune._begin(layers, [one])
    peft = get_peft_model(
        load_model(resolve("tiny", "package"), device="cpu"),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    named = dict(peft.named_parameters())
    theirs = {name: [named[f"base_model.model.model.{name}.lora_{x}.default.weight"] for x in "AB"] for name in layers}
    with torch.no_grad():
        for name, (a, _) in theirs.items():
            a.copy_(begun[name][0][0].T)
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1.0, weight_decay=0.0)
    ((prompt, said),) = one.rows
    labels = torch.tensor([[*[-100] * len(prompt), *said]])
    for rate in (0.005, 0.01, 0.01, 0.005):  # two steps up, then half a cosine: 1, 1/2
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        peft(input_ids=torch.tensor([[*prompt, *said]]), labels=labels).loss.backward()
        optimizer.step()
    for name, (a, b) in theirs.items():
        assert torch.allclose(mine[name][0], a.T, atol=2e-4)
        assert torch.allclose(mine[name][1], 2 * b.T, atol=2e-4)


def test_the_schedule_by_hand():
    rows = (((1,), (2,)),)
    assert [Tuning(rows, epochs=4, warmup=0.5).schedule(i) for i in range(4)] == pytest.approx([0.5, 1, 1, 0.5])
    assert Tuning(rows, epochs=5).schedule(0) == 1
    assert Tuning(rows, epochs=1, warmup=0.0).schedule(0) == 1


def test_an_adapter_is_known_by_all_that_it_depends_on(engine):
    one = tuning(engine, PROMPTS[0])
    changes = {"epochs": 3, "learning_rate": 0.1, "r": 4, "alpha": 8.0, "warmup": 0.1, "seed": 1, "rows": one.rows * 2}
    names = {one.name, *(replace(one, **{key: value}).name for key, value in changes.items())}
    assert len(names) == len(changes) + 1
    assert tuning(engine, PROMPTS[0]).name == one.name


def test_what_is_read_with_an_adapter_is_nobody_elses(engine):
    """One prompt, with and without adapters: neither prefill nor a step that a stop string cut is taken over."""
    prompts = ["A system message that is long enough to be shared by all who ask. " * 3 + "Start with 3. Add 4."] * 4
    a, b = (tuning(engine, prompts[0], said) for said in ("3 + 4 = 5\nno", "3 + 4 = 6\nno"))
    options = {"prompts": prompts, "stop": ["\n"]}
    alone = [sampled(engine, [one], **options)[0].text for one in (a, b, None)]
    assert [s.text for s in sampled(engine, [a, b, None, a], **options)] == [*alone, alone[0]]
    assert len(set(alone)) == 3


def test_memory_bounds_how_many_are_trained_and_held(engine, monkeypatch):
    adapters = [tuning(engine, prompt, epochs=4) for prompt in PROMPTS]
    whole = [s.text for s in sampled(engine, adapters)]
    size = Adapters(engine.model, engine.vocabulary)._size(adapters[0])
    batches = []
    monkeypatch.setattr(tune, "trained", lambda *args: batches.append(len(args[2])) or trained(*args))
    monkeypatch.setattr(tune, "HELD_BYTES", 2 * size)
    assert [s.text for s in sampled(engine, adapters)] == whole
    assert batches == [2, 2, 2]
    assert engine._adapters.peak >= 2 * size
    batches.clear()
    monkeypatch.setattr(tune, "TRAINED_BYTES", 1)
    sampled(engine, adapters)
    assert batches == [1] * 6


def test_several_samples_share_an_adapter_and_are_counted(engine):
    one = tuning(engine, PROMPTS[0])

    async def everything():
        policy = Policy(engine, 0, max_tokens=8)
        return await policy.sample(PROMPTS[0], 3, adapter=one), policy.meter.take()

    samples, counts = asyncio.run(everything())
    assert [s.text for s in samples] == ["no"] * 3
    assert counts["tuned"] == 20 * sum(map(len, one.rows[0]))


def test_a_request_that_is_cancelled_while_its_adapter_waits(engine):
    async def everything():
        policy = Policy(engine, 0, max_tokens=8)
        waiting = asyncio.create_task(policy.sample(PROMPTS[0], adapter=tuning(engine, PROMPTS[0])))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return await asyncio.wait_for(policy.sample(PROMPTS[1], temperature=0), 60)

    assert asyncio.run(everything())
    assert not engine._groups
    assert not engine._adapters.waiting


def test_layers_that_do_not_read_sequence_by_sequence_are_refused():
    layer = torch.nn.Linear(3, 3)
    pair = torch.zeros(2, 3, 1), torch.zeros(2, 1, 3)
    with attached({"a": layer}, {"a": pair}), pytest.raises(ValueError, match="tokens of several sequences as one"):
        layer(torch.zeros(2, 3))


@pytest.mark.parametrize("name", ["vllm", "openai", "ray"])
def test_engines_without_adapters_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match=rf"needs .*adapters.*which engine={name}") as refused:
        compose(["method=rejection_sampling", "generate=tt_si", f"engine={name}"])
    assert "\n" not in str(refused.value)
