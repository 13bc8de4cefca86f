"""Self-refinement of one model, and the ranking of several by hand."""

from __future__ import annotations

import asyncio
import io
import json
import random
import subprocess
import sys

import pytest
from rich.console import Console

from selfimprove.cli import _main
from selfimprove.datasets.arithmetic import problem, solution
from selfimprove.errors import ConfigError
from selfimprove.generate.critique import Critique
from selfimprove.methods.perfics import Figures, Weights, generate, ranking, read, scores, table
from selfimprove.policy import Policy
from selfimprove.policy.hf import TransformersEngine
from selfimprove.policy.models import PACKAGED
from selfimprove.policy.scripted import VERIFY, ScriptedEngine
from selfimprove.studies.made.refiner import document, easy, heldout, slipped
from selfimprove.studies.perfics import closed_form, crossing, order
from selfimprove.studies.solving import attempts, solve
from selfimprove.types import Problem
from selfimprove.verify import Outcome, arithmetic

CRITIQUE = Critique(
    verify=[{"role": "user", "content": "{question}\n{solution}"}, {"role": "user", "content": VERIFY}],
    refine=[{"role": "user", "content": "{question}\n{solution}\n{review}\nAgain."}],
    correct="Yes",
    incorrect="No",
)
SMALL = Figures("small", 0.4, 0.45, 1e6, 30, 0.01)
MIDDLE = Figures("middle", 0.7, 0.6, 4e6, 60, 0.02)  # refining loses
LARGE = Figures("large", 0.8, 0.9, 16e6, 50, 0.05)
MODELS = [LARGE, SMALL, MIDDLE]


def refine(iterations, count=1, p=0.5, improve=0.0, degrade=0.0):
    problems = [Problem(f"q{i}", f"Question {i}?", str(100 * i)) for i in range(count)]
    gold = {p.prompt: p.gold for p in problems}
    engine = ScriptedEngine(gold, p, p_improve=improve, p_degrade=degrade)

    async def solver(problem, policy):
        return await generate(problem, policy, critique=CRITIQUE, iterations=iterations, temperature=0.7)

    return problems, solve(solver, engine, problems)


def test_a_chain_of_answer_critique_and_rewrite():
    (problem,), (found,) = refine(2)
    assert [t.metadata["stage"] for t in found] == [0, 1, 2]
    assert [len(t.samples) for t in found] == [1, 3, 5]
    last = found[-1].samples
    assert all(a is b for t in found for a, b in zip(t.samples, last, strict=False)), "a sample is one object"
    asked = ["".join(map(chr, sample.prompt_ids)) for sample in last]
    assert asked[0] == problem.prompt
    for review, rewrite, before in ((1, 2, 0), (3, 4, 2)):
        assert asked[review] == f"{problem.prompt}\n{last[before].text}\n\n{VERIFY}"
        assert asked[rewrite] == f"{problem.prompt}\n{last[before].text}\n{last[review].text}\nAgain."


@pytest.mark.parametrize(("improve", "degrade"), [(0.4, 0.1), (0.1, 0.4)])
def test_refining_gains_or_loses_as_the_closed_form_says(improve, degrade):
    problems, found = refine(2, 600, 0.5, improve, degrade)

    def check(text, problem):
        right = text.endswith(f" {problem.gold}")
        return Outcome("correct" if right else "wrong", float(right))

    groups, exact = attempts(problems, found, check), 0.5
    for stage in range(3):
        rate = sum(group[stage].verdict.reward for group in groups) / 600
        assert abs(rate - exact) < 0.082  # four standard errors
        exact = exact * (1 - degrade) + (1 - exact) * improve


def test_scores_by_hand():
    assert scores(MODELS, Weights()) == pytest.approx([0.9, 0.45 * 16, 0.6 * 4])
    assert scores(MODELS, Weights(alpha=1, beta=2, gamma=0.5)) == pytest.approx([1.0, 0.5 * 4, 0.5 * 2])
    assert scores(MODELS, Weights(cost="tokens")) == pytest.approx([0.9 / (50 / 60), 0.45 / 0.5, 0.6])
    with pytest.raises(ValueError, match="free: its memory is 0"):
        scores([*MODELS, Figures("free", 1, 1, 0, 1, 1)], Weights())


