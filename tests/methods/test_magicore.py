"""MAgICoRe: routing on hand fixtures, what reviewer and refiner are shown, what is kept, and whole, small."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from selfimprove import run, solving
from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.methods.magicore import Solution, confidence, dealt, generate, is_hard, prepare, supported, top
from selfimprove.policy import Policy
from selfimprove.policy.scripted import ANSWER, VERIFY, ScriptedEngine
from selfimprove.types import Attempt, Problem, Trajectory, Verdict
from selfimprove.verify import Outcome
from selfimprove.verify.answers import weighted
from tests.forks import drive

SCALE = {"mean": 1.0, "std": 0.5}
ASK = {
    "review": [{"role": "user", "content": "{question}\n{scored}"}, {"role": "user", "content": VERIFY}],
    "refine": [{"role": "user", "content": "{question}\n{scored}\n{review}\nAgain."}],
}


def solution(answer: str | None, outcome: float, *steps: float) -> Solution:
    return Solution(Trajectory("p", []), answer, outcome, steps)


# Routing


def test_the_confidence_by_hand():
    assert confidence([("1", 0.2), ("1", 0.7)]) == 1.0
    assert confidence([("1", 1.0), ("2", 1.0)]) == pytest.approx(2 * (1 - 1 / (1 + math.exp(-math.log(2)))))
    assert confidence([("1", 1.0), ("2", 1.0)]) == pytest.approx(2 / 3)
    assert confidence([(a, 0.3) for a in "123"]) == pytest.approx(0.5), "three equal answers: H = log 3"
    assert confidence([(a, 0.3) for a in "1234"]) == pytest.approx(0.4)
    shares = [0.5, 0.3, 0.2]
    entropy = -sum(p * math.log(p) for p in shares)
    votes = [("1", 2.0), ("1", 3.0), ("2", 3.0), ("3", 2.0)]
    assert confidence(votes) == pytest.approx(2 * (1 - 1 / (1 + math.exp(-entropy))))
    assert confidence([("1", 0.0), ("2", 0.0)]) == pytest.approx(2 / 3), "without weights each vote counts alike"
    assert confidence([("1", 0.0), ("2", 0.4)]) == 1.0


def test_condition_1_is_of_the_majoritys_solutions_alone():
    low, high = [solution("1", 0.5, 0.4), solution("1", 0.7, 0.2)], solution("2", 1.0, 1.0)
    assert not supported([*low, high], SCALE), "their mean w is .9, below the mean of 1"
    assert supported([*low, solution("1", 1.0, 0.9, 0.9), high], SCALE)
    assert supported([high, low[0]], SCALE), "of equally frequent answers the first"
    assert not supported([low[0], high], SCALE)
    assert supported([solution("1", 0.5, 0.5)], SCALE), "a mean of exactly 0 is enough"
    assert supported([solution("1", 0.6, 0.5)], {"mean": 1.0, "std": 0.0})


FOUR = [("1", 0.1, 0.1), ("2", 0.1, 0.1), ("3", 0.1, 0.1), ("4", 0.1, 0.1)]


@pytest.mark.parametrize(
    ("found", "hard"),
    [
        (FOUR, True),  # low scores, four answers
        ([("1", 0.9, 0.9), ("1", 0.9, 0.9), *FOUR], False),  # condition 1 holds
        (FOUR[:3], False),  # condition 2 holds: both confidences are exactly 1/2
        ([("1", 0.9, 0.05), ("2", 0.1, 0.05), ("3", 0.1, 0.05), ("4", 0.1, 0.05)], True),  # sure by o, not by s
        ([("1", 0.05, 0.9), ("2", 0.05, 0.1), ("3", 0.05, 0.1), ("4", 0.05, 0.1)], True),  # sure by s, not by o
        ([("1", 0.5, 0.4), ("2", 0.1, 0.05), ("3", 0.1, 0.05), ("4", 0.1, 0.05)], False),  # sure by both, w .9
        ([(None, 0.9, 0.9), *FOUR], True),  # what states no answer has no vote
        ([(None, 0.9, 0.9)], True),  # no answer at all
    ],
)
def test_a_problem_is_hard_where_both_conditions_fail(found, hard):
    assert is_hard([solution(*one) for one in found], SCALE) == hard


def test_the_weight_is_the_outcome_and_the_product_of_the_steps():
    assert solution("1", 0.5, 0.5, 0.4).weight == pytest.approx(0.7)
    assert solution(None, 0.5, 0.5, 0.4).weight == 0.5, "without an answer the steps count nothing"
    assert solution("1", 0.5).weight == 0.5


def test_the_best_k_stay_in_order():
    found = [solution("1", w) for w in (0.2, 0.9, 0.4, 0.9, 0.4)]
    assert top(found, 3) == [found[1], found[2], found[3]], "of equals the first"
    assert top(found, 9) == found


def test_scores_are_dealt_out_among_a_problems_solutions():
    found = [solution("1", 0.1, 0.2, 0.3), solution("2", 0.4, 0.5), solution("3", 0.6, 0.7, 0.8, 0.9)]
    steps = dealt(found, ["steps"], 1)
    assert [len(s.steps) for s in steps] == [2, 1, 3]
    assert sorted(x for s in steps for x in s.steps) == [0.2, 0.3, 0.5, 0.7, 0.8, 0.9]
    assert [s.outcome for s in steps] == [0.1, 0.4, 0.6]
    assert [s.steps for s in steps] != [s.steps for s in found]
    both = [dealt(found, ["outcome", "steps"], seed) for seed in range(5)]
    assert all(sorted(s.outcome for s in one) == [0.1, 0.4, 0.6] for one in both)
    assert any([s.outcome for s in one] != [0.1, 0.4, 0.6] for one in both)


def test_the_weighted_vote_by_hand():
    def group(*found):
        return [
            Attempt(
                Problem("p", "?"),
                Trajectory("p", [], {"stage": stage, "weight": weight}),
                Verdict("t", "wrong", 0.0, answer),
            )
            for answer, weight, stage in found
        ]

    three = group(("1", 0.5, 0), ("2", 0.9, 0), ("1", 0.5, 1), (None, 3.0, 1))
    assert weighted(three) == 0, "1.0 against 0.9"
    assert weighted(three, heaviest=2) == 1, "the solution without an answer is one of the two"
    assert weighted(three, window=1) == 2
    assert weighted(group(("1", 0.5, 0), ("2", 0.5, 0))) == 0, "a tie goes to what was there first"
    assert weighted(group((None, 1.0, 0))) is None
    assert weighted([]) is None


# The loop


def solve(judge, n=4, iterations=2, engine=None, **options):
    engine = engine or ScriptedEngine({"Question?": "7"}, 0.0, p_improve=1.0, wrong_values=50)
    problem = Problem("p", "Question?", "7")
    policy = Policy(engine, 0).for_problem(problem)
    work = generate(
        problem, policy, n=n, iterations=iterations, judge=judge, prepared=SCALE, **{**ASK, "lead": "", **options}
    )
    return asyncio.run(work)


def judging(right=(0.95, 0.95), wrong=(0.1, 0.1), seen=None):
    async def judge(problem, trajectories):
        if seen is not None:
            seen.append(len(trajectories))
        outcomes = []
        for t in trajectories:
            said = t.text.removeprefix(ANSWER)
            o, s = right if said == "7" else wrong
            outcomes.append(Outcome("wrong", o + s, said, [s]))
        return outcomes

    return judge


def text_of(ids):
    return "".join(map(chr, ids))


def test_a_hard_problem_is_reviewed_and_refined_until_it_is_easy():
    seen = []
    found = solve(judging(seen=seen), n=6, iterations=3)
    assert seen == [6, 6], "after one iteration all are right, and the problem is easy"
    assert [t.metadata["stage"] for t in found] == [0] * 6 + [1] * 6
    assert all(t.metadata["hard"] for t in found)
    assert {t.text for t in found[6:]} == {f"{ANSWER}7"}
    for draft, new in zip(found[:6], found[6:], strict=True):
        first, review, last = new.samples
        assert first is draft.samples[0]
        assert f"{draft.text} (Score: 1/10)" in text_of(review.prompt_ids)
        assert f"{draft.text} (Score: 1/10)\n{review.text}\nAgain." in text_of(last.prompt_ids)
    assert found[0].metadata == {"stage": 0, "weight": pytest.approx(0.2), "outcome": pytest.approx(0.1),
                                 "steps": [0.1], "hard": True}  # fmt: skip


def test_an_easy_problem_is_left_alone_and_its_drafts_are_answered_from():
    sure = ScriptedEngine({"Question?": "7"}, 1.0)
    found = solve(judging(), engine=sure)
    assert [t.metadata["stage"] for t in found] == [0] * 4
    assert not any(t.metadata["hard"] for t in found)
    assert [t.metadata["stage"] for t in solve(judging(), engine=sure, route="all")] == [0] * 4 + [1] * 4 + [2] * 4
    assert [t.metadata["stage"] for t in solve(judging(), engine=sure, route="easy")] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(solve(judging(), n=6, route="easy")) == 6, "this one is hard"
    assert len(solve(judging(), n=6, iterations=0)) == 6


def test_what_is_refined_next_is_the_best_of_old_and_new():
    spoilt = ScriptedEngine({"Question?": "7"}, 1.0, p_degrade=1.0, wrong_values=4)
    kept = solve(judging(), engine=spoilt, route="all")
    assert all(len(t.samples) == 3 for t in kept[4:]), "the drafts are right and stay; both iterations refine them"
    new = solve(judging(), engine=spoilt, route="all", keep="new")
    assert [len(t.samples) for t in new[8:]] == [4] * 4
    assert all(t.samples[1] is b.samples[-1] for t, b in zip(new[8:], new[4:8], strict=True))


def test_a_review_begins_with_the_words_it_is_given():
    found = solve(judging(), n=6, iterations=1, lead="Step {step} is wrong:")
    assert text_of(found[6].samples[1].prompt_ids).endswith(f"{VERIFY}Step 1 is wrong:")
    assert f"\nStep 1 is wrong:{found[6].samples[1].text}\n" in text_of(found[6].samples[2].prompt_ids)
    fine = solve(judging(wrong=(0.1, 0.6)), n=6, iterations=1, route="all", lead="Step {step} is wrong:")
    assert text_of(fine[6].samples[1].prompt_ids).endswith(VERIFY), "no step is doubted"
    always = solve(judging(wrong=(0.1, 0.6)), n=6, iterations=1, route="all", lead="Look:")
    assert text_of(always[6].samples[1].prompt_ids).endswith(f"{VERIFY}Look:")


def test_a_solution_that_the_models_cannot_read_weighs_nothing():
    async def judge(problem, trajectories):
        return [Outcome("error", 0.0, reason="too long")] * len(trajectories)

    found = solve(judge, n=2, iterations=1)
    assert len(found) == 4, "a problem without an answer is hard"
    assert {t.metadata["weight"] for t in found} == {0.0}
    assert "(Score" not in text_of(found[2].samples[1].prompt_ids)


@pytest.mark.parametrize("dev", [0, 5])
def test_the_scale_is_of_one_solution_to_each_dev_problem(dev):
    problems = [Problem(f"p{i}", f"Question {i}?", "7") for i in range(8)]
    rates = {str(p.prompt): i % 2 for i, p in enumerate(problems)}
    engine = ScriptedEngine(dict.fromkeys(rates, "7"), rates)
    scale = asyncio.run(
        prepare(problems, Policy(engine, 0), dev=problems[:dev], judge=judging(), n=4, iterations=1, lead="")
    )
    w = [1.9 if i % 2 else 0.2 for i in range(dev or 8)]
    mean = sum(w) / len(w)
    assert scale["mean"] == pytest.approx(mean)
    assert scale["std"] == pytest.approx((sum((x - mean) ** 2 for x in w) / len(w)) ** 0.5)


# Whole, small

WORDS = ["method=magicore", "model=tiny", "dataset.heldout_size=6", "tracker=none", "verify.workers=1",
         "hardware.shard=3", "method.generate.n=4", "method.generate.iterations=1", "dataset.dev_size=4"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=asdiv"], "gives no scores of steps"),
        (["verifier=reward_models"], r"outcome\.model: needs a value"),
        (["verifier=reward_models", "verifier.outcome.model=a", "verifier.steps.model=b",
          "verifier.outcome._target_=selfimprove.verify.arithmetic.check", "~verifier.outcome.model"],
         "is no verifier of a reward model"),
        (["method.generate.route=some"], "method.generate.route=some"),
        (["verifier=arithmetic"], "asks two reward models"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_line(tmp_path, words, said):
    with pytest.raises(ConfigError, match=said) as refused:
        solving.evaluate_solver(None, [*WORDS, *words], tmp_path / "eval")
    assert "\n" not in str(refused.value)


def test_reward_models_of_ones_own_read_no_gold_answer():
    models = ["verifier=reward_models", "verifier.outcome.model=a", "verifier.steps.model=b"]
    assert solving.selection(compose(["method=magicore", *models], needs=False)) == "weighted; reads no gold answer"
    assert solving.selection(compose(["method=magicore"], needs=False)) == "weighted; reads gold answers"


KILLED = """
import os, signal, sys
from selfimprove import store
from selfimprove.solving import evaluate_solver
from pathlib import Path
add = store.Parts.add
def killed(self, *args):
    add(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
store.Parts.add = killed
evaluate_solver(None, sys.argv[2:], Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_evaluation_ends_as_if_undisturbed(tmp_path):
    whole = solving.evaluate_solver(None, WORDS, tmp_path / "whole")
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, folder, *WORDS], cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(folder.glob("solver/trajectories.parts/*.parquet"))) == 1
    kept = json.loads((folder / "solver" / "prepared.json").read_text())["prepared"]
    resumed = solving.resume(folder)
    assert json.loads((folder / "solver" / "prepared.json").read_text())["prepared"] == kept
    for name in ("trajectories", "verdicts", "grades"):
        ours, theirs = (pq.read_table(f / "solver" / f"{name}.parquet") for f in (folder, tmp_path / "whole"))
        assert ours.equals(theirs)
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["tokens"] == whole["tokens"]


