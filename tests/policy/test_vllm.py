"""vLLM's engine on a CPU, beside transformers on the same weights: `make test-vllm`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfimprove.datasets import arithmetic
from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED, load_model, load_tokenizer
from selfimprove.policy.vllm import VllmEngine
from selfimprove.types import Problem, Sample
from tests.conftest import SMALL

pytestmark = pytest.mark.vllm

TINY = str(PACKAGED / "tiny")
PREAMBLE = "Here is a chain of steps. Work through it line by line, and be careful with each of the lines. " * 3
CLOSE = 1e-3  # nats, between two engines in float32


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return arithmetic.load(train_size=24, heldout_size=0, seed=0)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of the same shape that say something else."""
    import torch

    model, folder = load_model(TINY), tmp_path_factory.mktemp("other")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.1 * weights.std() * torch.randn_like(weights)
    model.save_pretrained(folder)
    load_tokenizer(TINY).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(loop: asyncio.Runner) -> Iterator[VllmEngine]:
    made = VllmEngine(TINY, device="cpu", dtype="float32", max_batch=64, max_length=512, eager=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    return TransformersEngine(TINY, max_length=512)


async def answers(
    engine: VllmEngine | TransformersEngine, prompts: list[str], n: int = 1, **sampling: float
) -> list[list[Sample]]:
    policy = Policy(engine, seed=0, max_tokens=60)
    return await asyncio.gather(*(policy.on(engine, str(i)).sample(p, n, **sampling) for i, p in enumerate(prompts)))  # type: ignore[arg-type]


def greedy(loop: asyncio.Runner, engine: VllmEngine | TransformersEngine, prompts: list[str]) -> list[Sample]:
    return [group[0] for group in loop.run(answers(engine, prompts, temperature=0.0))]


def gap(loop: asyncio.Runner, samples: list[Sample], reference: TransformersEngine) -> float:
    """The largest difference between what samples say of their log-probabilities and what the reference says."""
    scored = [loop.run(reference.logprobs(s.prompt_ids, s.completion_ids)) for s in samples]
    return max(
        abs(a - b) for s, scores in zip(samples, scored, strict=True) for a, b in zip(s.logprobs, scores, strict=True)
    )


def questions(problems: list[Problem], preamble: str = "") -> list[str]:
    return [preamble + problem.metadata["question"] for problem in problems]


def test_greedy_answers_are_those_of_transformers(loop, engine, reference, problems) -> None:
    mine, theirs = (greedy(loop, e, questions(problems)) for e in (engine, reference))
    same = [a.completion_ids == b.completion_ids for a, b in zip(mine, theirs, strict=True)]
    assert sum(same) >= len(same) - 1  # a tie may fall either way
    for a, b in zip(mine, theirs, strict=True):
        if a.completion_ids == b.completion_ids:
            assert (a.text, a.finish, a.prompt_ids) == (b.text, b.finish, b.prompt_ids)
            assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)


def test_logprobs_of_samples_are_at_temperature_1_and_what_scoring_gives(loop, engine, reference, problems) -> None:
    sampled = [s for group in loop.run(answers(engine, questions(problems), n=2, temperature=0.6)) for s in group]
    for sample in sampled[:12]:
        for scorer in (engine, reference):
            scored = loop.run(scorer.logprobs(sample.prompt_ids, sample.completion_ids))
            assert sample.logprobs == pytest.approx(scored, abs=CLOSE)


def test_a_completion_that_fills_the_window_is_scored_whole(loop, engine, reference) -> None:
    ids = [5 + i % 40 for i in range(512)]
    mine, theirs = (loop.run(e.logprobs(ids[:200], ids[200:])) for e in (engine, reference))
    assert len(mine) == 312
    assert mine == pytest.approx(theirs, abs=CLOSE)


def test_a_seed_gives_the_same_sample_again_and_another_seed_another(loop, engine, problems) -> None:
    first, again = (loop.run(answers(engine, questions(problems), n=2)) for _ in range(2))
    assert [[s.completion_ids for s in g] for g in first] == [[s.completion_ids for s in g] for g in again]
    assert any(a.completion_ids != b.completion_ids for a, b in first)


def test_a_stop_string_ends_a_sample_and_is_kept(loop, engine, problems) -> None:
    policy = Policy(engine, seed=0, max_tokens=60)
    (sample,) = loop.run(policy.sample(questions(problems)[0], temperature=0.0, stop=("\n",)))
    assert sample.text.endswith("\n")
    assert sample.text.count("\n") == 1
    assert sample.finish == "stop"
    assert len(sample.logprobs) == len(sample.completion_ids)


def test_new_weights_answer_and_nothing_of_the_old_ones_is_left_in_the_cache(
    loop, engine, reference, problems, other, monkeypatch
) -> None:
    prompts = questions(problems, PREAMBLE)  # long enough to be cached
    greedy(loop, engine, prompts)
    reference.load(other)
    engine.load(other)
    assert gap(loop, greedy(loop, engine, prompts), reference) < CLOSE

    # The same without dropping the cache: it shows.
    engine.load(TINY)
    greedy(loop, engine, prompts)

    async def nothing(*args: object, **options: object) -> bool:
        return True

    monkeypatch.setattr(engine._llm, "reset_prefix_cache", nothing)
    monkeypatch.setattr(engine._llm, "pause_generation", nothing)
    engine.load(other)
    assert gap(loop, greedy(loop, engine, prompts), reference) > 100 * CLOSE
    monkeypatch.undo()
    reference.load(TINY)
    engine.load(TINY)
    greedy(loop, engine, prompts)


def test_an_engine_core_that_is_killed_is_started_again_and_every_request_answered(loop, engine, problems) -> None:
    want = loop.run(answers(engine, questions(problems), n=16))
    finished: list[int] = []

    async def killed_on_the_way() -> list[list[Sample]]:
        async def one(i: int, prompt: str) -> list[Sample]:
            found = await Policy(engine, seed=0, max_tokens=60).on(engine, str(i)).sample(prompt, 16)
            finished.append(i)
            return found

        asked = [asyncio.create_task(one(i, prompt)) for i, prompt in enumerate(questions(problems))]
        while not finished:
            await asyncio.sleep(0.01)
        assert len(finished) < len(problems)
        os.kill(core(), signal.SIGKILL)
        return await asyncio.gather(*asked)

    got = loop.run(killed_on_the_way())
    same = [
        a.completion_ids == b.completion_ids for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert sum(same) > 0.9 * len(same)  # other batches: a draw may fall otherwise here and there


def core() -> int:
    """The process id of the engine core, a child of this one."""
    children = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True).stdout
    return next(int(pid) for pid in children.split() if "EngineCor" in Path(f"/proc/{pid}/comm").read_text())


def test_a_whole_run_samples_with_vllm_and_learns(cli, tmp_path: Path) -> None:
    cli("run", "engine=vllm", "engine.eager=true", "rounds=2", *SMALL, "hydra.run.dir=run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert [r["examples"] > 0 for r in summary["rounds"]] == [True, True]
