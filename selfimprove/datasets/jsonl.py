"""Problems from your own file: .jsonl, .jsonl.gz or .parquet, one problem a row.

`dataset=jsonl dataset.path=FILE dataset.prompt_field=question dataset.answer_field=answer`

A field inside another one has a dotted name, `reward_model.ground_truth`. The prompt may be a list of messages; the
last one is the question. If the answer is a list of texts, verifiers that read `metadata["answers"]` (exact, f1) accept
each of them, and the first is the gold answer for others.

The gold answer is a part of the answer field. With `answer_pattern` it is group 1 of the pattern's last match. Without
it, it is the text after the last "####" (as in GSM8K), or else the whole text. If the answer text has more than the
gold answer, it becomes `solution` in the metadata. The row's other fields become metadata too, where a verifier finds
e.g. unit tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from selfimprove.datasets import Common, Row, Side, field_of, finish, look_up, read_rows
from selfimprove.errors import ConfigError
from selfimprove.types import Message, Problem


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

    `answer_field: null` is for rows without a gold answer, e.g. with tests instead. Ids come from `id_field`, or are
    "row-<line>" and "heldout-<line>". Raises ConfigError with file, line and key when something is wrong.
    """
    key = "dataset.answer_pattern"
    try:
        pattern = re.compile(answer_pattern) if answer_pattern else None
    except re.error as error:
        raise ConfigError(f"{key}={answer_pattern}: not a regular expression ({error})", key) from None
    if pattern and not pattern.groups:
        raise ConfigError(f"{key}={answer_pattern}: needs a group for the answer, e.g. '#### (.+)'", key)

    def rows(file: str, side: Side | None, file_key: str) -> Iterator[Row]:
        used = {prompt_field, answer_field, id_field}
        for where, fields in read_rows(Path(file).expanduser(), file_key):
            question, before = asked(fields, prompt_field, where)
            if before and before[0]["role"] == "system" and common.get("system"):
                fault = "the row has its own system message: set dataset.system=null"
                raise ConfigError(f"{where}: field {prompt_field!r}: {fault}", "dataset.system")
            gold, metadata = None, {name: value for name, value in fields.items() if name not in used}
            if answer_field:
                answers = _answers(fields, answer_field, where)
                golds = [gold_of(answer, pattern, where) for answer in answers]
                gold = golds[0]
                if len(golds) > 1:
                    metadata["answers"] = golds
                if gold != answers[0]:
                    metadata["solution"] = answers[0]
            line = where.rpartition(":")[2]
            numbered = f"heldout-{line}" if side == "test" else f"row-{line}"
            name = field_of(fields, id_field, "dataset.id_field", where) if id_field else numbered
            yield Row(name, question, gold, where, side, metadata, before)

    def both() -> Iterator[Row]:
        yield from rows(path, "train" if heldout_path else None, "dataset.path")
        if heldout_path:
            yield from rows(heldout_path, "test", "dataset.heldout_path")

    return finish(both(), name="jsonl", seed=seed, **common)


def asked(fields: dict[str, Any], name: str, where: str) -> tuple[str, list[Message]]:
    """The question in a row's field, and the messages before it. In a list of messages, the last one is the question.

    Raises ConfigError if a list is not one of messages, or does not end with the user's.
    """
    key = "dataset.prompt_field"
    chat = look_up(fields, name, key, where)
    if not isinstance(chat, list):
        return field_of(fields, name, key, where), []
    if not chat or not all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in chat):
        raise ConfigError(f"{where}: field {name!r} ({key}) is a list, and not of messages with role and content", key)
    messages: list[Message] = []
    for number, message in enumerate(chat):
        role = message["role"]
        if role not in ("user", "assistant") and (role != "system" or number):
            allowed = "user or assistant" if number else "user, assistant or system"
            fault = f"message {number + 1} has the role {role!r}: it must be {allowed}"
            raise ConfigError(f"{where}: field {name!r} ({key}): {fault}", key)
        messages.append({"role": role, "content": field_of(message, "content", f"{key}, message {number + 1}", where)})
    if messages[-1]["role"] != "user":
        raise ConfigError(
            f"{where}: field {name!r} ({key}): the last message must be the user's: it is the question", key
        )
    return messages[-1]["content"], messages[:-1]


def _answers(fields: dict[str, Any], name: str, where: str) -> list[str]:
    """The right answers in a row's field: one text, a list of texts, or SQuAD's {"text": [...]}."""
    key = "dataset.answer_field"
    value = look_up(fields, name, key, where)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        name, value = f"{name}.text", value["text"]
    if not isinstance(value, list) or not value:
        return [field_of(fields, name, key, where)]
    return list(dict.fromkeys(field_of({name: one}, name, key, where) for one in value))


def gold_of(answer: str, pattern: re.Pattern[str] | None, where: str) -> str:
    """The gold answer in an answer text. Raises ConfigError if nothing matches the pattern, or follows "####"."""
    if pattern:
        matches: list[Any] = [match[1] for match in pattern.finditer(answer)]
        gold = matches[-1] if matches else None
    else:
        gold = answer.rpartition("####")[2]
    if not gold or not gold.strip():
        sought = f"answer_pattern {pattern.pattern!r}" if pattern else 'a text after "####"'
        raise ConfigError(f"{where}: the answer has no match for {sought}")
    return str(gold).strip()
