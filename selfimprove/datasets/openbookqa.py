"""OpenBookQA, Mihaylov et al. 2018 (arXiv 1809.02789): science questions, each made from one fact in an open book."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

from selfimprove.datasets import Common, Row, field_of, finish
from selfimprove.datasets.arc_challenge import SPLITS, choice_rows
from selfimprove.types import Problem

HUB = "allenai/openbookqa"


def load(*, path: str | None = None, facts: bool = False, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The data set's train, validation (dev) and test rows. Ids are "openbookqa-train-17".

    `facts` puts each question's fact (`fact1` of the hub's configuration "additional") before the question.
    """
    return finish(_rows(path, facts), name="openbookqa", seed=seed, **common)


def _rows(path: str | None, facts: bool) -> Iterator[Row]:
    config = "additional" if facts else "main"
    for row in choice_rows("openbookqa", path, HUB, config, SPLITS, "question_stem"):
        if facts:
            row.question = f"{field_of(row.metadata, 'fact1', 'dataset.facts', row.where)}\n{row.question}"
        yield row
