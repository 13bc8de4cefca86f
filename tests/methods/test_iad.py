"""Iterative Agent Decoding: what is shown, the closed form, and what a policy is trained on."""

from __future__ import annotations

import asyncio
import re
from functools import partial

import pyarrow.parquet as pq
import pytest

from selfimprove.binding import bind
from selfimprove.config import compose
from selfimprove.datasets import arithmetic as data
from selfimprove.errors import ConfigError
from selfimprove.generate.best_of_n import best_of_n
from selfimprove.methods.iad import generate
from selfimprove.methods.rejection_sampling import keep_correct
from selfimprove.policy import Policy
from selfimprove.policy.models import PACKAGED
from selfimprove.policy.scripted import ANSWER, ScriptedEngine
from selfimprove.report.statistics import difference
from selfimprove.store import read_records
from selfimprove.studies.feedback import (
    AFTER,
    FIRST,
    GRADED,
    SAMPLED,
    SPARSE,
    arm,
    by_score,
    chance,
    distance,
    flipped,
    margin,
    neighbours,
    toy,
)
from selfimprove.studies.solving import attempts, solve, solved
from selfimprove.types import Problem
from selfimprove.verify import Outcome, arithmetic
from selfimprove.verify.answers import best
from tests.conftest import run_here

OTHER = ["method=iad", "model=other", "model.path=none"]
PROMPT = compose(OTHER, needs=False).method.generate["prompt"]


def text_of(ids):
    return "".join(map(chr, ids))


def test_each_iteration_is_shown_the_best_and_the_worst_so_far_with_their_scores():
    problems, engine = toy(40)
    options = {"prompt": PROMPT, "iterations": 4, "n": 3, "temperature": 0.7}
    solutions = solve(partial(generate, **options), engine, problems, check=distance)
    for problem, found in zip(problems, solutions, strict=True):
        assert [t.metadata["stage"] for t in found] == [stage for stage in range(4) for _ in range(3)]
        for stage in range(1, 4):
            before = [t for t in found if t.metadata["stage"] < stage]
            scores = [t.metadata["score"] for t in before]
            top = before[scores.index(max(scores))]
            worst = next(t for t in reversed(before) if t.metadata["score"] == min(scores))
            for trajectory in found[3 * stage : 3 * stage + 3]:
                asked = text_of(trajectory.samples[-1].prompt_ids)
                assert [float(s) for s in re.findall(r"score of ([0-9.]+):", asked)] == [min(scores), max(scores)]
                assert asked.index(worst.text) < asked.index("The best answer so far") < asked.rindex(top.text)
                assert all(a is b for a, b in zip(trajectory.samples[:-1], top.samples, strict=True))
                assert trajectory.samples[0].prompt_ids == engine.render(problem.prompt)


def test_of_equal_scores_the_first_stays_the_best_and_the_worst_is_another():
    engine = ScriptedEngine({"Q": "0"}, 0.0, wrong_values=9)

    async def blind(text, problem):
        return Outcome("wrong", 0.0)

    work = generate(
        Problem("p", "Q", "0"), Policy(engine, 3), prompt=PROMPT, iterations=3, n=4, temperature=1.0, check=blind
    )
    found = asyncio.run(work)
    assert len({t.text for t in found[:4]}) > 1
    assert {len(t.samples) for t in found[8:]} == {2}, "all went out from the first one"
    assert all(t.samples[0] is found[0].samples[0] for t in found[4:])
    shown = re.findall(re.escape(ANSWER) + r"(\d+)", text_of(found[-1].samples[-1].prompt_ids))
    assert shown == [found[7].text.removeprefix(ANSWER), found[0].text.removeprefix(ANSWER)]


def test_one_candidate_an_iteration_is_refused():
    with pytest.raises(ConfigError, match=r"method\.generate\.n=1: .*greater than or equal to 2"):
        compose(["method=iad", "method.generate.n=1"], needs=False)


def test_the_closed_form_by_hand():
    assert chance(SAMPLED, GRADED) == pytest.approx(1 - 0.9**12)
    assert chance(SAMPLED, GRADED, p_flip=0.5) == pytest.approx(0.1, abs=0.03), (
        "scores say nothing: hardly more than one"
    )
    far, near = FIRST["far"] ** 4, 0.9**4 - FIRST["far"] ** 4  # the best of the first four is no better than that
    right = 1 - far * 0.9**8 - near * 0.5**8
    assert chance(AFTER, GRADED) == pytest.approx(right)
    assert chance(AFTER, GRADED, oracle=True) == pytest.approx(right)
    assert 0 < margin(SPARSE) < margin()
    kept = [margin(p_flip=p, oracle=True) for p in (0.0, 0.1, 0.2, 0.3, 0.4)]
    assert kept == sorted(kept, reverse=True)


