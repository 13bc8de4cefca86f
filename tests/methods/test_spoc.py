"""SPOC: the rows of PairSFT, the reward of each message, where a response ends, and a whole small run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfimprove import run, store
from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.spoc import by_solution, judged, respond, woven
from selfimprove.policy import Policy, Request, chat
from selfimprove.policy.models import PACKAGED, load_tokenizer
from selfimprove.policy.scripted import ANSWER, END, ScriptedEngine
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Context, Outcome
from tests.forks import drive

YES, NO, CHECK = "Verdict: correct", "Verdict: incorrect", "\nReview:\n"
PROBLEM = Problem("p", "Question?", "7")
WORDS: dict[str, Any] = {"check_words": CHECK, "rejects": NO}


@pytest.fixture(scope="module")
def text() -> chat.Tokenizer:
    return chat.Tokenizer(load_tokenizer(str(PACKAGED / "tiny")))


def pair(text: chat.Tokenizer, number: int, solution: str, check: str, rewards: list[float]) -> Attempt:
    samples = [Sample([1, 2], [*text.encode(said), text.end], [], said, "stop", 0) for said in (solution, check)]
    verdict = Verdict("", "correct" if rewards[0] else "wrong", rewards[0], step_rewards=rewards)
    return Attempt(PROBLEM, Trajectory("p", samples, id=f"t{number}"), verdict)


def shown(text: chat.Tokenizer, example: Example) -> list[tuple[str, int]]:
    runs: list[tuple[list[int], int]] = []
    for token, learnt in zip(example.completion_ids, example.mask or [], strict=True):
        if runs and runs[-1][1] == learnt:
            runs[-1][0].append(token)
        else:
            runs.append(([token], learnt))
    return [(text.tokenizer.decode(ids), learnt) for ids, learnt in runs]


def test_wrong_solutions_bear_no_loss_and_both_kinds_weigh_alike(text: chat.Tokenizer) -> None:
    group = [
        pair(text, 0, "The answer is 7.", YES, [1, 1]),
        pair(text, 1, "The answer is 8.", NO, [0, 1]),
        pair(text, 2, "The answer is 9.", NO, [0, 1]),
        pair(text, 3, "The answer is 6.", YES, [0, 0]),  # accepts a wrong one: no row
        pair(text, 4, "The answer is 8.", NO, [0, 1]),  # said before
    ]
    rows = list(woven([group], check_words=CHECK, text=text, seed=0))
    assert [shown(text, r) for r in rows[:2]] == [
        [(f"The answer is 7.{CHECK}{YES}<eos>", 1)],
        [("The answer is 8.", 0), (f"{CHECK}{NO}\nThe answer is 7.<eos>", 1)],
    ]
    assert [(r.trajectory_ids, r.weight) for r in rows] == [(["t0"], 1.5), (["t1"], 0.75), (["t2"], 0.75)]


def test_a_wrong_solution_without_a_right_one_makes_no_row(text: chat.Tokenizer) -> None:
    assert not list(woven([[pair(text, 0, "The answer is 8.", NO, [0, 1])]], check_words=CHECK, text=text, seed=0))


def response(*texts: str) -> Trajectory:
    return Trajectory("p", [Sample([1], [2], [-1.0], text, "stop", 0) for text in texts])


@pytest.mark.parametrize(
    ("texts", "rewards", "status"),
    [
        (("7", YES), [1, 1], "correct"),
        (("7", NO, "8"), [1, 0, 0], "wrong"),
        (("8", NO, "7", YES), [0, 1, 1, 1], "correct"),
        (("8", YES), [0, 0], "wrong"),
        (("8", "Who knows?"), [0, 0], "wrong"),
        (("7", f"{YES} {NO}"), [1, 0], "correct"),  # says both
        (("8", NO, "slow"), [0, 1, 0], "timeout"),
    ],
)
def test_each_message_has_its_own_reward(texts: tuple[str, ...], rewards: list[float], status: str) -> None:
    async def check(said: str, problem: Problem) -> Outcome:
        if said == "slow":
            return Outcome("timeout", 0.0)
        return Outcome("correct" if said == problem.gold else "wrong", float(said == problem.gold), said)

    context = Context(Policy(ScriptedEngine({}), 0), check, None)
    (found,) = asyncio.run(judged(PROBLEM, [response(*texts)], context, accepts=YES, rejects=NO))
    assert (found.step_rewards, found.status) == (rewards, status)


def test_advantages_compare_a_message_with_the_same_message_of_other_responses() -> None:
    node = compose(["method=spoc"]).stages["rl"].filter
    assert node is not None
    texts = (("8", NO, "7"), ("7", YES), ("8", YES))
    rewards = ([0.0, 1.0, 1.0], [1.0, 1.0], [0.0, 0.0])
    group = [
        Attempt(PROBLEM, response(*said), Verdict("", "correct", r[-1], step_rewards=r))
        for said, r in zip(texts, rewards, strict=True)
    ]
    found = [example.advantages for example in bind(node, "filter")([group])]
    expected = [-0.5, 0.5, 0.0, 1.0, 0.5, -0.5, -1.0]  # a message that one response alone has: 0
    assert found == [[pytest.approx(value)] for value in expected]
    outcome = bind(node | {"per": "trajectory"}, "filter")([group])
    assert [example.advantages for example in outcome] == [
        [pytest.approx(v)] for v in (0.5, 0.5, 0.5, 0.5, 0.5, -1, -1)
    ]


class Rejecting(ScriptedEngine):
    """Solutions are right with p; a verification accepts a right one with 1 - alarm and a wrong one with 1 - hit."""

    def __init__(self, gold: dict[str, str], p: float, hit: float, alarm: float) -> None:
        super().__init__(gold)
        self.rates = p, hit, alarm

    async def sample(self, request: Request) -> Sample:
        p, hit, alarm = self.rates
        draw = np.random.default_rng(request.seed).random()
        so_far = "".join(map(chr, request.prompt_ids))
        if request.stop == (CHECK,):
            said, finish = f"\n{ANSWER}{7 if draw < p else 8}.{CHECK}", ""
        else:
            right = so_far.rsplit(ANSWER, 1)[-1][0] == "7"
            said, finish = (NO, "") if draw < (alarm if right else hit) else (YES, END)
        ids = self.encode(said + finish)
        return Sample(list(request.prompt_ids), ids, [0.0] * len(ids), said, "stop", request.seed)


def test_final_accuracy_is_that_of_the_rates() -> None:
    """Of two solutions the last is right with p (1 - alarm) + (p alarm + (1 - p) hit) p."""
    p, hit, alarm = 0.5, 0.9, 0.2
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(1000)]
    engine = Rejecting({str(q.prompt): "7" for q in problems}, p, hit, alarm)

    async def everything() -> list[list[Trajectory]]:
        policy = Policy(engine, 0, max_tokens=64)
        return await asyncio.gather(
            *(by_solution(q, policy.for_problem(q), turns=2, accepts=YES, **WORDS) for q in problems)
        )

    found = asyncio.run(everything())
    right = np.array([f"{ANSWER}7" in group[-1].text for group in found])
    expected = p * (1 - alarm) + (p * alarm + (1 - p) * hit) * p
    assert abs(right.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000)
    assert {len(group) for group in found} == {1, 2}
    for group in found:
        assert [t.metadata["stage"] for t in group] == list(range(1, len(group) + 1))
        assert [t.metadata["accepted"] for t in group[:-1]] == [False] * (len(group) - 1)


def test_a_message_goes_on_from_the_ids_before_it_and_the_cap_ends_a_response() -> None:
    engine = Rejecting({"Question?": "7"}, 0.0, 1.0, 1.0)
    (found,) = asyncio.run(respond(PROBLEM, Policy(engine, 0, max_tokens=64), n=1, turns=3, **WORDS))
    assert len(found.samples) == 6
    for before, after in zip(found.samples, found.samples[1:], strict=False):
        assert after.prompt_ids == [*before.prompt_ids, *before.completion_ids]


SIZES = ["method=spoc", "rounds=1", "dataset.levels=[2,3]", "dataset.train_size=8", "dataset.heldout_size=6",
         "tracker=none", "verify.workers=1", "method.stages.pair.problems.count=8", "method.stages.rl.parts=1",
         "method.stages.pair.train.epochs=1", "method.stages.rl.problems.count=2", "model.max_tokens=40"]  # fmt: skip


def test_a_small_run_learns_the_form_once_and_then_each_message(tmp_path: Path) -> None:
    run.start(compose(SIZES), tmp_path)
    assert (tmp_path / "rounds/000.0_pair/policy/config.json").exists()
    rows = list(store.read_records(tmp_path / "rounds/000.0_pair/examples.parquet", Example))
    assert {bool(r.metadata["right"]) for r in rows} == {True, False}
    assert all((0 in (r.mask or [])) != r.metadata["right"] for r in rows)
    rl = list(store.read_records(tmp_path / "rounds/000.1_rl/examples.parquet", Example))
    assert all(len(r.advantages or []) == len(r.completion_ids) for r in rl)
    steps = store.read_json(tmp_path / "rounds/000.1_rl/train.manifest.json")["metrics"]["steps"]
    assert steps == 1
    assert "evaluate/accuracy" in json.loads((tmp_path / "rounds/000.1_rl/metrics.json").read_text())


@pytest.mark.parametrize(
    "control", [["method.stages.rl.filter.per=trajectory"], ["~method.stages.rl", "rounds=1"]], ids=str
)
def test_controls_are_overrides(control: list[str]) -> None:
    assert compose(["method=spoc", *control]).method.name == "spoc"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.stages.rl.generate.temperature=0.5", "set it to 1"),
        ("method.stages.rl.generate.n=0", "method.stages.rl.generate.n=0"),
        ("dataset=alpacaeval", "method=spoc needs gold"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=spoc", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_run_killed_between_its_stages_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    small = " ".join(o for o in SIZES if not o.startswith(("tracker", "verify.")))
    drive(tmp_path, f"{small} hardware.max_batch=1", ["manifest:0/train", "manifest:1/generate"])
