"""Problems from anybody's file: .jsonl, .jsonl.gz or .parquet, one problem a row.

`dataset=jsonl dataset.path=FILE dataset.prompt_field=question dataset.answer_field=answer`

The gold answer is read out of the answer field: with `answer_pattern`, group 1 of the pattern's last match; without it,
what follows the last "####" (as in GSM8K) if there is one, else the whole text. The row's other fields become the
problem's metadata, where a verifier finds e.g. unit tests, and the whole answer text becomes `solution` where it says
more than the gold answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, read_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem


def load(
    *,
    path: str,
    prompt_field: str = "question",
    answer_field: str | None = "answer",
    id_field: str | None = None,
    answer_pattern: str | None = None,
    heldout_path: str | None = None,
    seed: int,
    **common: Unpack[Common],
) -> list[Problem]:
    """Train problems from `path`; held-out ones from `heldout_path`, or else a `heldout_share` of `path`.

    `answer_field: null` is for rows that have no gold answer but e.g. tests. Ids are those of `id_field`, or
    "row-<line>" and "heldout-<line>". Raises ConfigError naming file, line and key of what is wrong.
    """
    key = "dataset.answer_pattern"
    try:
        pattern = re.compile(answer_pattern) if answer_pattern else None
    except re.error as error:
        raise ConfigError(f"{key}={answer_pattern}: not a regular expression ({error})", key) from None
    if pattern and not pattern.groups:
        raise ConfigError(f"{key}={answer_pattern}: needs a group for the answer, e.g. '#### (.+)'", key)

    def rows(file: str, side: Side | None) -> Iterator[Row]:
        for where, fields in read_rows(Path(file).expanduser()):
            question = field_of(fields, prompt_field, "dataset.prompt_field", where)
            gold, metadata = None, {k: v for k, v in fields.items() if k not in (prompt_field, answer_field, id_field)}
            if answer_field:
                answer = field_of(fields, answer_field, "dataset.answer_field", where)
                gold = gold_of(answer, pattern, where)
                if isinstance(fields[answer_field], dict):  # the other gold answers, for `exact` and `f1`
                    metadata["answers"] = fields[answer_field]
                if gold != answer:
                    metadata["solution"] = answer
            line = where.rpartition(":")[2]
            own = f"heldout-{line}" if side == "test" else f"row-{line}"
            name = field_of(fields, id_field, "dataset.id_field", where) if id_field else own
            yield Row(name, question, gold, where, side, metadata)

    def both() -> Iterator[Row]:
        yield from rows(path, "train" if heldout_path else None)
        if heldout_path:
            yield from rows(heldout_path, "test")

    return finish(both(), name="jsonl", seed=seed, **common)


def gold_of(answer: str, pattern: re.Pattern[str] | None, where: str) -> str:
    """The gold answer in an answer text. Raises ConfigError when the pattern, or what "####" promises, is not there."""
    if pattern:
        found: list[Any] = [match[1] for match in pattern.finditer(answer)]
        gold = found[-1] if found else None
    else:
        gold = answer.rpartition("####")[2]
    if not gold or not gold.strip():
        sought = f"answer_pattern {pattern.pattern!r}" if pattern else 'a text after "####"'
        raise ConfigError(f"{where}: the answer has no match for {sought}")
    return str(gold).strip()
