"""SRGen: when it reflects, by the formula; what a reflection does to its own row and to no other; whole, small."""

import asyncio
import json
import math

import pytest
import torch

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.srgen import LOGITS, Reflection, entropy, generate, parts
from selfimprove.policy import Policy
from selfimprove.policy.hooks import Rows
from selfimprove.studies.tiny import shipped
from selfimprove.types import Problem

OFTEN = {"window": 4, "k": 0.5, "least_std": 0.1, "least": 0.2, "first": 0.3}


@pytest.fixture(scope="module")
def engine():
    return shipped()


def reflection(**changed):
    return Reflection(**{**OFTEN, "steps": 3, "learning_rate": 0.03, "weight": 0.05, "most": 20, **changed})


def test_the_threshold_is_the_formula_on_a_recorded_trace():
    hook = reflection(window=4, k=2.0, least_std=0.5, least=1.8, first=3.0)
    trace = [0.1, 2.0, 0.3, 1.0, 4.0, 0.2, 4.9]
    assert [hook.threshold(trace[:t]) for t in range(4)] == [3.0] * 4
    window = trace[:4]
    mean = sum(window) / 4
    std = math.sqrt(sum((x - mean) ** 2 for x in window) / 3)
    assert hook.threshold(trace[:4]) == pytest.approx(mean + 2 * std)
    assert hook.threshold([0.1, 0.1, 0.1, 0.1]) == pytest.approx(1.8), "0.1 + 2 x 0.5 is below the least threshold"
    assert [t for t in range(len(trace)) if trace[t] > hook.threshold(trace[:t])] == [4]


def test_entropy_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.98, 0.01, 0.01]]))
    assert entropy(logits, [1.0, 1.0]).tolist() == pytest.approx([1.5 * math.log(2), 0.1119], abs=1e-4)
    cooler = entropy(logits, [0.5, 0.0])
    assert cooler[0] == pytest.approx(-(2 / 3 * math.log(2 / 3) + 2 / 6 * math.log(1 / 6)))
    assert cooler[1] == pytest.approx(0.1119, abs=1e-4), "greedy decoding looks at temperature 1"


def rows(sequences, seed=0):
    """A decoding step over a random head, without a model."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(11, 5, generator=generator)
    states = [torch.randn(len(ids), 5, generator=generator) for ids in sequences]
    logits = torch.stack([state[-1] @ head.T for state in states])
    many = len(sequences)
    return Rows(
        logits,
        sequences,
        [0] * many,
        [1.0] * many,
        [reflection()] * many,
        [{} for _ in sequences],
        lambda numbers: [states[i] for i in numbers],
        lambda h: h @ head.T,
    )


def test_rows_that_are_optimised_together_do_not_meet():
    both = rows([[1, 2, 3, 4], [5, 6]])
    hook = reflection(learning_rate=0.1)
    together = hook.reflect(both, [0, 1], [1.0, 1.0])
    for i in (0, 1):
        assert torch.allclose(hook.reflect(both, [i], [1.0])[0], together[i], atol=1e-5)
    assert not torch.allclose(together, both.logits, atol=1e-3)


def test_the_loss_is_of_the_prefix_and_of_the_entropy():
    step = rows([[1, 2, 3, 4, 2, 1]])
    sure = reflection(weight=1.0, learning_rate=0.05, steps=20).reflect(step, [0], [1.0])
    assert float(entropy(sure, [1.0])[0]) < float(entropy(step.logits, [1.0])[0])
    alone = rows([[3]])
    assert torch.allclose(reflection(weight=0.0).reflect(alone, [0], [1.0]), alone.logits), "one token has no next one"


def sampled(engine, solver, **options):
    policy = Policy(engine, 0, max_tokens=40)
    problem = Problem("p", [{"role": "user", "content": "Start with 17. Add 8. Multiply by 3. Subtract 4."}])
    return asyncio.run(solver(problem, policy.for_problem(problem), n=3, temperature=0.6, **options))


def test_without_steps_it_is_plain_decoding_to_the_bit(engine):
    found = sampled(engine, generate, steps=0, **OFTEN)
    again = sampled(engine, generate, steps=3, most=0, **OFTEN)
    assert [t.samples[0] for t in found] == [t.samples[0] for t in again]
    assert [t.metadata["reflections"] for t in found] == [[]] * 3

    async def plain(problem, policy, n, temperature):
        own = [policy.for_problem(problem, i) for i in range(n)]
        return await asyncio.gather(*(p.sample(problem.prompt, temperature=temperature) for p in own))

    assert [t.samples for t in found] == sampled(engine, plain)


def test_what_it_reflected_on_is_said(engine):
    found = sampled(engine, generate, steps=3, learning_rate=0.1, **OFTEN)
    reflections = [r for t in found for r in t.metadata["reflections"]]
    assert reflections
    assert all(before > 0.2 and 0 <= place < 40 for place, before, _ in reflections)
    assert sampled(engine, generate, steps=3, learning_rate=0.1, most=1, **OFTEN) != found
    assert found != sampled(engine, best_of_n)


@pytest.mark.parametrize("engine_name", ["vllm", "openai"])
def test_an_engine_without_hooks_is_refused_in_one_line(engine_name):
    with pytest.raises(ConfigError, match=rf"needs hooks, which engine={engine_name}") as refused:
        compose(["method=rejection_sampling", "generate=srgen", f"engine={engine_name}"])
    assert "\n" not in str(refused.value)


def test_an_evaluation_of_it_ends_whole(tmp_path):
    from selfimprove.solving import evaluate_solver

    words = ["method=srgen", "model=tiny", "dataset.heldout_size=4", "tracker=none", "verify.workers=1"]
    summary = evaluate_solver(None, [*words, "method.generate.n=2"], tmp_path / "eval")
    assert summary["status"] == "complete"
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["kind"] == "eval"


def test_reflections_go_in_batches_that_fit():
    lengths = [10, 40, 20, 30]
    assert list(parts([0, 1, 2, 3], lengths, 100)) == [[0, 2, 3, 1]]
    assert list(parts([0, 1, 2, 3], lengths, LOGITS // 40)) == [[0, 2], [3], [1]]
    assert list(parts([1], lengths, LOGITS)) == [[1]], "one row goes whatever it takes"
