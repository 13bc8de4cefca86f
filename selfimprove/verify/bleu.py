"""Similarity of texts by BLEU (Papineni et al. 2002, ACL P02-1040), and clusters of similar texts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

ORDER = 4  # words of the longest n-gram
SMALL = 0.1  # counted for an n-gram order without a match (Chen and Cherry 2014, ACL W14-3346, method 1)


def words(text: str) -> list[str]:
    """Words, numbers and punctuation marks, in lower case."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def bleu(text: Sequence[str], other: Sequence[str]) -> float:
    """BLEU-4 of a text's words against one reference, from 0 to 1. It is not symmetric.

    It is exp(min(0, 1 - |other| / |text|)) times the geometric mean of the precisions p_1 to p_4. It is 0 if no word
    matches. For n-grams longer than the text the precision is SMALL / 1.
    """
    precisions = list[float]()
    for n in range(1, ORDER + 1):
        found, known = (Counter(zip(*(t[i:] for i in range(n)), strict=False)) for t in (text, other))
        matches = sum((found & known).values())
        if n == 1 and not matches:
            return 0.0
        precisions.append((matches or SMALL) / max(1, sum(found.values())))
    brevity = min(0.0, 1 - len(other) / len(text))
    return math.exp(brevity + sum(map(math.log, precisions)) / ORDER)


def clusters(texts: Sequence[str], cut: float) -> list[int]:
    """The number of each text's cluster: average linkage of the distances 1 - BLEU, cut at the distance `cut`.

    The BLEU of two texts takes the later one as the reference.
    """
    from scipy.cluster.hierarchy import average, fcluster

    if len(texts) < 2:
        return [1] * len(texts)
    split = [words(text) for text in texts]
    distances = [1 - bleu(a, b) for i, a in enumerate(split) for b in split[i + 1 :]]
    return [int(number) for number in fcluster(average(np.array(distances)), cut, "distance")]


def shares(texts: Sequence[str], cut: float) -> list[float]:
    """For each text, the share of all texts that are in its cluster, |C_k| / B."""
    numbers = clusters(texts, cut)
    sizes = Counter(numbers)
    return [sizes[number] / len(texts) for number in numbers]
