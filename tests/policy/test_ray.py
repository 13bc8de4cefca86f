"""The Ray engine: how requests are handed out, and answers from actors on two nodes of which one is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from selfimprove.config import compose
from selfimprove.datasets import arithmetic
from selfimprove.errors import ConfigError, RunError
from selfimprove.policy import Policy, Request
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED, load_model, load_tokenizer
from selfimprove.policy.ray import AHEAD, LOSSES, SETTINGS, Actor, Handout, RayEngine
from selfimprove.session import open_engine
from selfimprove.types import Problem, Sample
from tests.conftest import SCRIPT, SMALL, environment_of
from tests.waiting import PATIENCE, wait_for

os.environ.update(SETTINGS)  # before Ray is imported: it reads some of them then

from ray.exceptions import ActorDiedError, ActorUnavailableError

TINY = str(PACKAGED / "tiny")
BATCH = 8
WIDE = Request((5,) * 512, 1, 0)  # a token more than the tiny model's window


class Plain:
    """An actor without Ray: answers each request with its argument doubled, a turn later, while it lives."""

    def __init__(self, dies: int = 0, gone: bool = False) -> None:
        self.dies = dies  # so many more shards are lost with it
        self.gone = gone
        self.shards: list[list[tuple[int, ...]]] = []
        self.held = self.most = 0
        self.open = asyncio.Event()
        self.open.set()
        self.answer = SimpleNamespace(remote=self._answer)
        self.ready = SimpleNamespace(remote=self._ready)

    async def _ready(self) -> None:
        if self.gone:
            raise ActorDiedError

    async def _answer(self, weights: str, asked: list[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        self.shards.append([arguments for _, arguments in asked])
        self.held += len(asked)
        self.most = max(self.most, self.held)
        await self.open.wait()
        await asyncio.sleep(0.001)
        self.held -= len(asked)
        if self.dies:
            self.dies -= 1
            raise ActorUnavailableError("its machine is gone", None)
        return [ValueError("odd") if number == 13 else (weights, 2 * number) for _, (number,) in asked]


def test_requests_are_spread_and_those_of_one_prompt_stay_together() -> None:
    async def run() -> None:
        actors = [Plain() for _ in range(3)]
        handout = Handout(actors, "w", BATCH)
        asked = [handout.ask((n // 4,), "double", n + 100) for n in range(240)]  # four of each prompt
        assert await asyncio.gather(*asked) == [("w", 2 * n + 200) for n in range(240)]
        assert handout.open == 0
        for actor in actors:
            assert 60 <= sum(map(len, actor.shards)) <= 100
            assert BATCH < actor.most <= AHEAD * BATCH  # more is there as one shard ends
        shards = [{(n - 100) // 4 for (n,) in shard} for actor in actors for shard in actor.shards]
        assert sum(map(len, shards)) == 60

    asyncio.run(run())


def test_few_requests_are_shared_by_all_actors() -> None:
    async def run() -> None:
        actors = [Plain() for _ in range(3)]
        handout = Handout(actors, "w", 64)
        await asyncio.gather(*(handout.ask((1,), "double", n) for n in range(6)))
        assert [sum(map(len, actor.shards)) for actor in actors] == [2, 2, 2]

    asyncio.run(run())


def test_what_is_lost_with_an_actor_is_asked_again_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        good, bad = Plain(), Plain(dies=1)
        handout = Handout([good, bad], "w", BATCH)
        assert await asyncio.gather(*(handout.ask((n,), "double", n + 100) for n in range(40))) == [
            ("w", 2 * n + 200) for n in range(40)
        ]
        lost = len(bad.shards[0])
        assert handout.asked_again == lost
        assert sum(map(len, good.shards + bad.shards)) == 40 + lost
        (line,) = caplog.messages
        assert f"lost: {lost} of " in line

    asyncio.run(run())


def test_a_request_that_takes_every_actor_with_it_is_given_up() -> None:
    async def run() -> None:
        handout = Handout([Plain(dies=99), Plain(dies=99)], "w", BATCH)
        with pytest.raises(RunError, match=f"{LOSSES} actors were lost with the same request: .*machine is gone"):
            await handout.ask((1,), "double", 1)

    asyncio.run(run())


def test_actors_that_never_start_are_an_error_once_none_is_left() -> None:
    async def run() -> None:
        handout = Handout([Plain(gone=True), Plain()], "w", BATCH)
        assert await handout.ask((1,), "double", 1) == ("w", 2)
        with pytest.raises(RunError, match="no actor could be started"):
            await Handout([Plain(gone=True)], "w", BATCH).ask((1,), "double", 1)

    asyncio.run(run())


def test_one_request_that_fails_fails_alone_and_a_cancelled_one_is_not_asked() -> None:
    async def run() -> None:
        actor = Plain()
        handout = Handout([actor], "w", BATCH)
        found = await asyncio.gather(*(handout.ask((n,), "double", n) for n in (12, 13)), return_exceptions=True)
        assert found[0] == ("w", 24)
        assert isinstance(found[1], ValueError)
        actor.open.clear()
        asked = [asyncio.create_task(handout.ask((n,), "double", n)) for n in range(100, 140)]
        while actor.held < AHEAD * BATCH:
            await asyncio.sleep(0)
        for task in asked[30:]:  # still waiting
            task.cancel()
        actor.open.set()
        await asyncio.wait(asked)
        assert {n for shard in actor.shards for (n,) in shard} == {12, 13, *range(100, 130)}
        assert handout.open == 0

    asyncio.run(run())


def test_an_actor_reads_other_weights_behind_the_shards_it_is_at(single, other, problems) -> None:
    async def run() -> None:
        actor = Actor(partial(TransformersEngine, TINY, device="cpu", dtype="float32", max_batch=16), TINY)
        ids = single.render(problems[0].prompt)
        long, short = (("sample", (Request(tuple(ids), most, 0, 0.0),)) for most in (60, 4))
        first = asyncio.create_task(actor.answer(TINY, [long]))
        await asyncio.sleep(0)
        ((after,), (before,)) = await asyncio.gather(actor.answer(other, [short]), first)
        assert before.completion_ids == (await single.sample(long[1][0])).completion_ids
        single.load(other)
        assert after.logprobs == pytest.approx((await single.sample(short[1][0])).logprobs, abs=1e-4)
        assert after.logprobs != pytest.approx(before.logprobs[:4], abs=1e-2)
        single.load(TINY)
        missing, too_long = (
            await actor.answer("/no/such", [long, short]),
            await actor.answer(TINY, [("sample", (WIDE,))]),
        )
        assert [str(problem) for problem in missing] == [str(missing[0])] * 2
        assert "/no/such is not there on" in str(missing[0])
        assert "do not fit the window" in str(too_long[0])

    asyncio.run(run())


# Two nodes, each with one core and so one actor: a head, where this process is, and another one.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.other = cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(cluster: Any, loop: asyncio.Runner) -> Iterator[RayEngine]:
    where = ["engine=ray", "engine@engine.inner=transformers", f"engine.address={cluster.address}"]
    engine = open_engine(compose([*where, "hardware.max_batch=16"]), TINY, ())
    assert isinstance(engine, RayEngine)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> str:
    """Weights of the same shape that say something else."""
    import torch

    model, folder = load_model(TINY), tmp_path_factory.mktemp("other")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    model.save_pretrained(folder)
    load_tokenizer(TINY).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def single() -> TransformersEngine:
    return TransformersEngine(TINY, device="cpu", dtype="float32", max_batch=16)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return arithmetic.load(train_size=48, heldout_size=0, seed=0)


async def answers(engine: Any, problems: list[Problem]) -> list[Sample]:
    async def one(problem: Problem) -> list[Sample]:
        return await Policy(engine, 0, max_tokens=60).for_problem(problem).sample(problem.prompt, 4)

    return [sample for group in await asyncio.gather(*map(one, problems)) for sample in group]


def ids(samples: list[Sample]) -> list[list[int]]:
    return [sample.completion_ids for sample in samples]


@pytest.mark.slow
def test_two_nodes_answer_what_a_single_engine_does(loop, engine, single, problems) -> None:
    mine, theirs = (loop.run(answers(e, problems)) for e in (engine, single))
    assert ids(mine) == ids(theirs)
    assert [s.text for s in mine] == [s.text for s in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    first = theirs[0]
    for ask in (
        lambda e: e.logprobs(first.prompt_ids, first.completion_ids),
        lambda e: e.beam(first.prompt_ids, 3, 20),
    ):
        a, b = (loop.run(ask(e)) for e in (engine, single))
        assert getattr(a, "logprobs", a) == pytest.approx(getattr(b, "logprobs", b), abs=1e-4)
    assert engine.handout.asked_again == 0
    assert engine.max_length == single.max_length
    with pytest.raises(ValueError, match="do not fit the window"):
        loop.run(engine.sample(WIDE))


@pytest.mark.slow
def test_new_weights_reach_every_actor_and_a_folder_that_is_missing_is_one_line(
    loop, engine, single, problems, other
) -> None:
    before = ids(loop.run(answers(engine, problems)))
    for e in (engine, single):
        e.load(other)
    mine, theirs = (ids(loop.run(answers(e, problems))) for e in (engine, single))
    assert mine == theirs
    assert mine != before
    engine.load("/no/such/folder")
    with pytest.raises(ConfigError, match=r"/no/such/folder is not there on .* a disk that all machines"):
        loop.run(Policy(engine, 0).sample("1 + 1"))
    for e in (engine, single):
        e.load(TINY)


@pytest.mark.slow
def test_a_node_that_is_lost_midway_costs_its_own_shards_and_one_that_joins_takes_its_place(
    loop, engine, single, cluster, problems, caplog
) -> None:
    import ray

    async def lose_one() -> tuple[list[Sample], int]:
        asked = asyncio.create_task(answers(engine, problems))
        here = ray.get_runtime_context().get_node_id()
        while not all(member.asked for member in engine.handout.members):
            await asyncio.sleep(0.001)
        held = [member.asked for member in engine.handout.members]
        raylet = cluster.other.all_processes["raylet"][0].process.pid
        workers = subprocess.run(["pgrep", "-P", str(raylet)], capture_output=True, text=True, check=True).stdout
        for pid in [raylet, *map(int, workers.split())]:  # as when the power goes
            os.kill(pid, signal.SIGKILL)
        assert here != cluster.other.node_id
        return await asked, max(held)

    want = loop.run(answers(single, problems))
    got, held = loop.run(lose_one())
    assert ids(got) == ids(want)
    assert 0 < engine.handout.asked_again <= held
    assert f"lost: {engine.handout.asked_again} of " in caplog.text

    cluster.remove_node(cluster.other, allow_graceful=False)
    cluster.other = cluster.add_node(num_cpus=1)

    async def back() -> None:
        while not all(member.up for member in engine.handout.members):
            await asyncio.sleep(0.1)

    loop.run(asyncio.wait_for(back(), PATIENCE))
    engine.load(str(PACKAGED / "tiny"))
    assert ids(loop.run(answers(engine, problems))) == ids(want)


def test_a_cluster_that_is_not_there_is_one_line_before_anything_is_written(cli, tmp_path) -> None:
    for given, said in (
        ("engine.address='127.0.0.1:9'", "engine.address=127.0.0.1:9: no Ray cluster that can be joined ([Errno 111]"),
        ("+engine.inner.nonsense=1", "engine.inner.nonsense: unknown key"),
    ):
        done = cli("run", "engine=ray", given, "hydra.run.dir=run", check=2)
        (line,) = done.stderr.splitlines()
        assert said in line
    assert not (tmp_path / "run").exists()


# Whole runs, on a Ray of their own.


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_leaves_no_ray_behind_and_is_resumed(cli, tmp_path, number) -> None:
    here = ["engine=ray", "engine@engine.inner=transformers", "engine.address=null", "engine.actors=2"]
    sized = [*SMALL, "rounds=1", "dataset.train_size=96", "hardware.shard=24"]
    cli("run", *sized, "hydra.run.dir=alone")
    environment = environment_of(tmp_path / "home")
    arguments = [SCRIPT, "run", *sized, *here, "hydra.run.dir=run"]
    with subprocess.Popen(arguments, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: list((tmp_path / "run/rounds/000").rglob("*.parquet")), process)
        family = descendants(process.pid)
        assert [called(pid) for pid in family].count("ray::Actor") == 2
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
    wait_for(lambda: not {called(pid) for pid in family} & {"raylet", "gcs_server", "ray::Actor"})
    if number == signal.SIGTERM:
        assert json.loads((tmp_path / "run/summary.json").read_text())["reason"] == "SIGTERM", err
    assert not (tmp_path / "run/rounds/000/generate.manifest.json").exists()
    cli("resume", "run")
    for name in ("base/evaluation", "rounds/000", "rounds/000/evaluation"):
        mine, theirs = (pq.read_table(tmp_path / run / name / "trajectories.parquet") for run in ("run", "alone"))
        assert [sampled(row) for row in mine.to_pylist()] == [sampled(row) for row in theirs.to_pylist()]
    mine, theirs = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("run", "alone"))
    assert mine["status"] == "complete"
    assert mine["final"] == theirs["final"]


def sampled(row: dict[str, Any]) -> tuple[str, list[list[int]]]:
    return row["id"], [sample["completion_ids"] for sample in row["samples"]]


def called(pid: int) -> str:
    """Of a process; nothing where it is gone, or a zombie that nobody has asked about."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")
    except OSError:
        return ""
    command, _, state = rest.rpartition(")")
    return "" if state.split()[0] == "Z" else command


def descendants(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
    return [other for child in map(int, found) for other in (child, *descendants(child))]
