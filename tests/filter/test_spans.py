"""Which ids of a dialogue bear loss."""

from __future__ import annotations

import pytest

from selfimprove.filter.spans import Span, body, row, spans, whole
from selfimprove.types import Sample, Trajectory

END = 9


def sample(prompt: list[int], completion: list[int], finish: str = "stop") -> Sample:
    return Sample(prompt, completion, [0.0] * len(completion), "", finish, 0)  # type: ignore[arg-type]


ONE = [sample([1, 2], [3, END])]
USER = [sample([1, 2], [3, END]), sample([1, 2, 3, END, 50, 51], [4, 5, END])]  # 50 51: what the user said
CUT = [sample([1, 2], [3, 4], "length"), sample([1, 2, 3, 4, 50], [5, END])]
RESUMED = [sample([1, 2], [3, END]), sample([1, 2, 3, 60], [5, END])]  # the end token was taken back, 60 put there
TWICE = [sample([1], [2, END]), sample([1, 2, 60], [3, END]), sample([1, 2, 60, 3, END, 50], [4, END])]
STRAIGHT = [sample([1], [2]), sample([1, 2], [3, END])]  # one turn in two requests


@pytest.mark.parametrize(
    ("samples", "ids", "mask"),
    [
        (ONE, [3, END], [1, 1]),
        (USER, [3, END, 50, 51, 4, 5, END], [1, 1, 0, 0, 1, 1, 1]),
        (CUT, [3, 4, 50, 5, END], [1, 1, 0, 1, 1]),
        (RESUMED, [3, 60, 5, END], [1, 0, 1, 1]),
        (TWICE, [2, 60, 3, END, 50, 4, END], [1, 0, 1, 1, 0, 1, 1]),
        (STRAIGHT, [2, 3, END], [1, 1, 1]),
    ],
    ids=["one", "user", "cut", "resumed", "twice", "straight"],
)
def test_loss_is_on_exactly_the_ids_that_were_sampled(samples: list[Sample], ids: list[int], mask: list[int]) -> None:
    example = whole(Trajectory("p", samples, id="t"))
    assert (example.problem_id, example.trajectory_ids) == ("p", ["t"])
    assert example.prompt_ids == samples[0].prompt_ids
    assert example.completion_ids == ids
    assert example.mask == mask
    assert example.prompt_ids + ids == samples[-1].prompt_ids + samples[-1].completion_ids


def test_a_turn_can_be_left_unlearnt() -> None:
    assert whole(Trajectory("p", USER), lambda turn, sample: turn == 1).mask == [0, 0, 0, 0, 1, 1, 1]
    assert whole(Trajectory("p", USER), lambda turn, sample: sample.completion_ids[0] == 3).mask == [1, 1] + [0] * 5


@pytest.mark.parametrize("second", [[1, 2, 4, END, 50], [1, 7, 3, END], [1, 2]], ids=["other", "prompt", "beside"])
def test_samples_that_are_no_single_dialogue_are_refused(second: list[int]) -> None:
    with pytest.raises(ValueError, match="sample 1 does not go on"):
        spans([ONE[0], sample(second, [5])])


def test_words_are_woven_between_samples() -> None:
    woven = [Span(body(ONE[0]), False), Span([60], True), Span(body(CUT[0]), True), Span([END], True)]
    example = row("p", ["a", "b"], [1, 2], woven, weight=2.0)
    assert example.completion_ids == [3, 60, 3, 4, END]
    assert example.mask == [0, 1, 1, 1, 1]
    assert example.weight == 2.0