def test_without_cost_the_best_refined_model_leads_and_with_much_cost_the_smallest():
    names = [[f.model for f, _ in ranking(MODELS, Weights(gamma=gamma))] for gamma in (0.0, 0.4, 2.0)]
    assert names == [["large", "middle", "small"], ["small", "middle", "large"], ["small", "middle", "large"]]
    assert crossing(MODELS, SMALL) == pytest.approx(0.25)  # 0.9 / 0.45 = 2 = 16^0.25
    assert order(MODELS, 0.24)[0] == "large"
    assert order(MODELS, 0.26)[0] == "small"
    hopeless = Figures("hopeless", 0, 0, 1e5, 1, 1)
    assert crossing([*MODELS, hopeless], hopeless) is None
    twin = Figures("twin", 0.45, 0.45, 2e6, 1, 1)
    assert [f.model for f, _ in ranking([twin, SMALL], Weights(gamma=0))] == ["small", "twin"], "the cheaper of equals"


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.2, 0.25, 0.3, 0.6, 1.0, 3.0])
def test_the_ranking_is_that_of_the_crossing_points(gamma):
    assert order(MODELS, gamma) == closed_form(MODELS, gamma)


def test_the_table_says_that_the_weighting_is_not_the_papers_and_shows_a_loss_as_one():
    out = io.StringIO()
    Console(file=out, width=140).print(table(MODELS, Weights(gamma=0.5)))
    text = " ".join(out.getvalue().split())
    assert "-10.0" in text
    assert "gamma = 0.5" in text
    assert "not the paper's weighting" in text


def test_the_studys_models_learn_on_other_chains_and_from_true_reviews():
    rng = random.Random(0)
    shown = {p.metadata["question"] for p in heldout(150)}
    prompts = [document(rng) for _ in range(300)]
    assert not shown & {messages[0]["content"] for messages, _ in prompts}
    assert {len(messages) for messages, _ in prompts} == {1, 3}
    for _ in range(50):
        chain = easy(rng)
        text, review = slipped(rng, chain)
        steps = arithmetic.check(text, None, problem(chain, "solve").metadata).step_rewards
        line = steps.index(0.0)
        right = solution(chain).splitlines()[line]
        assert review == f"Line {line + 1} is wrong: {right}.\nVerdict: incorrect"


def test_memory_is_that_of_weights_and_of_the_largest_cache():
    engine = TransformersEngine(str(PACKAGED / "tiny"), device="cpu", max_batch=4)
    weights = engine.memory
    assert weights == 4 * engine.model.num_parameters()

    def work(times):
        policy = Policy(engine, 0, max_tokens=8)
        asyncio.run(policy.sample("Start with 7. Add 5. What is the result?" * times, 4))
        return engine.memory - weights

    column = 2 * 4 * 4 * 2 * 64 * 4  # keys and values of 4 layers, 4 slots, 2 heads of 64 float32
    small, large = work(1), work(40)
    assert small == 64 * column, "the cache grows by 64 columns"
    assert large > small
    assert large % (64 * column) == 0
    assert work(1) == large, "and is at its largest"


def test_folders_of_evaluations_are_ranked(tmp_path):
    small = ["dataset.heldout_size=8", "dataset.levels=[2]", "verify.workers=1"]
    assert _main(["eval", "method=perfics", "model=tiny", *small, "--dir", str(tmp_path / "tiny")]) == 0
    found, task = read(tmp_path / "tiny")
    assert (found.model, task) == ("tiny", "arithmetic, 8 problems")
    assert 0 <= found.performance <= 1
    assert found.memory > 4 * 1_098_880, "float32 weights, keys and values"
    assert found.tokens > 20
    assert found.seconds > 0

    other = tmp_path / "other"
    other.mkdir()
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    del summary["checksum"]  # which is of what is changed here
    (other / "summary.json").write_text(json.dumps(summary | {"model": "huge", "memory": 100 * found.memory}))
    command = [sys.executable, "-m", "selfimprove.methods.perfics"]
    done = subprocess.run([*command, tmp_path / "tiny", other], capture_output=True, text=True, check=True)
    assert done.stdout.index("tiny") < done.stdout.index("huge")

    (other / "summary.json").write_text(json.dumps(summary | {"dataset": "gsm8k"}))
    done = subprocess.run([*command, tmp_path / "tiny", other], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "models of different tasks: arithmetic, 8 problems; gsm8k, 8 problems\n"
    with pytest.raises(ConfigError, match="no finished evaluation"):
        read(tmp_path)
