"""Drawing a token with one number: `make test-vllm`."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.vllm


def drawn(logits, points, temperature=1.0, top_k=0, top_p=1.0) -> list[int]:
    from selfimprove.policy.vllm_draw import draw

    rows = len(points)
    how = (torch.full((rows,), value) for value in (temperature, top_k, top_p))
    return draw(logits.repeat(rows, 1), torch.tensor(points, dtype=torch.float64), *how).tolist()


def test_each_token_has_its_part_of_the_points() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    assert drawn(logits, [0.0, 0.0999, 0.1001, 0.2999, 0.3001, 0.9999]) == [0, 0, 1, 1, 2, 2]
    every = [(i + 0.5) / 1000 for i in range(1000)]
    assert [drawn(logits, every).count(token) for token in range(3)] == [100, 200, 700]
    assert [drawn(logits, every, temperature=0.5).count(token) for token in range(3)] == [19, 74, 907]  # squared


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((50_000,), -torch.inf)
    logits[[1, 40_000]] = 0.0
    assert drawn(logits, [0.0, 0.4999, 0.5001, 1 - 2**-53]) == [1, 1, 40_000, 40_000]


def test_what_is_cut_off_is_never_drawn() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    every = [i / 100 for i in range(100)]
    assert set(drawn(logits, every, top_k=2)) == {2, 3}
    assert set(drawn(logits, every, top_p=0.6)) == {2, 3}
    assert set(drawn(logits, every, top_p=0.3)) == {3}
