"""Function calls: what is read of a text, and which calls a gold answer allows."""

import importlib.util
import json

import pytest

from selfimprove.datasets import bfcl
from selfimprove.errors import ConfigError
from selfimprove.verify.calls import check, read, reference


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("set_alarm(hour=7)", ("set_alarm", {"hour": 7})),
        ("I call `math.hypot(x=3, y=-4.5)` now", ("math.hypot", {"x": 3, "y": -4.5})),
        ("[f(a='x)', b=[1, (2, 3)], c={'k': True})]", ("f", {"a": "x)", "b": [1, (2, 3)], "c": {"k": True}})),
        ("f(1)", None),
        ("f(x=g)", None),
        ("f(x=1", None),
        ("no call (at all)", None),
        ("f(y) and then g(x=1)", ("g", {"x": 1})),
    ],
)
def test_the_first_call_with_named_arguments(text, call):
    assert read(text) == call


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("f(x=1, s='New York')", "correct"),
        ("f(x=1.0, s='new-york', z='any')", "correct"),
        ("f(x=1)", "wrong"),
        ("f(x=True, s='New York')", "wrong"),
        ("f(x=1, s='New York', other=2)", "wrong"),
        ("g(x=1, s='New York')", "wrong"),
        ("f(x=1, s='New York', z='none')", "wrong"),
        ("x is 1", "unparseable"),
    ],
)
def test_which_calls_are_right(text, status):
    gold = json.dumps({"f": {"x": [1], "s": ["New York", "NYC"], "z": ["", "any"]}})
    assert check(text, gold, {}).status == status


def test_lists_and_objects_part_by_part():
    gold = json.dumps({"f": {"p": [[3, 4]], "o": [{"a": [1, 2], "b": [""]}]}})
    assert check("f(p=[3, 4], o={'a': 2})", gold, {}).status == "correct"
    assert check("f(p=(3, 4), o={'a': 2})", gold, {}).status == "correct"
    assert check("f(p=[4, 3], o={'a': 2})", gold, {}).status == "wrong"
    assert check("f(p=[3, 4], o={'a': 3})", gold, {}).status == "wrong"


def test_gold_that_is_none():
    assert check("f(x=1)", "seven", {}).status == "error"


def test_without_the_package_it_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="dataset=bfcl: needs the package bfcl-eval: pip install"):
        bfcl.load(categories=["multiple"], prompt="{question}", seed=0)


def test_items_of_a_folder(tmp_path):
    parameters = {"properties": {"x": {"type": "integer"}, "y": {"type": "string"}}, "required": ["x"]}
    functions = [{"name": "f", "description": "Does f.", "parameters": parameters}]
    item = {"id": "multiple_0", "question": [[{"role": "user", "content": "do f"}]], "function": functions}
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "BFCL_v4_multiple.json").write_text(json.dumps(item) + "\n")
    answer = {"id": "multiple_0", "ground_truth": [{"f": {"x": [1], "y": [""]}}]}
    (tmp_path / "possible_answer" / "BFCL_v4_multiple.json").write_text(json.dumps(answer) + "\n")
    options = {
        "categories": ["multiple"],
        "path": str(tmp_path),
        "prompt": "{question}",
        "heldout_share": 1.0,
        "seed": 0,
    }
    (problem,) = bfcl.load(**options)
    assert problem.prompt[-1]["content"] == "f(x: integer, y: string (optional)): Does f.\n\nRequest: do f"
    assert problem.metadata["actions"] == ["f"]
    assert reference(problem.gold, {}) == "f(x=1)"
    with pytest.raises(ConfigError, match="there is no problem"):
        bfcl.load(**options, longest=10)


@pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")
def test_every_gold_call_of_the_leaderboard_is_right():
    categories = ["simple_python", "multiple", "live_simple", "live_multiple"]
    problems = bfcl.load(categories=categories, prompt="{question}", heldout_share=1.0, seed=0)
    assert len(problems) == 1909
    assert all(check(reference(p.gold, {}), p.gold, {}).status == "correct" for p in problems)
