"""Does a memory of recent clicks correct a click model after the world has changed, and beside learning by SGD?

Claims of Zhu et al. 2023 (arXiv 2306.08808), on a made stream whose item effects are drawn anew at a known chunk. A run
predicts a chunk, then sees its labels. There are two runs a seed: the model of one is never updated after the warm-up,
that of the other learns from each chunk by SGD. A memory changes neither model, so each run gives two arms: its model's
own predictions and the compensated ones. lam and the rate of SGD are chosen on a seed that no comparison uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove import store
from selfimprove.methods.reloop2 import compensate, exact, predictions, recall
from selfimprove.report.auc import gauc
from selfimprove.report.statistics import Estimate, difference
from selfimprove.studies import Claim, Lab, Result
from selfimprove.studies.arms import arms_table
from selfimprove.studies.draws import spread
from selfimprove.studies.staged import DEV_SEED, below, bounded
from selfimprove.types import Attempt, Memory
from selfimprove.verify.clicks import LEAST

COMMAND = "selfimprove study reloop2"
BASE, SGD, SMALL, LOOP, BOTH = "base", "SGD", "SGD, small rate", "ReLoop2", "ReLoop2 + SGD"
LAMBDAS = (0.3, 0.5, 0.7, 0.9)
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SMALL_RATE = 1e-3  # a third of the rate of the base model
FIRST = 4  # chunks that count as the first ones after the jump
STILL = ("dataset.jump_at=null", "dataset.drift=0")


@dataclass(frozen=True)
class Chunk:
    """What a run knew of a chunk before its labels came in; arrays of shape (n,), keys (n, d)."""

    number: int
    labels: np.ndarray
    users: Sequence[int]
    y_base: np.ndarray
    keys: np.ndarray
    memory: Sequence[Memory]
    attempt: Attempt

    def answer(self, lam: float) -> np.ndarray:
        return compensate(self.y_base, recall(self.memory, self.keys, 16, 0.1), lam, 1.0)


Stream = list[Chunk]
Losses = dict[str, float]  # event -> its log-loss in nats


def study(lab: Lab) -> Iterator[Claim]:
    size, parts, jump = (200, 6, 3) if lab.quick else (800, 16, 7)
    common = ["method=reloop2", "rounds=1", f"method.stages.stream.parts={parts}", f"dataset.train_size={parts}"]
    common += ["method.stages.base.when=first", f"dataset.chunk={size}", f"dataset.jump_at={jump}"]
    common += ["dataset.heldout_size=1", *(["dataset.warmup=1000"] if lab.quick else [])]

    def stream(seed: int, *words: str) -> Stream:
        return streamed(lab.run(*common, *words, f"seed={seed}"))

    dev = {rate: stream(DEV_SEED, *learning(rate)) for rate in (RATES[2:3] if lab.quick else RATES)}
    frozen_dev = stream(DEV_SEED)
    later = partial(losses, first=jump + 1, last=parts)
    rate = min(dev, key=lambda rate: mean(later(dev[rate], 0.0)))
    lam = {LOOP: chosen(frozen_dev, later), BOTH: chosen(dev[rate], later)}
    lab.note(f"chosen on seed {DEV_SEED}: rate of SGD {rate:g}, lam {lam[LOOP]} without SGD and {lam[BOTH]} beside it")

    frozen = [stream(seed) for seed in lab.seeds]
    learnt = [stream(seed, *learning(rate)) for seed in lab.seeds]
    slow = learnt if lab.quick else [stream(seed, *learning(SMALL_RATE)) for seed in lab.seeds]
    still = [stream(seed, *STILL) for seed in lab.seeds]
    arms = {BASE: (frozen, 0.0), LOOP: (frozen, lam[LOOP]), SMALL: (slow, 0.0), SGD: (learnt, 0.0)}
    arms[BOTH] = (learnt, lam[BOTH])
    lab.note(table(arms, jump, parts))

    def gain(arm: str, control: str, last: int) -> Estimate:
        """How much lower the arm's log-loss is, over the chunks from the one after the jump to `last`."""
        (own, a), (other, b) = arms[arm], arms[control]
        after = [losses(s, a, jump + 1, last) for s in own]
        return difference([losses(s, b, jump + 1, last) for s in other], after, None)

    first = jump + FIRST
    for control in (BASE, SMALL, SGD):
        claim = f"in the first {FIRST} chunks after the jump the log-loss is below that of: {control}"
        yield bounded(claim, gain(LOOP, control, first), 0.0, control, COMMAND)
    for control in (LOOP, SGD):
        claim = f"after the jump the log-loss of both together is below that of: {control}"
        yield bounded(claim, gain(BOTH, control, parts), 0.0, control, COMMAND)
    worse = difference(
        [losses(s, lam[LOOP], 2, parts) for s in still],
        [{name: 1.01 * value for name, value in losses(s, 0.0, 2, parts).items()} for s in still],
        None,
    )
    claim = "where nothing changes the log-loss is at most 1 % above the base model's (difference to 1.01 times it)"
    yield below(claim, worse, 0.0, "the base model", COMMAND)
    alike = np.array([agreement(s) for s in frozen])
    claim = f"the sketch's readouts correlate with the exact memory's by more than .8 ({size_of(frozen)})"
    low, high = spread(alike) or (float(alike.mean()), float(alike.mean()))
    yield bounded(claim, Estimate(float(alike.mean()), low, high, len(alike)), 0.8, "exact memory", COMMAND)


