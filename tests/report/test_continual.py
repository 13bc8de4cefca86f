"""Figures of continual learning against values worked out by hand, on three tasks."""

import numpy as np
import pytest

from selfimprove.report import continual
from selfimprove.scores import Scores

A = np.array(  # row 0: untrained; row k: after task k; columns: tasks 1 to 3
    [[0.1, 0.2, 0.3], [0.9, 0.3, 0.2], [0.6, 0.8, 0.4], [0.5, 0.9, 0.7]]
)


def test_average_accuracy_is_of_the_tasks_so_far() -> None:
    assert continual.average(A) == pytest.approx((0.5 + 0.9 + 0.7) / 3)
    assert continual.average(A[:3]) == pytest.approx((0.6 + 0.8) / 2)


def test_forgetting_is_from_the_best_before_and_backward_transfer_from_the_diagonal() -> None:
    assert continual.forgetting(A) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.9)) / 2)
    assert continual.backward(A) == pytest.approx(((0.5 - 0.9) + (0.9 - 0.8)) / 2)


def test_forgetting_counts_from_the_best_and_not_from_the_first() -> None:
    a = A.copy()
    a[2, 0] = 1.0  # better after task 2 than when it was new
    assert continual.forgetting(a) == pytest.approx(((1.0 - 0.5) + (0.8 - 0.9)) / 2)
    assert continual.backward(a) == pytest.approx(continual.backward(A))


def test_forward_transfer_by_both_definitions() -> None:
    assert continual.forward_gem(A) == pytest.approx(((0.3 - 0.2) + (0.4 - 0.3)) / 2)
    alone = np.array([0.9, 0.9, 0.5])
    assert continual.forward(A, alone) == pytest.approx(((0.8 - 0.9) + (0.7 - 0.5)) / 2)


def test_intransigence_is_what_joint_training_is_better() -> None:
    assert continual.intransigence(A, np.array([0.95, 0.9, 0.6])) == pytest.approx([0.05, 0.1, -0.1])


def scores(values: list[float]) -> Scores:
    """Two problems a task, in turn, whose mean is the value."""
    groups = [str(i % 3) for i in range(6)]
    return Scores([str(i) for i in range(6)], [*values, *values], [None] * 6, groups)


def test_figures_come_from_the_scores_of_all_rounds() -> None:
    found = continual.figures([scores(row) for row in A.tolist()])
    assert found == pytest.approx(
        {
            "AA": 0.7,
            "AIA": (0.9 + 0.7 + 0.7) / 3,
            "FM": 0.15,
            "BWT": -0.15,
            "FWT_GEM": 0.1,
        }
    )
    assert continual.figures([scores([0, 0, 0])]) == {}


def test_scores_without_a_task_are_refused() -> None:
    bare = Scores(["a"], [1.0], [None], [None])
    with pytest.raises(ValueError, match=r"eval\.by=task"):
        continual.figures([bare, bare])
