"""vLLM's engine on a CPU, beside transformers on the same weights: `make test-vllm`."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.vllm import VllmEngine
from selfimprove.types import Sample
from tests import served
from tests.conftest import SMALL
from tests.served import CLOSE, PREAMBLE, TINY, WINDOW, answers, gap, greedy, questions, same_answers
from tests.waiting import PATIENCE

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return served.other_weights(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(loop: asyncio.Runner) -> Iterator[VllmEngine]:
    made = VllmEngine(TINY, served.model(), served.hardware(sleep=True), eager=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    return served.reference()


def test_greedy_answers_are_those_of_transformers(loop, engine, reference) -> None:
    mine, theirs = (greedy(loop, e, questions(24)) for e in (engine, reference))
    assert same_answers(mine, theirs) >= 23  # a tie may fall either way


def test_logprobs_of_samples_are_at_temperature_1_and_what_scoring_gives(loop, engine, reference) -> None:
    sampled = [s for group in loop.run(answers(engine, questions(6), n=2, temperature=0.6)) for s in group]
    assert gap(loop, sampled, engine) < CLOSE
    assert gap(loop, sampled, reference) < CLOSE


def test_a_completion_that_fills_the_window_is_scored_whole_and_a_single_token_too(loop, engine, reference) -> None:
    ids = [5 + i % 40 for i in range(WINDOW)]
    for start in (200, WINDOW - 1):
        mine, theirs = (loop.run(e.logprobs(ids[:start], ids[start:])) for e in (engine, reference))
        assert len(mine) == WINDOW - start
        assert mine == pytest.approx(theirs, abs=CLOSE)


def test_a_seed_gives_the_same_sample_again_and_another_seed_another(loop, engine) -> None:
    first, again = (loop.run(answers(engine, questions(24), n=2)) for _ in range(2))
    assert [[s.completion_ids for s in g] for g in first] == [[s.completion_ids for s in g] for g in again]
    assert any(a.completion_ids != b.completion_ids for a, b in first)


def test_tokens_are_drawn_as_often_as_they_are_probable(loop, engine) -> None:
    policy, n = Policy(engine, seed=0, max_tokens=1), 4000
    said: dict[int, float] = {}  # the policy's own probabilities

    def shares(**options: float) -> dict[int, float]:
        drawn = loop.run(policy.sample("12 + ", n, **options))
        said.update({sample.completion_ids[0]: math.exp(sample.logprobs[0]) for sample in drawn})
        return {token: count / n for token, count in Counter(sample.completion_ids[0] for sample in drawn).items()}

    for token, share in shares().items():
        assert share == pytest.approx(said[token], abs=4 * math.sqrt(said[token] / n) + 1 / n)
    first, second, third = sorted(said, key=lambda token: said[token], reverse=True)[:3]
    assert said[third] > 0.01, "a prompt that leaves little open tests nothing"
    warm = shares(temperature=2.0)
    assert warm[first] / warm[second] == pytest.approx(math.sqrt(said[first] / said[second]), rel=0.15)
    assert shares(top_k=2).keys() == {first, second}
    assert shares(top_p=said[first] + said[second] / 2).keys() == {first, second}
    assert shares(top_p=said[first] / 2).keys() == {first}


def test_a_stop_string_ends_a_sample_and_is_kept(loop, engine) -> None:
    policy = Policy(engine, seed=0, max_tokens=60)
    (sample,) = loop.run(policy.sample(questions(1)[0], temperature=0.0, stop=("\n",)))
    assert sample.text.endswith("\n")
    assert sample.text.count("\n") == 1
    assert sample.finish == "stop"
    assert len(sample.logprobs) == len(sample.completion_ids)


def test_new_weights_answer_and_nothing_of_the_old_ones_is_left_in_the_cache(
    loop, engine, reference, other, monkeypatch
) -> None:
    prompts = questions(24, PREAMBLE)  # long enough to be cached
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


def test_an_adapter_is_merged_into_the_weights(loop, engine, tmp_path) -> None:
    made = served.adapter(tmp_path, seed=0)
    engine.load(made)
    answered = greedy(loop, engine, questions(8))
    assert gap(loop, answered, served.reference(made)) < CLOSE
    assert gap(loop, answered, served.reference()) > 100 * CLOSE
    engine.load(TINY)


def test_who_slept_reads_the_weights_that_are_wanted_then(loop, engine, reference, other, monkeypatch) -> None:
    """On a CPU nothing is let go of; the order of calls is the one for a GPU, where sleep discards the weights."""
    greedy(loop, engine, questions(1))
    called: list[str] = []
    for name in ("sleep", "wake_up", "collective_rpc", "reset_prefix_cache"):
        monkeypatch.setattr(engine._llm, name, _noting(called, name, getattr(engine._llm, name)))
    for wanted in (None, other):  # the same weights as before, and others
        loop.run(engine.sleep())
        loop.run(engine.sleep())  # it already does
        assert loop.run(engine._llm.is_sleeping())
        if wanted:
            engine.load(wanted)
            reference.load(wanted)
        assert gap(loop, greedy(loop, engine, questions(8)), reference) < CLOSE
        assert called == ["sleep 2", "wake_up weights", "collective_rpc", "wake_up kv_cache", "reset_prefix_cache"]
        called.clear()
    monkeypatch.undo()
    reference.load(TINY)
    engine.load(TINY)


def _noting(called: list[str], name: str, real):
    async def noting(*args, **options):
        called.append(" ".join([name, *map(str, [*options.get("tags", []), *filter(None, [options.get("level")])])]))
        return await real(*args, **options)

    return noting


def test_weights_do_not_change_while_requests_are_in_flight(loop, engine, other) -> None:
    async def change_on_the_way() -> None:
        asked = asyncio.create_task(answers(engine, questions(4)))
        while not engine._open:
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="in flight"):
            engine.load(other)
        with pytest.raises(RuntimeError, match="in flight"):
            await engine.sleep()
        await asked

    loop.run(change_on_the_way())


def test_an_engine_core_that_is_killed_is_started_again_and_only_what_it_had_not_answered_is_asked_again(
    loop, engine, monkeypatch
) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    want = loop.run(answers(engine, questions(24), n=16))
    asked: list[int] = []  # seeds, which are all different
    answered: set[int] = set()
    generate, sample = AsyncLLM.generate, engine.sample

    def noting(self, prompt, params, *args, **options):
        asked.append(params.extra_args["seed"])
        return generate(self, prompt, params, *args, **options)

    async def noting_answer(request) -> Sample:
        found = await sample(request)
        answered.add(request.seed % 2**63)
        return found

    monkeypatch.setattr(AsyncLLM, "generate", noting)
    monkeypatch.setattr(engine, "sample", noting_answer)

    async def killed_on_the_way() -> list[list[Sample]]:
        working = asyncio.create_task(answers(engine, questions(24), n=16))
        while not answered:
            await asyncio.sleep(0.01)
        os.kill(core(), signal.SIGKILL)
        before = set(answered)
        first = len(asked)
        assert 0 < len(before) < first == 24 * 16
        found = await working
        again = asked[first:]
        assert len(set(again)) == len(again) > 0
        assert not before & set(again)
        return found

    got = loop.run(killed_on_the_way())
    same = [
        a.completion_ids == b.completion_ids for x, y in zip(got, want, strict=True) for a, b in zip(x, y, strict=True)
    ]
    assert sum(same) > 0.9 * len(same)  # other batches: a draw may fall otherwise here and there


def test_a_core_that_died_unnoticed_can_be_told_to_sleep(loop, engine) -> None:
    greedy(loop, engine, questions(1))
    os.kill(core(), signal.SIGKILL)

    async def noticed() -> None:
        while not engine._llm.errored:
            await asyncio.sleep(0.01)

    loop.run(asyncio.wait_for(noticed(), PATIENCE))
    loop.run(engine.sleep())
    assert engine._llm is None  # the next request starts another


def core() -> int:
    """The process id of the engine core, a child of this one."""
    children = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True, check=True).stdout
    return next(int(pid) for pid in children.split() if "EngineCor" in Path(f"/proc/{pid}/comm").read_text())


@pytest.mark.parametrize(
    "options", [[], ["engine.adapters=request", "model.lora={r: 8, alpha: 16}", "hardware.sleep=true"]]
)
def test_a_whole_run_samples_with_vllm_and_learns(cli, tmp_path: Path, options: list[str]) -> None:
    cli("run", "engine=vllm", "engine.eager=true", "rounds=2", *options, *SMALL, "hydra.run.dir=run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "complete"
    assert [r["examples"] > 0 for r in summary["rounds"]] == [True, True]
