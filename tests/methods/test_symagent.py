"""SymAgent: an episode on graph and documents by script, what is merged and learnt, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.datasets.docqa import documents, known, load, triples
from selfimprove.datasets.docqa_teachers import agent
from selfimprove.errors import ConfigError
from selfimprove.methods.symagent import Episode, answer, explore, merged, right, seeds
from selfimprove.policy import Policy, Request
from selfimprove.policy.scripted import END, TURN, ScriptedEngine
from selfimprove.studies.symagent import precision
from selfimprove.tools.graph import Knowledge
from selfimprove.tools.retrieval import Retriever
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.recall import recall
from tests.forks import drive

AGENT = agent()
REFINE = "The reward is {reward}. Try again."


class Careful(ScriptedEngine):
    """Acts as the teacher does. Before it is asked to try again it just finishes with nothing, if it is `lazy`."""

    def __init__(self, lazy: bool = False) -> None:
        super().__init__({})
        self.lazy, self.prompts = lazy, list[str]()

    def render(self, prompt: Any) -> list[int]:
        return [*super().render(prompt), *self.encode(TURN)]

    def turn(self, text: str, ended: bool) -> list[int]:
        return self.encode(f"{TURN}{text}{TURN}")

    async def sample(self, request: Request) -> Sample:
        self.prompts.append(text := "".join(map(chr, request.prompt_ids)))
        question, again, rest = text.partition("Try again.")
        turns = (question.split(TURN)[0] + rest if again else text).replace(END, TURN).split(TURN)
        chat = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(t for t in turns if t)]
        said = "finish()" if self.lazy and not again else await AGENT(chat, temperature=0.0, max_tokens=None, seed=0)
        ids = self.encode(said + END)
        return Sample(list(request.prompt_ids), ids, [0.0] * len(ids), said, "stop", request.seed)

    async def logprobs(self, prompt_ids: Any, completion_ids: Any) -> list[float]:
        return [0.0] * len(completion_ids)


def problems(removed: float) -> list[Problem]:
    found = load(removed=removed, seed=0, prompt="{question}", train_size=3, heldout_size=60)
    return [p for p in found if p.split == "test"]


@cache
def everything() -> Retriever:
    return Retriever(documents(), 10)


def tools(removed: float, corpus: list[str] | None = None) -> dict[str, Any]:
    knowledge = Knowledge(triples(removed=removed), known(count=30), k=1, beam=1, hops=3)
    return {"knowledge": knowledge, "retriever": Retriever(corpus, 10) if corpus else everything(), "teacher": AGENT}


def policy(engine: ScriptedEngine) -> Policy:
    return Policy(engine, 0, max_tokens=500)


async def check(text: str, problem: Problem) -> Outcome:
    return recall(text, problem.gold, problem.metadata)


def test_an_agent_reads_out_of_documents_what_the_graph_lacks() -> None:
    own, asked = tools(0.3), problems(0.3)
    extracted = 0
    for problem in (p for p in asked if p.metadata["missing"] == 1):
        (found,) = asyncio.run(answer(problem, policy(Careful()), steps=8, passages=6, tools=own))
        for triple in found.metadata["extracted"]:
            assert f"The {triple[1]} of {triple[0]} is {triple[2]}." in problem.metadata["facts"]
        if found.text.endswith(f"finish({problem.gold})"):
            assert len(found.metadata["extracted"]) == 1
            extracted += 1
    assert extracted > 10
    assert own["knowledge"].graph.over is None
    assert len(own["knowledge"].graph.links) == len(tools(0.3)["knowledge"].graph.links)  # nothing was added to it


def test_the_graph_alone_answers_nothing_that_it_lacks() -> None:
    asked = [p for p in problems(0.3) if p.metadata["missing"]]
    own = tools(0.3, ["Nothing is known."])
    found = [asyncio.run(answer(p, policy(Careful()), steps=8, passages=2, tools=own))[0] for p in asked[:8]]
    assert {t.text for t in found} == {"finish()"}


def episode(removed: float = 0.0) -> Episode:
    return Episode(Problem("p", "Who?", "7"), tools(removed), 2)


def test_triples_join_the_graph_only_where_documents_were_asked_for_them() -> None:
    own = episode()

    async def all_of_it() -> list[str | None]:
        texts = ["(1, boss, 2)\nsearchNeighbor(1, boss)", "wikiSearch(1, boss)",
                 "(1, boss, 2)\n(1, pal, 3)\n(4, boss, 2)\nsearchNeighbor(1, boss)",
                 "(1, boss, 5)\nsearchNeighbor(1, boss)", "hm", "finish(1)"]  # fmt: skip
        return [await own(text) for text in texts]

    found = asyncio.run(all_of_it())
    assert [found[0], *found[2:]] == ["none", "2", "2", None, None]
    assert own.extracted == [("1", "boss", "2")]


def test_what_is_refined_is_shown_the_first_attempt_and_its_reward() -> None:
    problem, engine = problems(0.0)[0], Careful(lazy=True)
    first, second = asyncio.run(
        explore(problem, policy(engine), steps=8, passages=2, tools=tools(0.0), check=check, refine=REFINE)
    )
    assert (first.metadata["refined"], second.metadata["refined"]) == (False, True)
    assert "finish()" in engine.prompts[1]
    assert "The reward is 0. Try again." in engine.prompts[1]
    assert second.text == f"finish({problem.gold})"
    alone = asyncio.run(
        explore(problem, policy(Careful()), steps=8, passages=2, tools=tools(0.0), check=check, refine=None)
    )
    assert len(alone) == 1


def attempt(number: int, reward: float, *texts: str, finish: Any = "stop") -> Attempt:
    samples, ids = list[Sample](), [100 + number]  # each has another prompt: the second was shown the first
    for text in texts:
        own = [ord(c) for c in text]
        samples.append(Sample(ids, own, [0.0] * len(own), text, finish, 0))
        ids = [*ids, *own, 1, 2]
    status: Any = "correct" if reward == 1 else "wrong"
    return Attempt(Problem("p", "Q", "7"), Trajectory("p", samples, id=f"t{number}"), Verdict("", status, reward))


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [((1.0, 0.5), "t0"), ((0.5, 1.0), "t1"), ((0.5, 0.5), "t1"), ((0.0, 0.0), None), ((0.0, 0.2), "t1")],
)
def test_merged_is_the_higher_reward_then_the_shorter(rewards: tuple[float, float], kept: str | None) -> None:
    group = [attempt(0, rewards[0], "long text", "a"), attempt(1, rewards[1], "b", "c")]
    rows = list(merged([group]))
    assert [row.trajectory_ids[0] for row in rows] == ([kept] if kept else [])
    for row in rows:
        assert row.prompt_ids == [100]  # the problem's own prompt
        assert row.mask == ([1] * 9 + [0, 0, 1] if kept == "t0" else [1, 0, 0, 1])


def test_the_merged_sets_mean_reward_is_at_least_that_of_both() -> None:
    groups = [[attempt(0, i % 3 / 2, "ab"), attempt(1, i % 4 / 3, "cd")] for i in range(12)]
    chosen = {id(group): list(merged([group])) for group in groups}
    rewards = {f"t{k}": [g[k].verdict.reward for g in groups] for k in (0, 1)}
    best = [g[int(chosen[id(g)][0].trajectory_ids[0][1])].verdict.reward if chosen[id(g)] else 0.0 for g in groups]
    assert all(sum(best) >= sum(own) for own in rewards.values())
    assert best == [max(pair) for pair in zip(*rewards.values(), strict=True)]


def test_what_was_cut_off_is_not_learnt() -> None:
    assert list(merged([[attempt(0, 1.0, "a", finish="length")]])) == []
    assert list(right([[attempt(0, 1.0, "a", finish="length"), attempt(1, 0.0, "b")]])) == []
    assert [row.trajectory_ids for row in right([[attempt(0, 0.5, "a"), attempt(1, 1.0, "b")]])] == [["t0"], ["t1"]]


def test_the_teacher_shows_the_form() -> None:
    problem = problems(0.0)[0]
    (found,) = asyncio.run(seeds(problem, policy(Careful()), steps=8, passages=2, tools=tools(0.0), seed=0))
    assert found.text == f"finish({problem.gold})"
    assert {sample.role for sample in found.samples} == {"teacher"}


SIZES = ["method=symagent", "rounds=1", "dataset.train_size=4", "dataset.heldout_size=2", "tracker=none",
         "verify.workers=1", "method.stages.seed.problems.count=3", "method.train.epochs=1", "method.evaluate.steps=1",
         "method.evaluate.max_tokens=6", "method.stages.self.generate.steps=1",
         "method.stages.self.generate.max_tokens=6"]  # fmt: skip


def test_a_small_run_learns_the_form_and_explores(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    taught = list(store.read_records(tmp_path / "rounds/000.0_seed/examples.parquet", Example))
    assert 0 < len(taught) <= 3
    explored = list(store.read_records(tmp_path / "rounds/000.1_self/trajectories.parquet", Trajectory))
    assert [t.metadata["refined"] for t in explored] == [False, True] * 4
    assert "evaluate/accuracy" in json.loads((tmp_path / "rounds/000.1_self/metrics.json").read_text())


@pytest.mark.parametrize(
    "control",
    [
        ["method.stages.self.generate.refine=null"],
        ["method.stages.self.filter._target_=selfimprove.methods.symagent.right"],
        ["method.tools.knowledge.k=3"],
        ["~method.stages.seed", "rounds=3"],
    ],
    ids=str,
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=symagent", *control]).method.name == "symagent"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("~method.tools.knowledge", "method.tools.knowledge: needs a tool of this name"),
        ("method.tools.knowledge.k=0", "method.tools.knowledge.k=0"),
        ("method.tools.knowledge.facts.removed=2", "method.tools.knowledge.facts"),
        ("method.evaluate.steps=0", "steps=0"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=symagent", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(tmp_path, f"{small} hardware.max_batch=1", ["manifest:0/train", "manifest:1/generate"])


def test_precision_is_the_share_of_extracted_triples_that_are_true() -> None:
    one, relation, other = triples()[0]

    def group(*extracted: list[str]) -> list[Attempt]:
        sample = Sample([1], [2], [0.0], "", "stop", 0)
        return [
            Attempt(Problem("p", "Q"), Trajectory("p", [sample], {"extracted": extracted}), Verdict("", "wrong", 0.0))
        ]

    true, false = [one, relation, other], [one, relation, one]
    assert precision([group(true), group(true, false), group()], np.ones(3)) == pytest.approx(2 / 3)
    assert precision([group()], np.ones(1)) == 0
