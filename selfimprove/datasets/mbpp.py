"""MBPP, Austin et al. 2021 (arXiv 2108.07732): Python functions described in a sentence, with assertions.

The question shows the assertions, as in the paper: they are what names the function. A problem's number decides its
side: 11 to 510 test, 511 to 600 dev, 601 to 974 train; 1 to 10 are the paper's worked examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Unpack

from selfimprove.datasets import Common, Row, Shot, Side, field_of, finish, split_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Problem

HUB = "google-research-datasets/mbpp"
SPLITS: dict[Side, str] = {"train": "train", "dev": "validation", "test": "test"}
LAST_EXAMPLE, LAST_TEST, LAST_DEV = 10, 510, 600


def load(
    *,
    path: str | None = None,
    config: Literal["full", "sanitized"] = "full",
    examples: Sequence[int] = (),
    seed: int,
    **common: Unpack[Common],
) -> list[Problem]:
    """Problems with the ids "mbpp-601". Those numbered in `examples`, 1 to 10, are put before `shots`.

    config: `sanitized` is the hub's subset of 427 with sentences checked by hand. Raises ConfigError as `split_rows`
    does, or when an example is missing.
    """
    shown = (
        {int(row.id.removeprefix("mbpp-")): row for row in _rows(path, config, {"test": "prompt"})} if examples else {}
    )
    if missing := [number for number in examples if number not in range(1, LAST_EXAMPLE + 1) or number not in shown]:
        raise ConfigError(
            f"dataset.examples: {missing[0]} is none of the examples, problems 1 to {LAST_EXAMPLE}", "dataset.examples"
        )
    shots = [Shot(shown[number].question, f"```python\n{shown[number].gold}\n```") for number in examples]
    common["shots"] = [*shots, *(common.get("shots") or [])]
    rows = (row for row in _rows(path, config, SPLITS) if row.side)
    return finish(rows, name="mbpp", seed=seed, **common)


def _rows(path: str | None, config: str, splits: dict[Side, str]) -> Iterator[Row]:
    for _, where, fields in split_rows("mbpp", path, HUB, config, splits):
        number = int(field_of(fields, "task_id", "mbpp's own", where))
        text = field_of(fields, "text" if "text" in fields else "prompt", "mbpp's own", where)
        gold = field_of(fields, "code", "mbpp's own", where)
        tests = fields.get("test_list")
        if not isinstance(tests, list) or not tests:
            raise ConfigError(f"{where}: field 'test_list' (mbpp's own) must be a list of assertions")
        setup = fields.get("test_setup_code") or "\n".join(fields.get("test_imports") or ())
        question = "\n".join([text, "The function should pass these tests:", *tests])
        metadata: dict[str, Any] = {"tests": tests, "setup": setup}
        yield Row(f"mbpp-{number}", question, gold, where, _side(number), metadata)


def _side(number: int) -> Side | None:
    if number <= LAST_EXAMPLE:
        return None
    return "test" if number <= LAST_TEST else "dev" if number <= LAST_DEV else "train"