@pytest.mark.parametrize("p_flip", [0.0, 0.3])
def test_the_method_reaches_its_closed_form(p_flip):
    problems, engine = toy(300)
    found = solve(partial(arm, prompt=PROMPT), engine, problems, check=flipped(distance, p_flip, 0))
    scored = attempts(problems, found, distance)
    rate = sum(solved(scored, by_score).values()) / 300
    exact = chance(AFTER, GRADED, p_flip=p_flip)
    assert abs(rate - exact) < 4 * (exact * (1 - exact) / 300) ** 0.5


def test_feedback_counts_and_that_of_another_problem_does_not():
    problems, engine = toy(300)

    def run(seed, **more):
        found = solve(partial(arm, prompt=PROMPT, **more), engine, problems, seed=seed, check=distance)
        return attempts(problems, found, distance)

    real = run(0)
    samples = solve(partial(best_of_n, n=12, temperature=1.0), engine, problems, seed=1)
    base = [solved(attempts(problems, samples, distance), best)]
    other = difference([solved(run(2, donors=neighbours(real)), best)], base)
    assert other.low <= 0 <= other.high
    assert difference([solved(real, best)], base).low > 0.1


def test_a_wrong_value_can_be_nearer_to_the_right_one_than_another():
    engine = ScriptedEngine({"Q": "10"}, 0.1, p_improve=(0.5, 0.2), wrong_values=2)
    for said, p in (("11", 0.5), ("12", 0.2), ("99", 0.2)):
        assert engine.outcomes(f"Q\n\n{ANSWER}{said}")[ANSWER + "10"] == p
    assert engine.outcomes(f"Q\n\n{ANSWER}12\n\n{ANSWER}11")[ANSWER + "10"] == 0.5, "the last one is to be refined"


def test_a_wrong_solution_is_worth_its_right_lines_where_that_is_asked():
    chain = data.Chain(7, (("+", 5), ("*", 3)))
    metadata = data.problem(chain, "solve").metadata
    wrong = "7 + 5 = 12\n12 * 3 = 35\nThe answer is 35."
    graded = arithmetic.check(wrong, "36", metadata, partial=True)
    assert (graded.status, graded.reward) == ("wrong", pytest.approx(1 / 3))
    assert arithmetic.check(wrong, "36", metadata).reward == 0
    assert arithmetic.check("12 * 3 = 35\nThe answer is 36.", "36", metadata, partial=True).reward == 1
    assert arithmetic.check("7 + 5 = 12", "36", metadata, partial=True).reward == 0, "there is no answer"


def test_what_is_trained_on_answers_the_problems_own_prompt():
    problems, engine = toy(30)
    solver = bind(compose(OTHER, needs=False).method.generate, "generate")
    groups = attempts(problems, solve(solver, engine, problems, check=distance), distance)
    examples = list(keep_correct(groups, per_problem=4, seed=0))
    assert examples
    refined = {t.trajectory.id for group in groups for t in group if t.trajectory.metadata["stage"]}
    assert any(example.trajectory_ids[0] in refined for example in examples)
    prompts = {p.id: engine.render(p.prompt) for p in problems}
    for example in examples:
        assert example.prompt_ids == prompts[example.problem_id]
        assert text_of(example.completion_ids[:-1]).startswith(ANSWER)


def test_rejection_sampling_trains_on_what_it_found(tmp_path):
    from transformers import AutoTokenizer

    from selfimprove.policy import chat

    graded = ["verifier=arithmetic", "verifier.partial=true"]
    options = ["method=rejection_sampling", "generate=iad", "generate.n=2", "generate.iterations=2", "rounds=1"]
    run_here(tmp_path / "run", *options, *graded)
    folder = tmp_path / "run" / "rounds" / "000"
    problems = {p.id: p for p in read_records(tmp_path / "run" / "problems.parquet", Problem)}
    stages = {t["id"]: t["metadata"] for t in pq.read_table(folder / "trajectories.parquet").to_pylist()}
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "tiny")
    rows = pq.read_table(folder / "examples.parquet").to_pylist()
    assert rows
    assert any('"stage": 0' not in stages[row["trajectory_ids"][0]] for row in rows)
    for row in rows:
        assert row["prompt_ids"] == chat.render(tokenizer, problems[row["problem_id"]].prompt)
    rewards = pq.read_table(folder / "verdicts.parquet").column("reward").to_pylist()
    assert any(0 < reward < 1 for reward in rewards)