FEW = "method=magicore_rewards rounds=1 method.stages.outcome.generate.n=3 " + " ".join(
    f"method.stages.{stage}.train.{option}"
    for stage in ("outcome", "steps")
    for option in ("epochs=1", "batch_size=8", "warmup_ratio=0")
)


@pytest.mark.slow
def test_a_run_that_trains_the_reward_models_survives_kills(tmp_path):
    drive(tmp_path, FEW, ["manifest:0/train", "train:1", "manifest:1/filter"])


def test_reward_models_of_a_run_score_solutions(tmp_path):
    few = [word for word in FEW.split() if not word.startswith("rounds")]
    words = ["dataset.train_size=4", "dataset.heldout_size=2", "tracker=none", "verify.workers=1", "rounds=1"]
    assert run.start(compose([*words, *few]), tmp_path / "run")["status"] == "complete"
    outcome, steps = (tmp_path / "run" / "rounds" / f"000.{name}" / "policy" for name in ("0_outcome", "1_steps"))
    models = ["verifier=reward_models", f"verifier.outcome.model={outcome}", f"verifier.steps.model={steps}"]
    summary = solving.evaluate_solver(None, [*WORDS, "dataset.dev_size=0", *models], tmp_path / "eval")
    assert summary["status"] == "complete"
    assert summary["selection"] == "weighted; reads no gold answer"
    verdicts = pq.read_table(tmp_path / "eval" / "solver" / "verdicts.parquet").to_pylist()
    assert all(0 < v["reward"] < 2 for v in verdicts)
    assert all(0 < score < 1 for v in verdicts for score in v["step_rewards"])
