import itertools

import pytest

from selfimprove.verify.colouring import check

SQUARE = {"edges": [["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"]], "colours": 2}


@pytest.mark.parametrize(
    "text",
    [
        "a: red\nb: blue\nc: red\nd: blue",
        "I begin.\n- a = Red\n- b = blue\n- c = RED\n- d = blue\nDone: yes",
        'Here: {"a": 1, "b": 2, "c": 1, "d": 2}',
        "Vertex a: colour 1\nVertex b: colour 2\nVertex c: colour 1\nVertex d: colour 2",
        "**a**: red\n**b** -> blue\n* c: red\nd → blue",
        "a: blue\nb: blue\nc: red\nd: blue\nNo, b is a neighbour.\na: red",
    ],
)
def test_a_proper_colouring_is_correct(text):
    assert check(text, None, SQUARE).status == "correct"


@pytest.mark.parametrize(
    ("text", "metadata", "reason"),
    [
        ("a: red\nb: blue\nc: blue\nd: blue", SQUARE, "edge b-c joins two of blue"),
        ("a: red\nb: blue\nc: red", SQUARE, "vertex d has no colour"),
        ("a: red\nb: blue\nc: red\nd: green", SQUARE, "3 colours where 2 may be used"),
        ("a: red\nb: blue", {"edges": [["a", "b"]], "colours": ["red", "green"]}, "blue is none of the colours"),
        (
            "a: red\nb: blue",
            {"edges": [["a", "b"]], "colours": 2, "vertices": ["a", "b", "z"]},
            "vertex z has no colour",
        ),
        ("1: red", {"edges": [[1, 1]], "colours": 2}, "edge 1-1 joins two of red"),
    ],
)
def test_the_reason_names_what_is_violated(text, metadata, reason):
    outcome = check(text, None, metadata)
    assert (outcome.status, outcome.reward, outcome.reason) == ("wrong", 0.0, reason)


def test_prose_and_steps_are_no_colouring():
    assert check("Step a: think. Note: red", None, SQUARE).status == "unparseable"
    assert check("", None, SQUARE).status == "unparseable"


@pytest.mark.parametrize(
    "metadata", [{}, {"edges": [["a"]], "colours": 2}, {"edges": [["a", "b"]]}, {"edges": 3, "colours": 2}]
)
def test_a_graph_that_cannot_be_read_is_an_error(metadata):
    assert check("a: red\nb: blue", None, metadata).status == "error"


def test_agrees_with_the_definition_on_every_colouring_of_a_small_graph():
    edges = [(0, 1), (1, 2), (2, 0), (2, 3)]
    for colours in itertools.product("rgb", repeat=4):
        text = "\n".join(f"{vertex}: {colour}" for vertex, colour in enumerate(colours))
        proper = all(colours[u] != colours[v] for u, v in edges)
        assert (check(text, None, {"edges": edges, "colours": 3}).status == "correct") == proper
