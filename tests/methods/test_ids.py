"""Iterative deepening sampling: where triggers stand, what is kept of a chain, and the closed forms of the study."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest

from selfimprove import store
from selfimprove.methods.ids import bounds, budgets, flipped, generate
from selfimprove.policy.scripted import ANSWER, END, ScriptedEngine
from selfimprove.studies import Lab
from selfimprove.studies.ids import chosen, equal_tokens, positions, stages
from selfimprove.studies.solving import attempts, solve, solved
from selfimprove.studies.tiny import shipped
from selfimprove.types import Attempt, Example, Problem, Sample, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.answers import vote
from tests.conftest import run_here

WAIT = "\nWait.\n"
PROBLEM = Problem("p", "Q?", "5")


def chains(engine, problem=PROBLEM, **options):
    settings = {"chains": 1, "first": 32, "growth": 4.0, "triggers": 2, "trigger": WAIT, "max_tokens": 600}
    (found,) = solve(partial(generate, **(settings | options)), engine, [problem])
    return found


def text(ids):
    return "".join(map(chr, ids))


def test_budgets_are_a_geometric_series_or_with_gamma_1_an_arithmetic_one():
    def firsts(*series):
        return [b for b, _ in zip(budgets(*series), range(4), strict=False)]

    assert firsts(16, 2.0) == [16, 32, 64, 128]
    assert firsts(10, 1.5) == [10, 15, 22, 33]
    assert firsts(16, 1.0) == [16, 32, 48, 64]
    assert bounds(16, 2.0, 128) == (4, 256)
    assert bounds(16, 2.0, 127) == (3, 254)
    assert bounds(16, 2.0, 15) == (0, 0)


def test_the_study_finds_every_trigger_at_its_budget_within_the_bounds():
    claim = positions()
    assert claim.holds, claim


def test_triggers_replace_end_tokens_and_the_turn_goes_on_id_for_id():
    engine = ScriptedEngine({"Q?": "5"}, 0.0, p_improve=1.0)
    found = chains(engine)
    assert [(t.metadata["stage"], t.text) for t in found] == [(0, ANSWER + "6"), (1, ANSWER + "5"), (2, ANSWER + "5")]
    assert all(t.metadata["continued"] for t in found)
    last = found[-1].samples[-1]
    assert text([*last.prompt_ids, *last.completion_ids]) == (f"Q?{ANSWER}6{WAIT}{ANSWER}5{WAIT}{ANSWER}5{END}"), (
        "only the last end token is left"
    )
    assert found[2].samples[0] is found[0].samples[0]


def test_an_answer_that_ends_is_left_alone_with_at_end_stop():
    found = chains(ScriptedEngine({"Q?": "5"}, 0.0, p_improve=1.0), at_end="stop")
    assert [t.text for t in found] == [ANSWER + "6"] * 3
    assert {id(t.samples[0]) for t in found} == {id(found[0].samples[0])}, "it was paid for once"


def test_a_chain_depends_on_its_number_alone():
    engine = ScriptedEngine({"Q?": "5"}, 0.5, p_improve=0.5, p_degrade=0.5)
    many = [t.text for t in chains(engine, chains=8, triggers=4, max_tokens=50_000) if t.metadata["chain"] == 0]
    assert many == [t.text for t in chains(engine, chains=1, triggers=4, max_tokens=50_000)]
    first = [t.text for t in chains(engine, chains=8) if t.metadata["stage"] == 0]
    assert len(set(first)) == 2, "chains are not copies of one another"


@pytest.mark.parametrize("most", [40, 41, 46, 300])
def test_no_chain_is_longer_than_allowed_nor_than_the_window(most):
    engine = ScriptedEngine({"Q?": "a" * 400}, 1.0, p_improve=1.0, max_length=202)
    problem = Problem("p", "Q?", "a" * 400)
    last = chains(engine, problem, growth=1.2, triggers=9, max_tokens=most)[-1].samples[-1]
    assert len(last.prompt_ids) - 2 + len(last.completion_ids) == min(most, 200)
    assert last.completion_ids, "no trigger stands where nothing can follow it"


def test_the_vote_is_over_what_each_chain_said_last():
    def attempt(chain, stage, answer):
        trajectory = Trajectory("p", [], {"chain": chain, "stage": stage})
        return Attempt(PROBLEM, trajectory, Verdict("", "correct" if answer == "5" else "wrong", 0.0, answer))

    said = [("6", "6", "6"), ("6", "5", "5")]
    group = [attempt(c, s, a) for s, row in enumerate(said) for c, a in enumerate(row)]
    assert group[vote(group, window=1)].verdict.extracted == "5"
    assert list(solved([group], chosen).values()) == [1.0]


def test_flipped_chains_are_learnt_from_the_problems_prompt_on_with_their_triggers():
    engine = ScriptedEngine({"Q?": "5"}, 0.3, p_improve=0.5, p_degrade=0.3)

    def stated(said: str, problem: Problem) -> Outcome:
        right = said == ANSWER + str(problem.gold)
        return Outcome("correct" if right else "wrong", float(right))

    groups = attempts([PROBLEM], [chains(engine, chains=12)], stated)
    series = {c: [a.verdict.status for a in groups[0] if a.trajectory.metadata["chain"] == c] for c in range(12)}
    expected = sum(("wrong", "correct") in pairwise(s) for s in series.values())
    rows = list(flipped(groups, per_problem=100, seed=0))
    shapes = {text(row.completion_ids) for row in rows}
    assert 0 < len(rows) <= expected
    assert shapes <= {f"{ANSWER}6{(WAIT + ANSWER + '6') * n}{WAIT}{ANSWER}5{END}" for n in (0, 1)} | {
        f"{ANSWER}5{WAIT}{ANSWER}6{WAIT}{ANSWER}5{END}"
    }
    assert {text(row.prompt_ids) for row in rows} == {"Q?"}
    assert not list(flipped([[a for a in groups[0] if a.verdict.status == "correct"]], per_problem=9, seed=0))


def test_neither_a_cut_flip_nor_one_of_a_cut_draft_is_learnt():
    def attempt(stage, status, finish):
        sample = Sample([1], [2 + stage], [0.0], "", finish, stage)
        return Attempt(PROBLEM, Trajectory("p", [sample], {"chain": 0, "stage": stage}), Verdict("", status, 0.0))

    def kept(draft, finish):
        return len(list(flipped([[attempt(0, draft, "stop"), attempt(1, "correct", finish)]], per_problem=9, seed=0)))

    assert kept("wrong", "stop") == 1
    assert kept("wrong", "length") == 0
    assert kept("unparseable", "stop") == 0
    assert kept("correct", "stop") == 0


def test_chains_follow_their_closed_form(tmp_path):
    claim = stages(Lab(True, tmp_path))
    assert claim.holds, claim


def test_a_vote_over_chains_wins_or_loses_as_triggers_improve_or_degrade(tmp_path):
    half, strong = equal_tokens(Lab(True, tmp_path))
    assert half.holds, half
    assert strong.holds is False, "a vote over plain samples needs no triggers where they are right as a rule"


def test_a_run_learns_chains_with_their_triggers(tmp_path):
    run = tmp_path / "run"
    ids = {"chains": 4, "first": 24, "triggers": 1, "trigger": f'"{WAIT}"', "max_tokens": 80}
    options = [f"generate.{key}={value}" for key, value in ids.items()]
    run_here(run, "dataset.levels=[2]", "generate=ids", "rounds=1", *options)
    round_0 = run / "rounds" / "000"
    known = {t.id: t for t in store.read_records(round_0 / "trajectories.parquet", Trajectory)}
    wait, continued = shipped().encode(WAIT), 0
    for row in store.read_records(round_0 / "examples.parquet", Example):
        trajectory = known[row.trajectory_ids[0]]
        first, last = trajectory.samples[0], trajectory.samples[-1]
        assert row.prompt_ids == first.prompt_ids
        assert [*row.prompt_ids, *row.completion_ids] == [*last.prompt_ids, *last.completion_ids]
        if trajectory.metadata["stage"]:
            continued += 1
            said = len(first.completion_ids) - (first.finish == "stop")
            assert row.completion_ids[said : said + len(wait)] == wait
    assert continued
