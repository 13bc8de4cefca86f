"""Measures how far a policy agrees with itself: samples of one question, ways of decoding it, and layers.

These are the response, decoding and latent layers of Liang et al. 2024, "Internal Consistency and Self-Feedback in
Large Language Models: A Survey" (arXiv 2407.14507). Two answers are the same if `equality.canonical` gives them one
form. An output without an answer is a cluster of its own: it agrees with no other. No figure but accuracy/layer_L reads
the gold answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from selfimprove.report.metrics import decoding, mean_over_problems
from selfimprove.types import Attempt
from selfimprove.verify.equality import canonical

DECODERS = ("greedy", "beam", "top_k", "top_p", "consistency")  # "consistency" counts by its first sample


def clusters(answers: Sequence[str | None]) -> list[int]:
    """The sizes of the groups of equal answers, largest first. Each None is a group of its own."""
    counts = Counter(form for answer in answers if (form := canonical(answer or "")) is not None)
    return sorted([*counts.values(), *[1] * (len(answers) - counts.total())], reverse=True)


def agreement(answers: Sequence[str | None]) -> float:
    """The share of the most common answer: 1 when all are the same, 1/n when all differ."""
    return clusters(answers)[0] / len(answers)


def entropy(answers: Sequence[str | None]) -> float:
    """The entropy of the answers' clusters, in nats: 0 when all are the same, log k when uniform over k answers."""
    return -sum(size / len(answers) * math.log(size / len(answers)) for size in clusters(answers)) + 0.0


def responses(group: Iterable[Attempt]) -> list[str | None]:
    """The answers of one held-out problem's samples for response consistency."""
    return [a.verdict.extracted for a in group if decoding(a) == "consistency"]


def decoders(group: Iterable[Attempt]) -> list[str | None]:
    """One answer for each way of decoding, in the order of DECODERS."""
    first: dict[str, str | None] = {}
    for attempt in group:
        first.setdefault(decoding(attempt), attempt.verdict.extracted)
    return [first[name] for name in DECODERS]


def layers(group: Iterable[Attempt]) -> tuple[list[bool], list[bool]]:
    """Of each layer, whether its answer is that of the last layer, and whether it is right. None, where none was asked.

    A text without an answer agrees with none.
    """
    asked = [a for a in group if decoding(a).startswith("layer_")]
    answers = [canonical(a.verdict.extracted or "") for a in asked]
    agree = [answer is not None and answer == answers[-1] for answer in answers]
    return agree, [a.verdict.status == "correct" for a in asked]


def heads(group: Sequence[Attempt]) -> dict[str, tuple[bool, bool]]:
    """Of each attention head that was left alone in its layer: is the answer still the greedy one, and is it right?"""
    greedy = next(canonical(a.verdict.extracted or "") for a in group if decoding(a) == "greedy")
    return {
        name: (
            greedy is not None and canonical(a.verdict.extracted or "") == greedy,
            a.verdict.status == "correct",
        )
        for a in group
        if (name := decoding(a)).startswith("head_")
    }


def consistency(problems: Iterable[Sequence[Attempt]], seed: int = 0) -> dict[str, float]:
    """Means over held-out problems, each with its 95 % interval as `<name>_low` and `<name>_high`:

    - consistency/agreement: share of the samples that give their most common answer
    - consistency/entropy: entropy over the samples' answers, in nats
    - consistency/decoding: share of the five decoders that give their most common answer
    - consistency/layer_L, accuracy/layer_L: share of problems where layer L would give the last layer's answer, and a
      right one, where layers were asked
    - consistency/head_L.H, accuracy/head_L.H: share of problems where the answer with head H alone in layer L would be
      the greedy one, and a right one, where heads were asked
    """
    sampled, decoded, latent, alone = [], [], [], []
    for group in problems:
        sampled.append(responses(group))
        decoded.append(decoders(group))
        latent.append(layers(group))
        alone.append(heads(group))
    most = math.log(len(sampled[0]))
    spread = mean_over_problems([entropy(answers) / most for answers in sampled], seed).named("consistency/entropy")
    return {
        **mean_over_problems([agreement(answers) for answers in sampled], seed).named("consistency/agreement"),
        **{name: share * most for name, share in spread.items()},
        **mean_over_problems([agreement(answers) for answers in decoded], seed).named("consistency/decoding"),
        **_by_layer([agree for agree, _ in latent], "consistency", seed),
        **_by_layer([right for _, right in latent], "accuracy", seed),
        **_by_head(alone, seed),
    }


def _by_layer(problems: Sequence[Sequence[bool]], name: str, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, values in enumerate(zip(*problems, strict=True), start=1):
        found |= mean_over_problems(values, seed).named(f"{name}/layer_{number}")
    return found


def _by_head(problems: Sequence[dict[str, tuple[bool, bool]]], seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in problems[0]:
        for kind, values in zip(
            ("consistency", "accuracy"), zip(*(p[name] for p in problems), strict=True), strict=True
        ):
            found |= mean_over_problems(values, seed).named(f"{kind}/{name}")
    return found