def learning(rate: float) -> list[str]:
    """Overrides by which the model learns from each chunk."""
    return ["method.stages.stream.role=policy", f"method.stages.stream.train.learning_rate={rate}"]


def streamed(result: Result) -> Stream:
    """The chunks of a run, each with the memory as it was before."""
    found, memory = Stream(), list[Memory]()
    for folder in sorted(result.path.glob("rounds/*_stream*")):
        ((attempt,),) = result.attempts(folder)
        known, (y_base, keys) = attempt.problem.metadata, predictions(attempt.problem, attempt.trajectory.samples[0])
        labels = np.array(known["labels"])
        found.append(Chunk(known["chunk"], labels, known["users"], y_base, keys, memory, attempt))
        memory = list(store.read_records(folder / "memory.parquet", Memory))
    return found


def losses(stream: Stream, lam: float, first: int, last: int) -> Losses:
    """Of each event of the chunks from `first` to `last`."""
    found = Losses()
    for chunk in stream:
        if first <= chunk.number <= last:
            p = np.clip(chunk.answer(lam), LEAST, 1 - LEAST)
            each = -np.log(np.where(chunk.labels == 1, p, 1 - p))
            found |= {f"{chunk.number}/{i}": float(value) for i, value in enumerate(each)}
    return found


def mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def chosen(stream: Stream, later: partial[Losses]) -> float:
    """The lam of the lowest log-loss."""
    return min(LAMBDAS, key=lambda lam: mean(later(stream, lam)))


def agreement(stream: Stream) -> float:
    """The correlation over events of ybar by the run's sketch and by an exact memory of the same events."""
    memory, pairs = list[Memory](), []
    for chunk in stream:
        if memory:
            pairs.append([recall(m, chunk.keys, 16, 0.1).labels for m in (chunk.memory, memory)])  # type: ignore[union-attr]
        memory = list(exact([[chunk.attempt]], memory=memory, sigma=0.0, share=1.0, seed=0))
    sketched, kept = np.concatenate(pairs, axis=1)
    there = np.isfinite(sketched)
    return float(np.corrcoef(sketched[there], kept[there])[0, 1])


def size_of(streams: Sequence[Stream]) -> str:
    """How many numbers the sketch holds, early and late."""
    sizes = [sum(len(one.array or ()) for one in chunk.memory) for chunk in (streams[0][1], streams[0][-1])]
    return f"{sizes[0]:,} numbers after one chunk, {sizes[1]:,} at the end"


def table(arms: Mapping[str, tuple[Sequence[Stream], float]], jump: int, parts: int) -> Table:
    windows = {
        "before": (2, jump - 1),
        f"jump + 1 to {FIRST}": (jump + 1, jump + FIRST),
        "later": (jump + FIRST + 1, parts),
    }

    def loss(arm: tuple[Sequence[Stream], float], first: int, last: int) -> str:
        return f"{np.mean([mean(losses(s, arm[1], first, last)) for s in arm[0]] or [np.nan]):.4f}"

    def ranked(arm: tuple[Sequence[Stream], float]) -> str:
        found = []
        for stream in arm[0]:
            after = [(c.labels, c.answer(arm[1]), c.users) for c in stream if c.number > jump]
            found.append(gauc(*(np.concatenate(column) for column in zip(*after, strict=True))))
        return f"{np.mean(found):.4f}"

    columns = {f"log-loss, {name}": partial(loss, first=a, last=b) for name, (a, b) in windows.items() if a <= b}
    return arms_table("Test, then train: means over seeds", arms, {**columns, "gAUC after the jump": ranked})
