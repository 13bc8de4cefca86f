"""How far a policy agrees with itself: samples of one question, ways of decoding it, and layers.

The response, decoding and latent layers of Liang et al. 2024, "Internal Consistency and Self-Feedback in Large Language
Models: A Survey" (arXiv 2407.14507). Two answers are the same when their text is, up to white space. An output without
an answer agrees with no other one: each is a cluster of its own. No figure but accuracy/layer_L looks at the gold
answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from selfimprove.report.metrics import decoding, mean_over_problems
from selfimprove.types import Attempt
from selfimprove.verify.equality import canonical

DECODERS = ("greedy", "beam", "top_k", "top_p", "consistency")  # of the last, the first sample


def clusters(answers: Sequence[str | None]) -> list[int]:
    """Sizes of the groups of equal answers, largest first; each None is one of its own."""
    said = Counter(form for answer in answers if (form := canonical(answer or "")) is not None)
    return sorted([*said.values(), *[1] * (len(answers) - said.total())], reverse=True)


def agreement(answers: Sequence[str | None]) -> float:
    """Share of answers that give the most common one: 1 when all are the same, 1/n when none are."""
    return clusters(answers)[0] / len(answers)


def entropy(answers: Sequence[str | None]) -> float:
    """Entropy in nats of an answer's cluster: 0 when all are the same, log k when uniform over k answers."""
    return -sum(size / len(answers) * math.log(size / len(answers)) for size in clusters(answers)) + 0.0


def responses(group: Iterable[Attempt]) -> list[str | None]:
    """The answers of the samples that response consistency is about, of one held-out problem."""
    return [a.verdict.extracted for a in group if decoding(a) == "consistency"]


def decoders(group: Iterable[Attempt]) -> list[str | None]:
    """One answer of each way of decoding, in the order of DECODERS."""
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


def consistency(problems: Iterable[Sequence[Attempt]], seed: int = 0) -> dict[str, float]:
    """Means over held-out problems, each with its 95 % interval under `<name>_low` and `<name>_high`:

    - consistency/agreement: share of the samples that give their most common answer
    - consistency/entropy: entropy over the samples' answers, in nats
    - consistency/decoding: share of the five decoders that give their most common answer
    - consistency/layer_L, accuracy/layer_L: share of problems where layer L would give the last layer's answer, and a
      right one, where layers were asked
    """
    sampled, decoded, latent = [], [], []
    for group in problems:
        sampled.append(responses(group))
        decoded.append(decoders(group))
        latent.append(layers(group))
    most = math.log(len(sampled[0]))
    spread = mean_over_problems([entropy(answers) / most for answers in sampled], seed).named("consistency/entropy")
    return {
        **mean_over_problems([agreement(answers) for answers in sampled], seed).named("consistency/agreement"),
        **{name: share * most for name, share in spread.items()},
        **mean_over_problems([agreement(answers) for answers in decoded], seed).named("consistency/decoding"),
        **_by_layer([agree for agree, _ in latent], "consistency", seed),
        **_by_layer([right for _, right in latent], "accuracy", seed),
    }


def _by_layer(problems: Sequence[Sequence[bool]], name: str, seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for number, values in enumerate(zip(*problems, strict=True), start=1):
        found |= mean_over_problems(values, seed).named(f"{name}/layer_{number}")
    return found
