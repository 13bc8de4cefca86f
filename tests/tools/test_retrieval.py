"""The retriever: BM25 against its formula, ties, and what a corpus lacks."""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

import pytest

from selfimprove.config import compose
from selfimprove.errors import ConfigError
from selfimprove.tools.retrieval import Retriever, require_retriever

PASSAGES = ["red fox", "red red hen", "blue owl", "blue whale", "a grey goose flies over water"]


def found(query: str, top: int = 10, passages: list[str] = PASSAGES) -> list[str]:
    return asyncio.run(Retriever(passages, top)(query)).splitlines()


def bm25(query: list[str], passages: list[list[str]]) -> list[float]:
    """BM25 in Lucene's form, by hand: sum of idf(w) tf / (tf + k1 (1 - b + b length / mean length))."""
    mean = sum(map(len, passages)) / len(passages)
    scores = []
    for words in passages:
        score = 0.0
        for word in query:
            n = sum(word in other for other in passages)
            tf = words.count(word)
            idf = math.log(1 + (len(passages) - n + 0.5) / (n + 0.5))
            score += idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["red hen", "blue", "goose red", "owl water red"])
def test_passages_stand_in_the_order_of_bm25(query: str) -> None:
    words = [[w for w in passage.split() if w != "a"] for passage in PASSAGES]
    scores = bm25(query.split(), words)
    expected = sorted((i for i in range(len(PASSAGES)) if scores[i]), key=lambda i: (-scores[i], i))
    assert found(query) == [PASSAGES[i] for i in expected]


def test_equal_passages_stand_in_the_corpuss_order() -> None:
    assert found("blue") == ["blue owl", "blue whale"]
    assert found("blue", passages=PASSAGES[::-1]) == ["blue whale", "blue owl"]


def test_there_are_at_most_so_many_and_none_without_a_word_of_the_query() -> None:
    assert len(found("blue red", top=3)) == 3
    assert found("zebra") == found("the of") == found("") == []


def test_a_passage_is_one_line() -> None:
    assert found("two", passages=["one\n two", "three"]) == ["one two"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("method.tools.retriever.top=0", "method.tools.retriever.top=0"),
        ("method.tools.retriever.corpus.removed=2", "method.tools.retriever.corpus"),
        ("+method.tools.retriever.corpus.size=2", "unknown key"),
        ("method.tools.retriever.corpus._target_=selfimprove.datasets.docqa.no", "no such function"),
    ],
)
def test_a_wrong_option_is_one_line(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["method=auto_rag", wrong])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def nothing() -> list[str]:
    return []


def test_a_corpus_without_a_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="no word"):
        Retriever(["the", "of a"], 3)


def test_what_is_missing_is_said_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="gives no passage"):
        require_retriever(corpus={"_target_": f"{__name__}.nothing"})
    wordnet: dict[str, Any] = {"_target_": "selfimprove.datasets.wordnet.documents", "path": "/nowhere"}
    with pytest.raises(ConfigError, match="apt-get install wordnet-base"):
        require_retriever(corpus=wordnet)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match="pip install bm25s"):
        require_retriever(corpus={"_target_": "selfimprove.datasets.docqa.documents"})
