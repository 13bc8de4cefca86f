"""TT-SI: the margin by hand, what is learnt from, that certain inputs keep their answer; whole, small."""

import asyncio
import json
import math

import pytest

from selfimprove.config import compose
from selfimprove.datasets import toolcall
from selfimprove.errors import ConfigError
from selfimprove.methods.tt_si import Lora, gap, generate, in_context, like, margin, needs, read
from selfimprove.policy import Policy
from selfimprove.policy.models import PACKAGED
from selfimprove.studies.tiny import shipped
from selfimprove.studies.tt_si import ask
from selfimprove.types import Problem
from selfimprove.verify.calls import check


@pytest.fixture(scope="module")
def engine():
    return shipped(PACKAGED / "caller")


def requests(size=6, rare=1.0):
    return toolcall.load(rare=rare, prompt="{question}", train_size=0, heldout_size=size, seed=0)


def answered(engine, problems, **options):
    async def everything():
        policy = Policy(engine, 0, max_tokens=48)
        return await asyncio.gather(
            *(generate(p, policy.for_problem(p), ask=ask(), roles={}, seed=7, **options) for p in problems)
        )

    return asyncio.run(everything())


def test_the_margin_by_hand():
    assert gap([math.log(0.5), math.log(0.3), math.log(0.2)]) == pytest.approx(0.2)
    assert gap([math.log(0.05), math.log(0.03), math.log(0.02)]) == pytest.approx(0.2), "of the actions alone"
    assert gap([-1000.0, -1001.0]) == pytest.approx((1 - math.exp(-1)) / (1 + math.exp(-1)))
    assert gap([-3.0]) == 1.0


def test_the_margin_is_of_the_names_of_functions(engine):
    (problem,) = requests(1)

    async def both():
        policy = Policy(engine, 0)
        ids = policy.render(problem.prompt)
        scores = [sum(await policy.logprobs(ids, policy.encode(f"{a}("))) for a in problem.metadata["actions"]]
        return gap(scores), await margin(problem, policy)

    mine, theirs = asyncio.run(both())
    assert theirs == pytest.approx(mine, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("Request: wake me at 7\nCall: set_alarm(hour=7)", ("wake me at 7", "set_alarm(hour=7)")),
        ("Sure!\nRequest:  play Ada \n\n Call: `play_music(name='Ada')`.", ("play Ada", "play_music(name='Ada')")),
        ("Request: wake me\nCall: I do not know", None),
        ("Call: set_alarm(hour=7)", None),
        ("Request: \nCall: f(x=1)", None),
    ],
)
def test_an_example_is_a_request_and_a_call(text, pair):
    assert read(text) == pair


def test_an_example_stands_in_the_problems_own_prompt():
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "f(x)\nRequest: do f\nRequest: do f, please"},
    ]
    problem = Problem("p", chat, metadata={"request": "do f"})
    assert like(problem, "go")[-1]["content"] == "f(x)\nRequest: do f\nRequest: go, please", "the last one"
    shown = in_context(problem, [("go", "f(x=1)")])
    assert [m["role"] for m in shown] == ["system", "user", "assistant", "user"]
    assert shown[2]["content"] == "f(x=1)"
    assert shown[-1] == chat[-1]


def test_certain_inputs_keep_their_answer_and_uncertain_ones_learn(engine):
    problems = requests(8)
    none = answered(engine, problems, tau=0.0)
    assert all(len(group) == 1 for group in none)
    teacher = {"teacher": toolcall.similar, "lora": Lora(learning_rate=1e-2)}
    u = [group[0].metadata["margin"] for group in none]
    tau = sorted(u)[3]
    some = answered(engine, problems, tau=tau, **teacher)
    for before, after, margin_ in zip(none, some, u, strict=True):
        assert after[0].samples[0].completion_ids == before[0].samples[0].completion_ids
        assert len(after) == (2 if margin_ < tau else 1)
    learnt = [group[1] for group in some if len(group) == 2]
    assert all(t.metadata["stage"] == 1 and t.samples[-1].logprobs != t.samples[0].logprobs for t in learnt)
    assert not engine._adapters.held


def test_chance_learns_at_a_share_whatever_the_margin(engine):
    found = answered(engine, requests(3), gate="chance", rate=1.0, learn="context", teacher=toolcall.similar)
    assert [len(group) for group in found] == [2, 2, 2]
    assert {group[0].metadata["margin"] for group in found} == {None}
    assert needs(learn="context", gate="chance") == ["actions"]
    assert set(needs()) == {"actions", "adapters", "logprobs"}


def test_where_no_example_can_be_read_the_first_answer_stands(engine):
    found = answered(engine, requests(2), tau=2.0, teacher=lambda problem, k, seed: [])
    assert [len(group) for group in found] == [1, 1]


def test_a_teacher_gives_right_examples_of_the_same_function():
    for problem in requests(5):
        for request, call in toolcall.similar(problem, 3, seed=1):
            assert call.startswith(f"{problem.metadata['function']}(")
            assert read(f"Request: {request}\nCall: {call}") == (request, call)


def test_sides_do_not_overlap_and_gold_is_right():
    problems = toolcall.load(rare=0.5, prompt="{question}", train_size=50, dev_size=20, heldout_size=30, seed=1)
    questions = [p.metadata["request"] for p in problems]
    assert len(set(questions)) == len(questions)
    assert all(check(toolcall.call(p.gold), p.gold, {}).status == "correct" for p in problems)
    assert all(p.metadata["function"] in p.metadata["actions"] for p in problems)


def test_variants_differ_in_what_they_say(tmp_path):
    from selfimprove.evaluation import choose

    base, teacher, shown = (
        choose(None, [f"method={name}"], solver=True).config for name in ("tt_si", "tt_d", "tt_icl")
    )
    assert (base.model.name, base.dataset.name) == ("caller", "toolcall")
    own = base.method.generate
    assert teacher.method.generate == own | {"teacher": {"_target_": "selfimprove.datasets.toolcall.similar"}}
    assert shown.method.generate == own | {"learn": "context"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=arithmetic"], "needs actions, which engine=transformers with dataset=arithmetic does not give"),
        (["dataset=toolcall", "generate.lora.rank=3"], "generate.lora.rank: unknown key"),
        (["dataset=toolcall", "generate.teacher={_target_: selfimprove.no.one}"], "no such function"),
    ],
)
def test_bad_input_is_one_line(words, said):
    with pytest.raises(ConfigError, match=said) as refused:
        compose(["method=rejection_sampling", "generate=tt_si", *words])
    assert "\n" not in str(refused.value)


def test_an_evaluation_of_it_ends_whole(tmp_path):
    from selfimprove.solving import evaluate_solver

    words = ["method=tt_si", "dataset.heldout_size=6", "tracker=none", "verify.workers=1", "method.generate.tau=2"]
    summary = evaluate_solver(None, words, tmp_path / "eval")
    assert summary["status"] == "complete"
    assert json.loads((tmp_path / "eval" / "summary.json").read_text())["kind"] == "eval"
