"""Auto-RAG: the dialogue with a retriever by script, what is kept of it, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from selfimprove import run, store
from selfimprove.config import compose
from selfimprove.datasets.docqa import documents, load
from selfimprove.datasets.docqa_teachers import teacher
from selfimprove.errors import ConfigError
from selfimprove.methods.auto_rag import answer, curate, dialogues
from selfimprove.policy import Policy, Request
from selfimprove.policy.scripted import END, TURN, ScriptedEngine
from selfimprove.studies.auto_rag import retrieved_once, spearman
from selfimprove.tools.retrieval import Retriever
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from tests.forks import drive

SHOWN, DOCUMENT = "Document {number}: {documents}", "{question} {query} Document:"
SURE = teacher(wrong_queries=0.0, misreads=0.0)


class Careful(ScriptedEngine):
    """Talks with the retriever as the teacher does when it makes no mistake. A document of its own is `knows`."""

    def __init__(self, knows: str = "I do not know.") -> None:
        super().__init__({})
        self.knows, self.asked = knows, list[str]()

    def render(self, prompt: Any) -> list[int]:
        return [*super().render(prompt), *self.encode(TURN)]

    def turn(self, text: str, ended: bool) -> list[int]:
        return self.encode(f"{TURN}{text}{TURN}")

    async def sample(self, request: Request) -> Sample:
        turns = "".join(map(chr, request.prompt_ids)).replace(END, TURN).split(TURN)
        chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(t for t in turns if t)]
        if turns[0].endswith("Document:"):
            said = self.knows
            self.asked.append(turns[0])
        else:
            said = await SURE(chat, temperature=0.0, max_tokens=None, seed=0)
        ids = self.encode(said + END)
        return Sample(list(request.prompt_ids), ids, [0.0] * len(ids), said, "stop", request.seed)

    async def logprobs(self, prompt_ids: Any, completion_ids: Any) -> list[float]:
        return [0.0] * len(completion_ids)


def problem(hops: int) -> Problem:
    found = load(seed=0, prompt="{question}", train_size=30, heldout_size=3)
    return next(p for p in found if p.metadata["hops"] == hops)


def answered(asked: Problem, passages: list[str], engine: Careful, **options: Any) -> Trajectory:
    settings = {"max_iter": 5, "elicit_max_iter": 2, "max_passages": 2, "shown": SHOWN, "document": DOCUMENT}
    policy = Policy(engine, 0, max_tokens=200)
    tools = {"retriever": Retriever(passages, 10)}
    (found,) = asyncio.run(answer(asked, policy, **{**settings, **options}, tools=tools))
    return found


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_policy_asks_at_most_once_a_hop_where_the_documents_are_there(hops: int) -> None:
    asked = problem(hops)
    found = answered(asked, asked.metadata["facts"], Careful())
    assert found.metadata["searches"] <= hops
    assert found.metadata["written"] == []
    assert found.text.endswith(f"Final Answer: {asked.gold}")
    for before, after in zip(found.samples, found.samples[1:], strict=False):
        so_far = [*before.prompt_ids, *before.completion_ids]
        assert after.prompt_ids[: len(so_far)] == so_far


def test_no_document_is_shown_twice_and_at_most_so_many_at_once() -> None:
    asked = problem(1)
    passages = [one for one in documents() if one not in asked.metadata["facts"]]
    found = answered(asked, passages, Careful(), max_passages=3)
    text = "".join(map(chr, found.samples[-1].prompt_ids))
    shown = [line.split(TURN)[0] for line in text.split("Document ")[1:]]
    assert [line.partition(":")[0] for line in shown] == ["1", "2", "3", "4", "5", "6", "7"]
    sentences = [one for line in shown[:5] for one in line.partition(": ")[2].split(".") if one.strip(END + "\n ")]
    assert len(sentences) == len(set(sentences))
    assert all(line.count(" is ") <= 3 for line in shown)


def test_without_its_document_it_asks_to_the_end_and_then_writes_its_own() -> None:
    asked = problem(1)
    (fact,) = asked.metadata["facts"]
    passages = [one for one in documents() if one != fact]
    engine = Careful()
    found = answered(asked, passages, engine)
    assert found.metadata == {"searches": 5, "written": [engine.knows] * 2}
    assert "Final Answer" not in found.text
    relation, person = fact.split()[1], fact.split()[3]
    assert engine.asked == [f"{asked.metadata['question']} {relation} of {person} Document:"] * 2


def test_what_it_knows_itself_answers() -> None:
    asked = problem(1)
    (fact,) = asked.metadata["facts"]
    found = answered(asked, ["The moon is far."], Careful(knows=fact), max_iter=1)
    assert found.metadata == {"searches": 1, "written": [fact]}
    assert found.text.endswith(f"Final Answer: {asked.gold}")
    never = answered(asked, ["The moon is far."], Careful(knows=fact), max_iter=1, elicit_max_iter=0)
    assert never.metadata["written"] == []


@cache
def everything() -> Retriever:
    return Retriever(documents(), 10)


def taught(asked: Problem, says: Any, queries: int, seed: int = 0, window: int = 100_000) -> list[Trajectory]:
    engine = Careful()
    engine.max_length = window
    tools = {"retriever": everything(), "teacher": says}
    options: dict[str, Any] = {"max_iter": 5, "max_passages": 1, "shown": SHOWN}
    return asyncio.run(curate(asked, Policy(engine, 0), **options, queries=queries, tools=tools, seed=seed))


def test_of_several_queries_one_is_kept_that_finds_a_sub_answer() -> None:
    asked = problem(2)
    says = teacher(wrong_queries=0.5, misreads=0.0)
    few, many = ([taught(asked, says, n, seed)[0] for seed in range(8)] for n in (1, 6))
    assert sum(len(t.samples) for t in many) < sum(len(t.samples) for t in few)
    assert {s.role for t in many for s in t.samples} == {"teacher"}


def test_without_sub_answers_any_query_is_kept() -> None:
    asked = problem(2)
    asked.metadata.pop("sub_answers")
    says = teacher(wrong_queries=0.5, misreads=0.0)
    first = {taught(asked, says, 12, seed)[0].samples[0].text.split()[1] for seed in range(8)}
    assert len(first) > 1


def test_a_dialogue_that_does_not_fit_the_window_is_not_kept() -> None:
    assert taught(problem(1), SURE, 1, window=10) == []
    (cut,) = taught(problem(1), SURE, 1, window=100)
    assert list(dialogues([[attempt(cut, "unparseable")]])) == []


def attempt(trajectory: Trajectory, status: Any) -> Attempt:
    return Attempt(problem(1), trajectory, Verdict("", status, 0.0))


def test_rows_are_dialogues_with_a_right_answer_and_no_loss_on_documents() -> None:
    (found,) = taught(problem(2), SURE, 1)
    group = [attempt(found, "correct"), attempt(found, "wrong")]
    (row,) = dialogues([group])
    learnt = "".join(chr(i) for i, m in zip(row.completion_ids, row.mask or [], strict=True) if m)
    assert learnt.replace(END, "") == "".join(sample.text for sample in found.samples)
    assert "Document" not in learnt
    assert "Document 1: " in "".join(map(chr, row.completion_ids))
    assert len(list(dialogues([group], right=False))) == 2


SIZES = ["method=auto_rag", "rounds=1", "dataset.train_size=6", "dataset.heldout_size=3", "tracker=none",
         "verify.workers=1", "method.train.epochs=1", "method.evaluate.max_iter=1", "method.evaluate.max_tokens=8",
         "method.evaluate.elicit_max_iter=1"]  # fmt: skip


def test_a_small_run_learns_from_the_teachers_dialogues(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    rows = list(store.read_records(tmp_path / "rounds/000/examples.parquet", Example))
    assert 0 < len(rows) <= 6
    assert all(0 in (row.mask or []) and 1 in (row.mask or []) for row in rows)
    assert "evaluate/accuracy" in json.loads((tmp_path / "rounds/000/metrics.json").read_text())


SERVER = ["teacher@method.tools.teacher=server", "method.tools.teacher.url=http://x/v1", "method.tools.teacher.model=m"]


@pytest.mark.parametrize(
    "control",
    [
        ["method.filter.right=false"],
        ["method.evaluate.max_iter=1", "method.evaluate.max_passages=10"],
        ["method.evaluate.elicit_max_iter=0"],
        ["method.generate.queries=1"],
        ["dataset.removed=0.2"],
        ["dataset=wordnet", "retriever@method.tools.retriever=wordnet", *SERVER],
        ["dataset=boolq", "retriever@method.tools.retriever=boolq", *SERVER],
    ],
    ids=str,
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=auto_rag", *control]).method.name == "auto_rag"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("~method.tools.teacher", "method.tools.teacher: needs a tool of this name"),
        ("method.evaluate.max_iter=0", "max_iter=0"),
        ("method.evaluate.elicit_max_iter=-1", "elicit_max_iter=-1"),
        ("method.tools.teacher.misreads=2", "method.tools.teacher.misreads=2"),
        ("dataset=alpacaeval", "method=auto_rag needs gold"),
        ("dataset=wordnet", "method.tools.teacher=selfimprove.datasets.docqa_teachers.teacher needs facts"),
    ],
)
def test_a_wrong_choice_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=auto_rag", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_while_it_trains_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(tmp_path, f"{small} hardware.max_batch=1", ["manifest:0/generate", "manifest:0/train"])


def counted(hops: int, searches: int) -> list[Attempt]:
    sample = Sample([1], [2], [0.0], "", "stop", 0)
    asked = Problem(f"{hops}-{searches}", "Q", metadata={"hops": hops})
    return [Attempt(asked, Trajectory(asked.id, [sample], {"searches": searches}), Verdict("", "wrong", 0.0))]


def test_the_studys_rank_correlation_is_scipys_where_all_weigh_the_same() -> None:
    groups = [counted(hops, searches) for hops, searches in ((1, 1), (1, 3), (2, 2), (3, 5), (3, 4), (2, 1))]
    hops = [g[0].problem.metadata["hops"] for g in groups]
    searches = [g[0].trajectory.metadata["searches"] for g in groups]
    assert spearman(groups, np.ones(6)) == pytest.approx(spearmanr(hops, searches).statistic)
    assert spearman([counted(1, 2), counted(2, 2)], np.ones(2)) == 0


def test_one_retrieval_answers_only_what_it_holds_whole() -> None:
    found = load(seed=0, prompt="{question}", train_size=0, heldout_size=60)
    asked = [p for p in found if p.split == "test"]
    few, all_of_it = retrieved_once(asked, 2), retrieved_once(asked, 1840)
    assert all(few[name] <= all_of_it[name] for name in few)
    by_hops = {n: np.mean([few[p.id] for p in asked if p.metadata["hops"] == n]) for n in (1, 2, 3)}
    assert by_hops[3] == 0  # three facts are not two passages
    assert by_hops[1] > 0.5
