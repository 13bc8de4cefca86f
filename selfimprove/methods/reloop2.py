"""ReLoop2: between updates of its model, a recommender corrects its predictions by a memory of recent clicks.

ReLoop2: Building Self-Adaptive Recommendation Models via Responsive Error Compensation Loop (Zhu et al. 2023, arXiv
2306.08808). A problem is a chunk of impressions, in order of time.

    base, once a round (slow)
        train      f on the events since its last update (in the first round: the warm-up)
        remember   empty the memory, because its keys came from the old model
    stream, chunk by chunk (fast, no gradient)
        generate   y_base = f(x), key h = its last hidden layer. With K neighbours of h in the memory, of labels y_i and
                   predictions y_base_i, at similarities s_i:
                       a     = softmax(s / tau)
                       ybar  = sum a_i y_i          ybar_b = sum a_i y_base_i
                       y_err = g (ybar - y_base) + (1 - g) (ybar - ybar_b)
                       y~    = clip(y_base + lam y_err, 0, 1)
        verify     the mean log-likelihood of the chunk's labels, which come in now
        remember   (h, y, y_base) of each event

The paper has g = 1, so that y~ = (1 - lam) y_base + lam ybar. There are two kinds of memory. A `sketch` has a constant
size: each array hashes h to one of 2^L buckets and adds (1, y, y_base) there, and reads out the bucket's mean. The
`exact` memory has the events themselves. The paper's weights of a sketch's readouts were not found; here they are
equal.

*Wrong when* past clicks do not predict future ones: then the memory adds noise to a good prediction. Also wrong when
the base model learns from each chunk faster than the memory forgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from selfimprove.errors import ConfigError
from selfimprove.plan import Pass
from selfimprove.policy import Policy
from selfimprove.schema import Config, Stage
from selfimprove.scores import Scores
from selfimprove.train import TrainContext
from selfimprove.types import (
    Attempt,
    Batch,
    Count,
    Epochs,
    Example,
    Memory,
    NonNegative,
    Positive,
    Problem,
    Rate,
    Sample,
    Share,
    Trajectory,
)


class Readout(NamedTuple):
    """A memory's answer for n events, each of shape (n,); NaN for an event without a neighbour in the memory."""

    labels: np.ndarray  # ybar
    predicted: np.ndarray  # ybar_b


# Which chunks a pass is about


def arrived(problems: list[Problem], *, step: Pass, parts: Count) -> list[Problem]:
    """The chunks since the last update: the warm-up in round 0, later the `parts` chunks of the round before."""
    last = step.round * parts
    return [p for p in problems if last - parts < p.metadata["chunk"] <= last]


def following(problems: list[Problem], *, step: Pass) -> list[Problem]:
    """The next chunk."""
    return [p for p in problems if p.metadata["chunk"] == step.turn + 1]


# Fast: compensation by the memory


async def compensated(
    problem: Problem,
    policy: Policy,
    *,
    lam: Share,
    g: Share,
    neighbours: Count,
    tau: Positive,
    memory: Sequence[Memory],
) -> list[Trajectory]:
    """One trajectory: the model's prediction, then the compensated one, as text and array of shape (events,).

    `neighbours` and `tau` are of the exact memory.
    """
    (base,) = await policy.sample(problem.prompt)
    y_base, keys = predictions(problem, base)
    y = compensate(y_base, recall(memory, keys, neighbours, tau), lam, g)
    text = " ".join(f"{value:.9g}" for value in y)
    answer = Sample([], [], [], text, "stop", base.seed, role="memory", array=y.tolist())
    return [Trajectory(problem.id, [base, answer])]


def compensate(y_base: np.ndarray, found: Readout | None, lam: float, g: float) -> np.ndarray:
    """y~, shape (n,). It is y_base for events without a neighbour in the memory."""
    if found is None:
        return y_base
    y_err = g * (found.labels - y_base) + (1 - g) * (found.labels - found.predicted)
    return np.asarray(np.clip(y_base + lam * np.nan_to_num(y_err), 0, 1))


def recall(memory: Sequence[Memory], keys: np.ndarray, neighbours: int, tau: float) -> Readout | None:
    """The answer of a memory of either kind for events with these keys (n, d). None: the memory is empty."""
    if not memory:
        return None
    if memory[0].key.startswith("array"):
        return _of_sketch([_array(one, keys.shape[1]) for one in memory], keys)
    stored = np.concatenate([np.array(one.array).reshape(-1, keys.shape[1] + 2) for one in memory])
    return _of_events(stored, keys, neighbours, tau)


def _of_events(stored: np.ndarray, keys: np.ndarray, neighbours: int, tau: float) -> Readout:
    """Means over the nearest events by cosine, weighted by a softmax; `stored` has rows (y, y_base, h)."""
    similar = _unit(keys) @ _unit(stored[:, 2:]).T
    k = min(neighbours, len(stored))
    nearest = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    s = np.take_along_axis(similar, nearest, 1) / tau
    a = np.exp(s - s.max(1, keepdims=True))
    a /= a.sum(1, keepdims=True)
    return Readout((a * stored[nearest, 0]).sum(1), (a * stored[nearest, 1]).sum(1))


