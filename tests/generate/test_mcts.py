"""Tree search: its formulas on a tree small enough to do by hand, whole searches of scripted and shipped policies."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from selfimprove.datasets import arithmetic
from selfimprove.generate.mcts import (
    Rules,
    Steps,
    backup,
    distinct,
    ended,
    iterate,
    most_visited,
    prior_inside,
    prior_outside,
    propose,
    puct,
    search,
)
from selfimprove.generate.tree import Branch, records, solution
from selfimprove.methods.mcts_dpo import Growth, Judge, Worth, ask, generate, outcome_score, state_value
from selfimprove.policy import Policy, Request
from selfimprove.types import Problem, Sample, Trajectory
from selfimprove.verify import Outcome
from selfimprove.verify.arithmetic import check as check_arithmetic

EXACT: dict[str, float] = {"rel": 0, "abs": 1e-9}


def step(text: str, logprobs: Sequence[float] = (-0.1,), finish: Any = "stop", prompt: Sequence[int] = (1,)) -> Sample:
    ids = [ord(char) for char in text] or [0]
    return Sample(list(prompt), ids, list(logprobs), text, finish, seed=0)


def seven_nodes() -> tuple[Branch, ...]:
    """A root with children a and b, which have c, d and e, f, as after some iterations:

    root  N 6
      a   N 4  r .5   V .75          c  N 3  Q .9  r .9      d  N 1  Q .3  r .3
      b   N 2  r -.2  V -.4          e  N 2  Q -.4 r -.4     f  N 0  Q .1  r .1
    """
    root = Branch([1])
    a, b = root.add(step("a\n"), 0.6), root.add(step("b\n"), 0.3)
    c, d, e, f = a.add(step("c\n"), 0.5), a.add(step("d\n"), 0.2), b.add(step("e\n"), 0.8), b.add(step("f\n"), 0.1)
    for node, visits, q, reward in ((c, 3, 0.9, 0.9), (d, 1, 0.3, 0.3), (e, 2, -0.4, -0.4), (f, 0, 0.1, 0.1)):
        node.visits, node.q, node.reward = visits, q, reward
    for node, visits, reward, v in ((a, 4, 0.5, 0.75), (b, 2, -0.2, -0.4)):
        node.visits, node.reward, node.v, node.q = visits, reward, v, reward + v
    root.visits = 6
    return root, a, b, c, d, e, f


def test_puct_by_hand() -> None:
    _, a, b, c, _, _, f = seven_nodes()
    assert puct(a, 1.0) == pytest.approx(1.25 + 0.6 * math.sqrt(6) / 5, **EXACT)
    assert puct(b, 2.0) == pytest.approx(-0.6 + 2 * 0.3 * math.sqrt(6) / 3, **EXACT)
    assert puct(c, 1.0) == pytest.approx(0.9 + 0.5 * 2 / 4, **EXACT)
    assert puct(f, 1.0) == pytest.approx(0.1 + 0.1 * math.sqrt(2), **EXACT)


def test_priors_by_hand() -> None:
    logprobs = [-0.5, -1.0, -0.3]
    assert prior_inside(logprobs, 1.25) == pytest.approx(math.exp(-1.8 / 3**1.25), **EXACT)
    assert prior_outside(logprobs, 1.25) == pytest.approx(math.exp(-1.8) / 3**1.25, **EXACT)


@pytest.mark.parametrize(
    ("least", "v_b", "v_root"),
    [
        # after the path root - b - f: N_f 1, Q_f .1 (no V below it); b: (2 * -.4 + 1 * .1) / 3, either way
        (0, -0.7 / 3, (4 * 1.25 + 3 * (-0.2 + 0.9 * -0.7 / 3)) / 7),
        (1, -0.7 / 3, (4 * 1.25 + 3 * (-0.2 + 0.9 * -0.7 / 3)) / 7),
    ],
)
def test_backup_by_hand(least: int, v_b: float, v_root: float) -> None:
    root, a, b, _, _, _, f = seven_nodes()
    backup([root, b, f], discount=0.9, least=least)
    assert (f.visits, b.visits, root.visits, a.visits) == (1, 3, 7, 4)
    assert f.q == pytest.approx(0.1, **EXACT)
    assert b.v == pytest.approx(v_b, **EXACT)
    assert b.q == pytest.approx(-0.2 + 0.9 * v_b, **EXACT)
    assert root.v == pytest.approx(v_root, **EXACT)


def test_a_child_without_visits_weighs_as_one_where_least_is_one() -> None:
    for least, expected in ((0, -0.4), (1, (3 * -0.4 + 1 * 0.1) / 4)):
        root, _, b, _, _, e, _ = seven_nodes()
        backup([root, b, e], discount=1.0, least=least)
        assert b.v == pytest.approx(expected, **EXACT)
        assert b.q == pytest.approx(-0.2 + expected, **EXACT)
        assert e.q == pytest.approx(-0.4, **EXACT)


def test_next_step_is_most_visited_times_range_of_visits_below() -> None:
    root, a, b, c, d, e, _ = seven_nodes()
    assert most_visited(a) == (4 * 3, 1.25, 0.75)
    assert most_visited(b) == (2 * 3, pytest.approx(-0.6), -0.4)
    assert most_visited(c) == (3, 0.9, 0.0)
    d.visits, a.visits, e.visits = 3, 2, 4  # no range below a
    assert max(root.children or [], key=most_visited) is b


def test_values_by_hand() -> None:
    root, a, *_ = seven_nodes()
    deep = Branch([1], depth=5, value=0.25)
    assert state_value(root, 0.6, 0.0, None) == pytest.approx(0.6, **EXACT)
    assert state_value(deep, 0.6, -1.0, 3) == pytest.approx(0.6 / 2 - 1, **EXACT)
    assert state_value(a, 0.6, 1.0, 3) == pytest.approx(1.6, **EXACT)
    assert state_value(deep, 0.0, 1.0, 3) == pytest.approx(0.25 + 1, **EXACT)


@pytest.mark.parametrize(
    ("status", "early", "written", "score"),
    [
        ("correct", (), None, 1.0),
        ("correct", (), "other words", 1.25),
        ("correct", (), "a\nand so on", 1.0),
        ("correct", (0.5,), None, 0.5),
        ("wrong", (0.5,), "other words", -1.0),
        ("unparseable", (), None, -1.0),
        ("timeout", (), None, 0.0),
        ("error", (), "other words", 0.0),
    ],
)
def test_outcomes(status: Any, early: tuple[float, ...], written: str | None, score: float) -> None:
    _, a, *_ = seven_nodes()
    a.status = status
    problem = Problem("p", "q", metadata={"solution": written} if written else {})
    assert outcome_score(a, problem, early, bonus=1.25) == score


def test_steps_that_say_the_same_are_one() -> None:
    def kept(*texts: str, threshold: float = 0.99) -> list[str]:
        return [sample.text for sample in distinct([step(text) for text in texts], threshold)]

    assert kept("1 + 1 = 2\n", "1 + 1 = 2", "1 + 1 = 3\n") == ["1 + 1 = 2\n", "1 + 1 = 3\n"]
    assert kept("1 + 1 = 2\n", "1 + 1 = 3\n", threshold=0.8) == ["1 + 1 = 2\n"]
    assert kept("\n", "x\n", "\n") == ["x\n"]
    assert kept("\n", "\n") == ["\n"]
    assert kept("", "x\n") == ["", "x\n"]  # to end here is a step


# Whole searches


class Digits:
    """A policy that writes one of two digits a line, three lines in all, "1" nine times of ten.

    Counts what it is asked, and how much of it is waiting at once.
    """

    max_length = 1000

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.waiting = self.most = 0

    def render(self, prompt: Any) -> list[int]:
        return [ord(char) for char in prompt]

    async def sample(self, request: Request) -> Sample:
        self.requests.append(request)
        self.waiting += 1
        for _ in range(10):
            await asyncio.sleep(0)
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        text = "".join(map(chr, request.prompt_ids))
        lines = text.count("\n") - 1
        digit = "1" if request.seed % 10 else "0"
        end = "\n" if lines < 2 else "\x03"
        p = math.log(0.9 if digit == "1" else 0.1)
        return Sample(list(request.prompt_ids), [ord(digit), ord(end)], [p, 0.0], digit + end.strip("\x03"), "stop", 0)

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        raise AssertionError("nobody asked for an opinion")

    def load(self, path: str) -> None: ...

    def close(self) -> None: ...


BUDGET = Growth(iterations=16, first_iterations=64, depth=3, candidates=16, first_candidates=16)
STEPS = Steps()


async def ends_in(text: str, problem: Problem) -> Outcome:
    """Right is one solution of eight, which the policy writes once in a thousand."""
    right = text == problem.gold
    return Outcome("correct" if right else "wrong", float(right))


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{i}", f"problem {i}\n", gold="0\n0\n0") for i in range(count)]


async def solve(
    engine: Any, some: Sequence[Problem], budget: Growth = BUDGET, steps: Steps = STEPS
) -> list[list[Trajectory]]:
    policy = Policy(engine, seed=0, max_tokens=20)
    options = {"check": ends_in, "search": budget, "worth": Worth(confidence=0.0), "steps": steps, "judge": None}
    return list(await asyncio.gather(*(generate(p, policy.for_problem(p), **options) for p in some)))  # type: ignore[arg-type]


def test_finds_what_the_policy_hardly_ever_writes() -> None:
    found = asyncio.run(solve(Digits(), problems(20), replace(BUDGET, candidates=40, first_candidates=40)))
    right = sum(trajectory.text == "0\n0\n0" for (trajectory,) in found)
    assert right >= 17  # in 1 - (1 - .9 ** 40) ** 3 = 4 of 100 trees it is nowhere
    for (trajectory,) in found:
        tree = trajectory.tree
        assert tree[0].parent == -1
        assert all(node.parent < node.id for node in tree)
        chosen = [node for node in tree if node.chosen]
        assert [node.depth for node in chosen] == [1, 2, 3]
        assert "".join(node.text for node in chosen) == trajectory.text
        sample = trajectory.samples[0]
        assert sample.completion_ids == [token for node in chosen for token in node.completion_ids]
        for node in tree:  # a visit goes on below; a chosen child has also those that began there
            children = [child for child in tree if child.parent == node.id]
            begun = BUDGET.iterations * any(child.chosen and not child.terminal for child in children)
            assert sum(child.visits for child in children) == (node.visits + begun if children else 0)
            assert (node.status is not None) == node.terminal == (node.depth == 3)


def test_trees_share_batches_and_a_node_is_one_request() -> None:
    engine, count = Digits(), 30
    found = asyncio.run(solve(engine, problems(count)))
    assert engine.most == count * BUDGET.candidates
    alone = asyncio.run(solve(Digits(), problems(count)[7:8]))
    assert alone[0] == found[7]
    expanded = {(t.problem_id, node.parent) for (t,) in found for node in t.tree if node.parent >= 0}
    assert len(engine.requests) == len(expanded) * BUDGET.candidates


def test_steps_stop_at_lines_and_the_last_one_goes_on_to_the_end() -> None:
    engine = Digits()
    asyncio.run(solve(engine, problems(1), steps=Steps(finish_at=2, step_tokens=7, max_tokens=19)))
    seen = {(bytes(r.prompt_ids).decode().count("\n") - 1, r.stop, r.max_tokens) for r in engine.requests}
    assert seen == {(0, ("\n",), 7), (1, ("\n",), 7), (2, (), 15)}


def test_a_solution_is_ended_by_its_end_or_for_want_of_room() -> None:
    engine = Digits()
    policy = Policy(engine, 0)
    steps = Steps(step_tokens=10, max_tokens=6)
    root = Branch([1, 2, 3])
    assert ended(root.add(step("ab"), 1.0), policy, steps)
    assert not ended(root.add(step("ab\n"), 1.0), policy, steps)
    assert not ended(root.add(step("ab", finish="length"), 1.0), policy, steps)
    assert ended(root.add(step("abcdef", finish="length"), 1.0), policy, steps)
    engine.max_length = 6
    assert ended(root.add(step("ab\n"), 1.0), policy, steps)


def test_a_node_without_candidates_is_a_dead_end() -> None:
    async def nothing(node: Branch) -> list[Sample]:
        return [step("a\n")] if node.depth == 0 else []

    async def zero(children: Sequence[Branch]) -> None: ...

    rules = Rules(nothing, zero, lambda _: 1.0, lambda n: puct(n, 1), lambda p: backup(p, 1, 0), most_visited, 3, 3, 5)
    root = Branch([1])
    path = asyncio.run(search(root, rules))
    assert [node.text for node in path] == ["a\n"]
    assert solution(path).text == "a\n"
    assert [node.visits for node in records(root)] == [3, 6]


@pytest.mark.parametrize("recount", [False, True])
def test_the_start_of_an_iteration_is_counted_once_or_twice(recount: bool) -> None:
    engine = Digits()
    policy = Policy(engine, 0, max_tokens=20)
    steps = Steps(step_tokens=10, max_tokens=20)

    async def one(children: Sequence[Branch]) -> None: ...

    root = Branch(policy.render("problem\n"))
    rules = Rules(
        lambda node: propose(node, policy, 4, steps),
        one,
        lambda _: 1.0,
        lambda n: puct(n, 1),
        lambda p: backup(p, 1, 0),
        most_visited,
        iterations=1,
        first_iterations=1,
        depth=2,
        recount=recount,
    )
    for _ in range(5):
        path = asyncio.run(iterate(root, rules))
        assert [node.depth for node in path] == [0, 1, 2]
    assert root.visits == (10 if recount else 5)
    assert sum(child.visits for child in root.children or []) == 5


# Self-evaluation


class Opinion(Digits):
    """Scores the letter B at log .3 and A at log .1, wherever they stand."""

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        self.seen = "".join(map(chr, prompt_ids))
        table = {ord("B"): math.log(0.3), ord("A"): math.log(0.1)}
        return [table.get(token, 0.0) for token in completion_ids]

    def render(self, prompt: Any) -> list[int]:
        return [ord(char) for char in (prompt if isinstance(prompt, str) else "|".join(m["content"] for m in prompt))]


def test_confidence_is_a_share_or_a_probability() -> None:
    engine = Opinion()
    policy = Policy(engine, 0)
    problem = Problem("p", [{"role": "user", "content": "2 + 2 {gold}?"}], gold="4")
    prompt = [
        {"role": "user", "content": "{question} {gold} {solution}"},
        {"role": "assistant", "content": "It is ("},
    ]
    sure = asyncio.run(ask(policy, Judge(prompt, "B", "A"), problem, "four\n"))
    assert sure == pytest.approx(0.75, **EXACT)
    assert engine.seen == "2 + 2 {gold}? 4 four|It is ("  # nothing is replaced twice
    sure = asyncio.run(ask(policy, Judge(prompt[:1], "B"), problem, "four\n"))
    assert sure == pytest.approx(0.3, **EXACT)
    engine.max_length = 20
    assert asyncio.run(ask(policy, Judge(prompt, "B", "A"), problem, "four\n")) == 0.0


def test_the_judge_is_shown_the_best_gold_there_is() -> None:
    judge = Judge([{"role": "user", "content": "{question}\n{options}\n{gold}"}], "B")
    engine = Opinion()

    def shown(gold: str, **metadata: Any) -> str:
        asyncio.run(ask(Policy(engine, 0), judge, Problem("p", "q", gold=gold, metadata=metadata), ""))
        return engine.seen

    assert shown("4").startswith("q\n4")
    assert shown("4", solution="2 + 2 = 4").startswith("q\n2 + 2 = 4")
    assert shown("B", options=["3", "4"]).startswith("q\nA) 3\nB) 4\n(B) 4")


def test_the_shipped_policy_searches_better_than_it_samples(tiny: Any, tiny_judge: Judge) -> None:
    """Trees of the tiny model; at the end of a solution its own opinion tells right from wrong."""
    some = arithmetic.load(train_size=30, heldout_size=0, seed=1)
    policy = Policy(tiny, seed=0, max_tokens=96)

    async def check(text: str, problem: Problem) -> Outcome:
        return check_arithmetic(text, problem.gold, problem.metadata)

    options = {"search": Growth(3, 12, 3, 2, 4), "worth": Worth(), "steps": STEPS, "judge": tiny_judge, "check": check}

    async def both() -> tuple[list[Trajectory], list[Sample]]:
        trees = asyncio.gather(*(generate(p, policy.for_problem(p), **options) for p in some))  # type: ignore[arg-type]
        plain = asyncio.gather(*(policy.for_problem(p).sample(p.prompt, 4) for p in some))
        return [t for (t,) in await trees], [s for group in await plain for s in group]

    trees, plain = asyncio.run(both())
    nodes = [node for trajectory in trees for node in trajectory.tree if node.terminal]
    sure = [[n.value - 1 for n in nodes if n.status == "correct"], [n.value + 1 for n in nodes if n.status == "wrong"]]
    assert all(0 <= value <= 1 for values in sure for value in values)
    assert sum(sure[0]) / len(sure[0]) > sum(sure[1]) / len(sure[1]) + 0.1
    searched = sum(asyncio.run(check(t.text, p)).reward for t, p in zip(trees, some, strict=True)) / 30
    owners = [p for p in some for _ in range(4)]
    sampled = sum(asyncio.run(check(s.text, p)).reward for s, p in zip(plain, owners, strict=True)) / 120
    assert searched > sampled + 0.1
