"""A retriever as a tool: it finds the passages of a corpus that fit a query best, by BM25 (Robertson et al. 1994).

bm25s ranks them (Lù 2024, arXiv 2407.03618), by BM25 in Lucene's form with k1 = 1.5 and b = 0.75. Words are in lower
case, without English stop words. A corpus is a function that gives a list of passages.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator

from selfimprove.binding import Target, bind
from selfimprove.errors import ConfigError
from selfimprove.types import Count

Corpus = Callable[[], Sequence[str]]


def _bound(corpus: Target) -> Corpus:
    try:
        return bind(corpus, "corpus")
    except ConfigError as problem:
        raise ValueError(str(problem)) from None


def require_retriever(*, corpus: Target, **options: Any) -> None:
    """Raises ConfigError if bm25s is not installed, or if the corpus is missing or empty."""
    if importlib.util.find_spec("bm25s") is None:
        raise ConfigError("method.tools.retriever: needs pip install bm25s", "method.tools.retriever")
    if not bind(corpus, "method.tools.retriever.corpus")():
        said = f"method.tools.retriever.corpus: {corpus['_target_']} gives no passage"
        raise ConfigError(said, "method.tools.retriever.corpus")


def retriever(*, corpus: Annotated[Any, BeforeValidator(_bound)], top: Count = 10) -> Retriever:
    """The tool, open. corpus: the function that gives the passages, with its options; top: passages for a query."""
    return Retriever(corpus(), top)


class Retriever:
    """Finds passages of a corpus by a query. Raises ConfigError for a corpus that has only stop words."""

    def __init__(self, passages: Sequence[str], top: int) -> None:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets DEBUG
        self.passages = [" ".join(passage.split()) for passage in passages]
        self._top = top
        self._tokenize = bm25s.tokenize
        words = self._words(self.passages)
        if not any(words):
            raise ConfigError("method.tools.retriever.corpus: has no word to find a passage by", "method.tools")
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        found: list[list[str]] = self._tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
        return found

    async def __call__(self, text: str) -> str:
        """The best passages with a word of the query, one a line, best first; of equal score in the corpus's order."""
        return "\n".join(self.passages[i] for i in self.find(text))

    def find(self, text: str) -> list[int]:
        """The numbers of these passages."""
        (words,) = self._words([text])
        scores = np.asarray(self._index.get_scores(words)) if words else np.zeros(0)
        best = np.argsort(-scores, kind="stable")[: self._top]
        return [int(i) for i in best if scores[i] > 0]
