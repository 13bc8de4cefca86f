"""The arms against closed forms, what a critic says, kinds of colourings, and what the tiny model learns from."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import partial

import numpy as np
import pytest

from selfimprove.config import check_solver, compose
from selfimprove.datasets import colouring
from selfimprove.errors import ConfigError
from selfimprove.methods.critique_coloring import (
    KINDS,
    critic_alone,
    edges_named,
    example,
    generate,
    self_critique,
    tell,
)
from selfimprove.policy.scripted import YES, ScriptedEngine
from selfimprove.studies import critique_coloring as study
from selfimprove.studies.lessons import dialogue_row, make_tokenizer
from selfimprove.studies.made import colourer
from selfimprove.studies.solving import solve
from selfimprove.types import Problem
from selfimprove.verify.colouring import check

PATH = {"vertices": [1, 2, 3, 4], "edges": [[1, 2], [2, 3], [3, 4]], "colours": 2}
GRAPH = Problem("path", "A path of 4.", "1: 1\n2: 2\n3: 1\n4: 2", metadata=PATH)
RIGHT, WRONG = "{1:1,2:2,3:1,4:2}", "{1:1,2:1,3:1,4:2}"


def told(text: str, feedback: str) -> str:
    return tell(text, PATH, feedback, "No.", random.Random(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("feedback", "said"),
    [
        ("pass", "No."),
        ("first", "Vertices 1 and 2 share an edge and both have colour 1."),
        (
            "all",
            "Vertices 1 and 2 share an edge and both have colour 1.\n"
            "Vertices 2 and 3 share an edge and both have colour 1.",
        ),
        ("misleading", "Vertices 3 and 4 share an edge and both have colour 1."),  # they do not
    ],
)
def test_what_a_verifier_says_of_two_bad_edges(feedback, said):
    assert told(WRONG, feedback) == said


@pytest.mark.parametrize("feedback", ["first", "all", "misleading"])
def test_what_it_says_of_other_errors(feedback):
    assert told("1: 1\n2: 2", feedback) == "Vertex 3 was given no colour."
    assert told("I cannot.", feedback) == "Vertex 1 was given no colour."
    assert told("1: 1\n2: 2\n3: 3\n4: 2", feedback) == "This uses 3 colours, and 2 are enough."
    assert told("1: 1\n2: 2", "pass") == "No."
    edgeless = {**PATH, "edges": [[1, 2]], "vertices": [1, 2]}
    assert "both have colour 1" in tell("1: 1\n2: 1", edgeless, feedback, "No.", random.Random(0))


def talk(critic, engine, rounds=3, feedback="all", seed=0):
    solver = partial(generate, critic=critic, feedback=feedback, rounds=rounds, **study.talk(YES))
    (found,) = solve(solver, engine, [GRAPH], seed=seed, check=study.graded)
    return found


def script(p, **rates):
    return ScriptedEngine({"A path of 4.": RIGHT}, p, wrong_values={"A path of 4.": [WRONG]}, **rates)


def said(ids):
    return "".join(map(chr, ids))


def test_without_a_critic_there_is_one_answer():
    (only,) = talk("none", script(0.5))
    assert only.metadata == {"stage": 0, "accepted": None}
    assert len(only.samples) == 1


def test_the_verifier_goes_on_until_an_answer_is_right_with_the_whole_history():
    found = talk("verifier", script(0.0, p_improve=0.0))
    assert [t.metadata["stage"] for t in found] == [0, 1, 2, 3]
    assert [t.metadata["accepted"] for t in found] == [False, False, False, None], (
        "nobody is asked after the last round"
    )
    last = found[-1].samples[-1]
    assert len(found[-1].samples) == 4, "answers only"
    assert said(last.prompt_ids).count("Vertices 1 and 2 share an edge") == 3
    assert said(last.prompt_ids).count(WRONG) == 3
    found = talk("verifier", script(0.0, p_improve=1.0))
    assert [t.metadata["accepted"] for t in found] == [False, True]
    assert found[-1].text.endswith(RIGHT)
    assert found[0].samples[0] is found[1].samples[0]


def test_the_self_critic_sees_the_graph_and_the_answer_and_nothing_else():
    found = talk("self", script(1.0, tpr=0.0))
    assert [t.metadata["accepted"] for t in found] == [False, False, False, None]
    assert [t.metadata.get("review") for t in found] == ["No", "No", "No", None]
    answers, reviews = found[-1].samples[::2], found[-1].samples[1::2]
    assert [len(answers), len(reviews)] == [4, 3]
    assert all(said(r.prompt_ids).count("The answer is {") == 1 for r in reviews)
    assert said(answers[-1].prompt_ids).count("No\nColour it again.") == 3
    (only,) = talk("self", script(0.0, fpr=1.0))
    assert only.metadata["accepted"] is True, "it takes a wrong answer"


def test_closed_form_of_self_critique_by_counting_out():
    rng = np.random.default_rng(0)
    right = rng.random((200_000, 6)) < 0.3
    accepts = np.where(right, rng.random(right.shape) < 0.4, rng.random(right.shape) < 0.1)
    accepts[:, 5] = True  # nobody is asked after the last of five rounds
    final = right[np.arange(len(right)), accepts.argmax(axis=1)]
    assert self_critique(0.3, 0.4, 0.1, 5) == pytest.approx(final.mean(), abs=0.004)
    assert self_critique(0.16, 0.02, 0.05, 15) < 0.16 < 1 - 0.84**16


@pytest.mark.parametrize("name", ["self-critique", "verifier, pass/fail", "verifier, misleading", study.CONTROL])
def test_arms_of_an_independent_policy_reach_their_closed_form(name):
    problems, engine = colourer.script(15, study.P, study.ACCEPT_RIGHT, study.ACCEPT_WRONG)
    arm = study.run(engine, problems, name, 0, YES)
    expected = self_critique(0.16, 0.02, 0.05, 15) if name == "self-critique" else 1 - 0.84**16
    sigma = math.sqrt(expected * (1 - expected) / len(problems))
    assert abs(np.mean(list(arm.success().values())) - expected) < 3 * sigma
    assert abs(np.mean(list(arm.success(1).values())) - (1 - 0.84**2)) < 0.08 or name == "self-critique"
    assert (arm.rejected > 0.3) == (name == "self-critique")


def test_kinds_of_colourings_are_what_they_are_called():
    graphs = colourer.graphs(30)
    for kind in KINDS:
        rng = random.Random(1)
        outcomes = [check(example(p, kind, rng), None, p.metadata) for p in graphs]
        statuses = Counter(o.status for o in outcomes)
        if kind == "right":
            assert statuses == {"correct": 30}
        elif kind != "random":
            assert statuses == {"wrong": 30}
            expected = "joins two of" if kind == "spoilt" else "4 colours where 3 may be used"
            assert all(expected in (o.reason or "") for o in outcomes)
        else:
            assert statuses["wrong"] > 15


def test_the_critic_alone_judges_every_kind_and_its_own():
    engine = ScriptedEngine({"A path of 4.": RIGHT}, 1.0, wrong_values={"A path of 4.": [WRONG]}, tpr=0.0, fpr=1.0)
    prompt = [{"role": "user", "content": "{question}\nThe answer is " + RIGHT + "\n" + study.VERIFY}]
    (found,) = solve(partial(critic_alone, verify=prompt, accept=YES), engine, [GRAPH])
    assert [t.metadata["kind"] for t in found] == [*KINDS, "own"]
    assert not any(t.metadata["accepted"] for t in found)
    assert [len(t.samples) for t in found] == [1, 1, 1, 1, 2]


def test_edges_that_a_review_names():
    vertices = ["1", "2", "3", "12"]
    review = "Vertices 1 and 12 share an edge and both have color 2. 1-3 too; vertices 1, 2 and 3 are close. Vertex 2"
    assert edges_named(review, vertices) == [frozenset({"1", "12"}), frozenset({"1", "3"})]
    assert edges_named("Verifier confirmed success.", vertices) == []


def test_documents_of_the_tiny_model():
    rng = random.Random(3)
    seen = Counter()
    texts = [m["content"] for _ in range(300) for m in colourer.document(rng).messages]
    tokenizer = make_tokenizer(texts, vocabulary=320, window=colourer.WINDOW)
    for i in range(150):
        made = colourer.document(rng)
        answer = made.messages[-1]["content"]
        assert made.learnt[-1] == answer
        row = dialogue_row(tokenizer, made.messages, made.learnt, str(i))
        learnt = [t for t, kept in zip(row.completion_ids, row.mask or [], strict=True) if kept]
        assert tokenizer.decode(learnt) == "".join(made.learnt) + "<eos>"
        question = made.messages[0]["content"]
        verify = study.VERIFY in question
        seen["verify" if verify else "mend" if len(made.messages) > 2 else "solve"] += 1
        if verify:
            continue
        shown = [line.replace("none", "").split(" by ") for line in question.splitlines()]
        edges = [[int(u), int(v)] for v, us in shown for u in us.split()]
        metadata = {"vertices": list(range(1, len(question.splitlines()) + 1)), "edges": edges, "colours": 3}
        said = [check(m["content"], None, metadata).status for m in made.messages if m["role"] == "assistant"]
        assert said == ["wrong"] * (len(said) - 1) + ["correct"]
    assert min(seen.values()) > 5


def test_graphs_are_shown_with_earlier_neighbours_and_answers_with_their_colours():
    assert colourer.neighbours(3, [[1, 3], [2, 3]]) == "1 by none\n2 by none\n3 by 1 2"
    text = colourer.worked([1, 2, 3], [[1, 3], [2, 3]])
    assert text == "()\n1: 1\n()\n2: 2\n(1: 1 2: 2)\n3: 3"
    graph = {"vertices": [1, 2, 3], "edges": [[1, 3], [2, 3]], "colours": 3}
    assert check(text, None, graph).extracted == "1: 1, 2: 2, 3: 3"
    assert check("()\n1: 1\n(1: 3 2: 3)\n2: 2\n3: 3", None, graph).extracted == "1: 1, 2: 2, 3: 3"


def test_only_graphs_are_taken():
    with pytest.raises(ConfigError, match=r"needs graph, which .* dataset=asdiv does not give"):
        check_solver(compose(["method=critique_coloring", "dataset=asdiv"], needs=False))
    for data in ("colouring", "colouring_planar"):
        config = compose(["method=critique_coloring", f"dataset={data}"], needs=False)
        check_solver(config)
        assert colouring.__name__ in config.dataset.target
    compose(["method=rejection_sampling", "generate=critique_coloring", "dataset=colouring"])
