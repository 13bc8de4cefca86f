"""Training rows of several spans. Some spans bear loss, and some do not.

`whole` makes a row from a dialogue. What the policy sampled bears loss, and what stands between its turns does not. A
method that puts its own words between samples makes the spans itself and joins them with `row`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from selfimprove.types import Example, Sample, Trajectory


@dataclass(frozen=True, slots=True)
class Span:
    """Token ids behind a prompt. `loss` says whether they are learnt."""

    ids: Sequence[int]
    loss: bool


def row(
    problem_id: str, trajectory_ids: list[str], prompt_ids: list[int], spans: Iterable[Span], **more: Any
) -> Example:
    """The spans, one after another, as the completion of a prompt. `more` has other fields of Example."""
    ids, mask = list[int](), list[int]()
    for span in spans:
        ids += span.ids
        mask += [int(span.loss)] * len(span.ids)
    return Example(problem_id, trajectory_ids, prompt_ids, ids, mask=mask, **more)


def spans(samples: Sequence[Sample], learnt: Callable[[int, Sample], bool] = lambda turn, sample: True) -> list[Span]:
    """All that stands behind the first sample's prompt: the samples, and what was put between them.

    `learnt` takes a sample's place, from 0, and says whether it bears loss. What stands between samples never does. An
    end token that was taken back, so that a turn could go on, is in no span. Raises ValueError if a sample does not go
    on from the one before.
    """
    found = list[Span]()
    so_far = list(samples[0].prompt_ids)
    for turn, sample in enumerate(samples):
        size = len(so_far)
        if sample.prompt_ids[:size] != so_far:
            size -= 1
            if not found or sample.prompt_ids[:size] != so_far[:size]:
                raise ValueError(f"sample {turn} does not go on from the one before: this is not one dialogue")
            found[-1] = Span(found[-1].ids[:-1], found[-1].loss)
        if between := sample.prompt_ids[size:]:
            found.append(Span(between, False))
        found.append(Span(sample.completion_ids, learnt(turn, sample)))
        so_far = [*sample.prompt_ids, *sample.completion_ids]
    return found


def whole(trajectory: Trajectory, learnt: Callable[[int, Sample], bool] = lambda turn, sample: True) -> Example:
    """A dialogue as one row: the first sample's prompt, and everything behind it. `learnt` samples bear loss.

    Raises ValueError as `spans` does.
    """
    first = trajectory.samples[0]
    return row(trajectory.problem_id, [trajectory.id], first.prompt_ids, spans(trajectory.samples, learnt))


def body(sample: Sample) -> list[int]:
    """The ids of a sample without its end token. The sample has to be drawn without stop texts."""
    return sample.completion_ids[:-1] if sample.finish == "stop" else sample.completion_ids
