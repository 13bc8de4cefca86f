"""What each layer would say: against reading layer by layer by hand, and as figures of an evaluation."""

import asyncio

import pytest
import torch

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import resolve
from selfimprove.ready import require_heads
from selfimprove.report.consistency import layers
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(resolve("tiny", "package"), device="cpu", max_batch=4)


def looked(engine, prompts):
    async def everything():
        policy = Policy(engine, 0, max_tokens=10)
        answers = [s for (s,) in await asyncio.gather(*(policy.sample(p, temperature=0) for p in prompts))]
        return answers, await asyncio.gather(*(policy.lens(s.prompt_ids, s.completion_ids) for s in answers))

    return asyncio.run(everything())


def test_the_last_layer_says_the_greedy_answer(engine):
    answers, found = looked(engine, [f"Start with {n}. Add {n}." for n in (3, 17, 450)])
    for answer, by_layer in zip(answers, found, strict=True):
        assert len(by_layer) == engine.model.config.num_hidden_layers
        last = by_layer[-1]
        assert (last.completion_ids, last.text, last.finish) == (answer.completion_ids, answer.text, answer.finish)
        assert last.logprobs == pytest.approx(answer.logprobs, abs=1e-4)
        assert by_layer[0].completion_ids != answer.completion_ids


def test_a_layer_is_read_through_the_final_norm_and_the_head(engine):
    ((answer,), ((_, second, *_),)) = looked(engine, ["Start with 3. Add 4."])
    ids = torch.tensor([[*answer.prompt_ids, *answer.completion_ids[:-1]]])
    with torch.no_grad():
        states = engine.model(input_ids=ids, output_hidden_states=True).hidden_states[2][
            0, len(answer.prompt_ids) - 1 :
        ]
        logs = torch.log_softmax(engine.model.lm_head(engine.model.model.norm(states)), -1)
    assert second.completion_ids == logs.argmax(-1).tolist()
    assert second.logprobs == pytest.approx(logs.max(-1).values.tolist(), abs=1e-4)


def test_a_head_alone_is_the_model_with_the_others_weights_at_zero(engine):
    answers, _ = looked(engine, [f"Start with {n}. Add {n}." for n in (3, 450)])
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}

    async def everything():
        asked = (engine.lens(a.prompt_ids, a.completion_ids, [(2, 1), (0, 0)]) for a in answers)
        return await asyncio.gather(*asked)

    found = asyncio.run(everything())
    assert all(torch.equal(value, before[name]) for name, value in engine.model.state_dict().items())
    weight = engine.model.model.layers[2].self_attn.o_proj.weight
    size = weight.shape[1] // engine.model.config.num_attention_heads
    with torch.no_grad():
        weight[:, :size] = 0
        for answer, (one, _) in zip(answers, found, strict=True):
            ids = torch.tensor([[*answer.prompt_ids, *answer.completion_ids[:-1]]])
            logs = torch.log_softmax(engine.model(input_ids=ids).logits[0, len(answer.prompt_ids) - 1 :], -1)
            assert one.completion_ids == logs.argmax(-1).tolist()
            assert one.logprobs == pytest.approx(logs.max(-1).values.tolist(), abs=1e-4)
    engine.model.load_state_dict(before)


def test_a_head_that_the_model_lacks_is_refused(engine):
    with pytest.raises(ValueError, match="no head 9 in layer 0: 4 layers of 2"):
        asyncio.run(engine.lens([5, 6], [7], [(0, 9)]))
    config = compose(["method=rejection_sampling", "eval.consistency={samples: 2, heads: [[4, 0]]}"])
    with pytest.raises(ConfigError, match=r"eval.consistency.heads=\[4, 0\]: the model has 4 layers of 2 heads"):
        require_heads(config)


def test_figures_by_hand():
    def attempt(number, answer, status="wrong"):
        sample = Sample([1], [2], [0.0], "", "stop", 0)
        name = f"layer_{number}" if number else "greedy"
        verdict = Verdict("", status, 0.0, answer)
        return Attempt(Problem("p", ""), Trajectory("p", [sample], {"decoding": name}), verdict)

    group = [
        attempt(0, "7", "correct"),
        attempt(1, None),
        attempt(2, "8"),
        attempt(3, "7.0", "correct"),
        attempt(4, "7", "correct"),
    ]
    assert layers(group) == ([False, False, True, True], [False, False, True, True])
    assert layers([attempt(0, "7"), attempt(1, "5"), attempt(2, None)]) == ([False, False], [False, False])


def test_any_evaluation_can_have_them(tmp_path):
    from selfimprove import run

    words = ["dataset.heldout_size=3", "dataset.train_size=4", "rounds=1", "tracker=none", "verify.workers=1"]
    words += ["eval.consistency={samples: 2, layers: true, heads: [[3, 1]]}", "method.generate.n=2"]
    summary = run.start(compose(["method=rejection_sampling", *words]), tmp_path / "run")
    base = summary["base"]
    assert base["consistency/layer_4"] == pytest.approx(1.0, abs=0.34)
    assert base["accuracy/layer_4"] == base["accuracy"]
    assert {f"consistency/layer_{i}" for i in range(1, 5)} <= base.keys()
    assert 0 <= base["consistency/head_3.1"] <= 1
    assert 0 <= base["accuracy/head_3.1_low"] <= base["accuracy/head_3.1"]
    assert "consistency/layer_1" in summary["rounds"][0]["evaluation"]


def test_an_engine_without_layers_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"eval.consistency.layers: needs to look into the model, which engine=scripted"
    ):
        compose(["method=dser", "engine=scripted", "eval.consistency={layers: true}"], needs=False)
