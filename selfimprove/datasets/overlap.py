"""Finds train problems that equal, or nearly equal, a held-out one.

Two questions are near-duplicates if they share a large part of their word n-grams. Contamination reports of corpora
look for 13 words in a row (GPT-3, Brown et al. 2020, arXiv 2005.14165, appendix C). Here n is smaller, because a
question has only 10 to 50 words, and one changed word in the middle spoils n of its n-grams. A template filled with
other numbers is another question: the numbers of one question must all be in the other. Code of figures is ignored.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from selfimprove.datasets import normalise
from selfimprove.types import Problem


def overlap(train: Sequence[Problem], heldout: Sequence[Problem], n: int, share: float) -> dict[str, tuple[str, float]]:
    """Train problem id -> (id of the most similar held-out problem, share of common n-grams), from `share` upwards.

    The share is |A & B| / min(|A|, |B|) over the questions' sets of word n-grams, so a question inside a longer one
    counts. Questions of fewer than n words are compared whole. Time grows with the number of words plus that of common
    n-grams.
    """
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes, numbers = [], []
    for i, problem in enumerate(heldout):
        words = _words(problem)
        grams = _ngrams(words, n)
        sizes.append(len(grams))
        numbers.append(_numbers(words))
        for gram in grams:
            holders[gram].append(i)
    common = {gram for gram, held in holders.items() if len(held) > _PHRASE * len(heldout) + 1}
    for gram in common:  # phrases of the data set, such as "how many are left in the", mean nothing
        del holders[gram]
    duplicates = {}
    for problem in train:
        words = _words(problem)
        grams, here = _ngrams(words, n), _numbers(words)
        hits = Counter(i for gram in grams for i in holders.get(gram, ()))
        alike = ((hits[i] / min(len(grams), sizes[i]), -i) for i in hits if here <= numbers[i] or numbers[i] <= here)
        most, i = max(alike, default=(0.0, 0))
        if most >= share:
            duplicates[problem.id] = (heldout[-i].id, most)
    return duplicates


_PHRASE = 0.01  # an n-gram in more than this share of the held-out questions is a phrase of the data set


_FIGURE = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)  # Asymptote code, in MATH


def _words(problem: Problem) -> list[str]:
    text = _FIGURE.sub(" ", str(problem.metadata["question"]))
    options = problem.metadata.get("options")
    if isinstance(options, list):  # "Which of these is a mammal?" is incomplete without its options
        text += " " + " ".join(map(str, options))
    return normalise(text).split()


def _ngrams(words: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def _numbers(words: list[str]) -> set[str]:
    return {number for word in words for number in re.findall(r"\d+", word)}
