"""What a second answer made of the first: by hand, and the edit distance beside its recursion."""

from __future__ import annotations

import random

import pytest

from selfimprove.report.revisions import edit_distance, revisions
from selfimprove.types import Attempt, Problem, Sample, Trajectory, Verdict


def attempt(text: str, right: bool) -> Attempt:
    sample = Sample([1], [2], [-1.0], text, "stop", 0)
    return Attempt(Problem("p", "?"), Trajectory("p", [sample]), Verdict("", "correct" if right else "wrong", right))


def test_the_four_figures_of_four_problems() -> None:
    pairs = [
        (attempt("ab", True), attempt("ab", True)),
        (attempt("ab", True), attempt("cd", False)),
        (attempt("ab", False), attempt("abcd", True)),
        (attempt("ab", False), attempt("xb", True)),
    ]
    assert revisions(pairs, 2) == {"i_to_c@t2": 0.5, "c_to_i@t2": 0.25, "same@t2": 0.25, "edit@t2": 0.5}


@pytest.mark.parametrize(
    ("first", "second", "edits"), [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("abc", "xyz", 3)]
)
def test_known_distances(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edits / max(len(first), len(second))


def test_the_distance_is_that_of_its_recursion() -> None:
    def slow(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    rng = random.Random(0)
    for _ in range(40):
        a, b = ("".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(2))
        assert edit_distance(a, b) == pytest.approx(slow(a, b) / max(len(a), len(b)))
        assert edit_distance(a, b) == edit_distance(b, a)


def test_nothing_said_is_far_from_everything() -> None:
    assert (edit_distance("", "abc"), edit_distance("abc", ""), edit_distance("", "")) == (1, 1, 0)