def _of_sketch(arrays: Sequence[tuple[np.ndarray, np.ndarray]], keys: np.ndarray) -> Readout:
    """Means of the buckets' means, over the arrays whose bucket is not empty."""
    read = np.array([sums[buckets(projections, keys)] for projections, sums in arrays])  # (arrays, n, 3)
    there = read[..., 0] > 0
    means = read[..., 1:] / np.maximum(read[..., :1], 1)
    count = there.sum(0)
    mean = np.where(there[..., None], means, 0).sum(0) / np.maximum(count, 1)[:, None]
    mean[count == 0] = np.nan
    return Readout(mean[:, 0], mean[:, 1])


def buckets(projections: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Signed random projections (Charikar 2002): the number, in [0, 2^L), of each key (n, d) by L directions (L, d)."""
    return np.asarray((keys @ projections.T > 0) @ (1 << np.arange(len(projections))))


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


# Writing the memory


def exact(
    groups: Iterable[list[Attempt]],
    *,
    memory: Sequence[Memory],
    sigma: NonNegative = 0.0,
    share: Share = 1.0,
    seed: int,
) -> Iterator[Memory]:
    """The events themselves: a random `share` of those with |y - y_base| > `sigma`. One memory for each chunk."""
    yield from memory
    rng = np.random.default_rng(seed)
    for (attempt,) in groups:
        rows = _events(attempt)
        kept = (np.abs(rows[:, 0] - rows[:, 1]) > sigma) & (rng.random(len(rows)) < share)
        if kept.any():
            yield Memory(attempt.problem.id, array=rows[kept].flatten().tolist())


def sketch(
    groups: Iterable[list[Attempt]], *, memory: Sequence[Memory], arrays: Count, bits: Count, seed: int
) -> Iterator[Memory]:
    """Sums in buckets: `arrays` memories, each with L = `bits` directions of length d and 2^L sums of (1, y, y_base).
    The size does not grow with the events."""
    rows = np.concatenate([_events(attempt) for (attempt,) in groups])
    width = rows.shape[1] - 2
    rng = np.random.default_rng(seed)
    known = [_array(one, width) for one in memory]
    known = known or [(rng.normal(size=(bits, width)), np.zeros((1 << bits, 3))) for _ in range(arrays)]
    for number, (projections, sums) in enumerate(known):
        added = sums.copy()
        np.add.at(added, buckets(projections, rows[:, 2:]), np.column_stack([np.ones(len(rows)), rows[:, :2]]))
        yield Memory(
            f"array {number}", array=[*projections.flatten(), *added.flatten()], metadata={"bits": len(projections)}
        )


def reset(groups: Iterable[list[Attempt]]) -> Iterator[Memory]:
    """No memory."""
    yield from ()


def _array(one: Memory, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions (L, width) and sums (2^L, 3)."""
    values, bits = np.array(one.array), one.metadata["bits"]
    return values[: bits * width].reshape(bits, width), values[bits * width :].reshape(-1, 3)


def _events(attempt: Attempt) -> np.ndarray:
    """Rows (y, y_base, h) of a chunk."""
    y_base, keys = predictions(attempt.problem, attempt.trajectory.samples[0])
    return np.column_stack([attempt.problem.metadata["labels"], y_base, keys])


def predictions(problem: Problem, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """y_base (n,) and keys (n, d) from a sample of the click model."""
    rows = np.array(sample.array).reshape(len(problem.metadata["labels"]), -1)
    return rows[:, 0], rows[:, 1:]


# Slow: the base model


def rows(groups: Iterable[list[Attempt]]) -> Iterator[Example]:
    """An example for each event: user and item as its input, the label as its completion."""
    for (attempt,) in groups:
        problem = attempt.problem
        assert problem.array is not None
        events = zip(problem.array.data[::2], problem.array.data[1::2], strict=True)
        for event, label in zip(events, problem.metadata["labels"], strict=True):
            metadata = {"input": {"shape": [2], "data": event}}
            yield Example(problem.id, [attempt.trajectory.id], [], [label], metadata=metadata)


def fit(
    rows: Sequence[Example], context: TrainContext, *, epochs: Epochs, learning_rate: Rate, batch_size: Batch
) -> dict[str, float]:
    """Train the click model by cross-entropy, from its last weights. Returns the figures of `own.fit`."""
    import torch

    from selfimprove.policy import nets
    from selfimprove.train import own

    net = own.start(context)
    events, labels = own.inputs(rows, context.device), own.labels(rows, context.device).float()

    def loss(batch: list[int]) -> torch.Tensor:
        logits, _ = net(events[batch])
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])

    steps = own.batches(len(rows), epochs, batch_size, context.seed)
    figures = own.fit(net, steps, loss, context, learning_rate=learning_rate)
    nets.save(net, context.out)
    return figures


def require_stage(config: Config, stage: Stage, where: str) -> None:
    """Raises ConfigError if the stream has fewer chunks than the run needs."""
    stream, there = config.stages.get("stream"), (config.dataset.model_extra or {}).get("train_size")
    if stream and there is not None and config.rounds * stream.parts > there:
        said = f"of {stream.parts} chunks each (method.stages.stream.parts), and dataset.train_size={there}"
        raise ConfigError(f"rounds={config.rounds}: {said}", "rounds")


def figures(rounds: Sequence[Scores]) -> dict[str, float]:
    """`gauc`: the gAUC by user, as a mean over the held-out chunks that have one."""
    found = [float(answer) for answer in rounds[-1].answers if answer is not None]
    return {"gauc": float(np.mean(found))} if found else {}
