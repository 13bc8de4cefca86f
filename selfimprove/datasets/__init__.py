"""The parts that all sources of problems share: reading rows, choosing sides, and rendering prompts.

A source is a function `load(*, ..., seed, **common) -> list[Problem]` in one file. It reads its own format into `Row`s
and passes them to `finish`. That checks them, chooses the train, dev and held-out problems, and renders the prompts.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Required, TypedDict, Unpack

from annotated_types import Ge

from selfimprove import seeds
from selfimprove.datasets.files import is_data
from selfimprove.datasets.files import read_rows as read_rows
from selfimprove.errors import ConfigError
from selfimprove.policy.models import cache_root, quiet_hub
from selfimprove.types import Count, Message, Problem, Share

Side = Literal["train", "dev", "test"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shot:
    """A worked example, shown before the problem."""

    question: str
    answer: str
    options: list[str] = field(default_factory=list)  # for a choice question


@dataclass(slots=True)
class Row:
    """One problem from a source. `side` is None if the source has no splits."""

    id: str
    question: str
    gold: str | None
    where: str  # file and line, for messages
    side: Side | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    before: list[Message] = field(default_factory=list)  # the conversation before the question


def distinct(draw: Callable[[], Row], side: Side, count: int) -> Iterator[Row]:
    """`count` different rows of a side among those that `draw` gives. Fewer if 2,000 draws in a row give no new one."""
    known, misses = set[str](), 0
    while len(known) < count and misses < 2000:
        row, misses = draw(), misses + 1
        if row.side == side and row.id not in known:
            known.add(row.id)
            misses = 0
            yield row


class Common(TypedDict, total=False):
    """The options of every source. A size of None takes all problems."""

    prompt: Required[str]  # a template with {question}, and {options} for choice questions
    system: str | None
    shots: list[Shot] | None
    train_size: int | None
    dev_size: int | None  # default 0
    heldout_size: int | None
    heldout_share: Share  # for a source without splits; default 0.2


Size = Annotated[int, Ge(0)]


class Generated(TypedDict, total=False):
    """The options of a source that generates as many problems as are requested."""

    prompt: Required[str]
    system: str | None
    shots: list[Shot] | None
    train_size: Required[Size]
    dev_size: Size  # default 0
    heldout_size: Required[Count]


def sizes_of(options: Generated) -> dict[Side, int]:
    """The requested number of problems for each side."""
    return {"train": options["train_size"], "dev": options.get("dev_size", 0), "test": options["heldout_size"]}


def finish(rows: Iterable[Row], *, name: str, seed: int, **common: Unpack[Common]) -> list[Problem]:
    """The train problems, then the dev ones, then the held-out ones (split "test").

    A row without a side gets one by a hash of its normalised question: `heldout_share` of them are held out. So a
    question's side does not depend on the seed, the sizes or the order. A source without dev problems gives `dev_size`
    of its train problems. The seed chooses the train problems, and a larger size keeps those of a smaller one. Dev and
    held-out problems are the same for every seed, so that runs can be compared problem by problem.

    Raises ConfigError if an id occurs twice, there is no held-out problem, a size is larger than its side, or the
    prompt template has no {question}.
    """
    prompt = common["prompt"]
    if "{question}" not in prompt:
        raise ConfigError(
            "dataset.prompt: has no {question}, so the model would never see the problem", "dataset.prompt"
        )
    sides: dict[Side, list[tuple[float, Row]]] = {"train": [], "dev": [], "test": []}
    ids: dict[str, str] = {}
    for row in rows:
        if row.id in ids:
            raise ConfigError(
                f"{name}: id {row.id!r} comes twice, in {ids[row.id]} and {row.where}; ids must be unique"
            )
        ids[row.id] = row.where
        place = _fraction(normalise(row.question))
        heldout = place < common.get("heldout_share", 0.2)
        sides[row.side or ("test" if heldout else "train")].append((place, row))
    if not ids:
        raise ConfigError(f"{name}: there is no problem: the source has no rows", "dataset.path")
    for placed in sides.values():
        placed.sort(key=lambda pair: (pair[0], pair[1].id))
    if not sides["dev"]:
        cut = common.get("dev_size", 0) or 0
        sides["dev"], sides["train"] = sides["train"][:cut], sides["train"][cut:]
    sides["train"].sort(key=lambda pair: seeds.derive(seed, "dataset", pair[1].id))
    problems = []
    sizes: dict[Side, tuple[str, int | None]] = {
        "train": ("train_size", common.get("train_size")),
        "dev": ("dev_size", common.get("dev_size", 0)),
        "test": ("heldout_size", common.get("heldout_size")),
    }
    for side, (key, size) in sizes.items():
        for _, row in _take(sides[side], size, f"dataset.{key}", f"{name}: {_CALLED[side]}"):
            options = row.metadata.get("options")
            given = options if isinstance(options, list) else []
            shots = common.get("shots") or []
            chat = messages(row.question, prompt, common.get("system"), shots, given, row.before)
            problems.append(Problem(row.id, chat, row.gold, side, {**row.metadata, "question": row.question}))
    return problems


_CALLED: dict[Side, str] = {"train": "train", "dev": "dev", "test": "held-out"}


def messages(
    question: str,
    prompt: str,
    system: str | None,
    shots: Sequence[Shot],
    options: Sequence[str] = (),
    before: Sequence[Message] = (),
) -> list[Message]:
    """Chat messages for one question: the system message if any, the shots as two turns each, `before`, the question.

    `before` is the conversation that leads to the question. All questions have the same template. Only {question} and
    {options} are replaced in it, so braces are safe. Raises ConfigError if the template has {options} and a question
    has none.
    """
    from_row = [message for message in before if message["role"] == "system"]  # at most the first message
    chat = [{"role": "system", "content": system}] if system else from_row
    for shot in shots:
        chat.append({"role": "user", "content": _fill(prompt, shot.question, shot.options)})
        chat.append({"role": "assistant", "content": shot.answer})
    chat += before[len(from_row) :]
    return [*chat, {"role": "user", "content": _fill(prompt, question, options).strip()}]


def lettered(options: Sequence[str]) -> str:
    """Up to 26 options, each on a line: "A) ..."."""
    return "\n".join(f"{string.ascii_uppercase[i]}) {option}" for i, option in enumerate(options))


def _fill(prompt: str, question: str, options: Sequence[str]) -> str:
    parts = {"{question}": question}
    if "{options}" in prompt:
        if not 1 <= len(options) <= 26:
            fault = f"has {{options}}, but the question {question!r:.60} has {len(options)} of them, not 1 to 26"
            raise ConfigError(f"dataset.prompt: {fault}", "dataset.prompt")
        parts["{options}"] = lettered(options)
    return re.sub("|".join(map(re.escape, parts)), lambda match: parts[match[0]], prompt)


def normalise(text: str) -> str:
    """A question without case, punctuation and extra spaces. Digits, signs and letters of any script stay."""
    return " ".join(re.findall(r"[\w+*/=<>^-]+", text.lower()))


def field_of(fields: dict[str, Any], name: str, key: str, where: str) -> str:
    """A row's field (`look_up`) as text. Raises ConfigError if it is missing, empty, or not text or a number."""
    value = look_up(fields, name, key, where)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number or isinstance(value, str)) or not str(value).strip() or "\0" in str(value):
        shown = f"{_kind(value)} {str(value)[:40]!r}"
        if value is None or value == "":
            shown = "empty"
        elif isinstance(value, dict):
            shown = f"an object; its fields are {', '.join(f'{name}.{inner}' for inner in value) or 'none'}"
        elif isinstance(value, str):
            shown = "a text with a NUL in it" if "\0" in value else "blank"
        raise ConfigError(f"{where}: field {name!r} ({key}) is {shown}; it must be text or a number", key)
    return str(value).strip()


def _kind(value: Any) -> str:
    return {list: "a list", bool: "a bool", float: "no number"}.get(type(value), type(value).__name__)


def look_up(fields: dict[str, Any], name: str, key: str, where: str) -> Any:
    """A row's field. `reward_model.ground_truth` is a field inside another one, `answers.0` the first item of a list.

    Raises ConfigError if there is no such field.
    """
    if name in fields:
        return fields[name]
    value: Any = fields
    for part in name.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            inside = f", since {part!r} is missing" if "." in name else ""
            names = ", ".join(map(repr, fields))
            raise ConfigError(f"{where}: no field {name!r} ({key}){inside}; the row has {names}", key)
    return value


def split_rows(
    name: str, path: str | None, hub: str, config: str | None, splits: dict[Side, str]
) -> Iterator[tuple[Side | None, str, dict[str, Any]]]:
    """(side, "file:line", fields) of each row of a source with splits, one side after the other.

    `path` is a file, whose rows have no side, or a folder with one file for each split, named by it (train*.jsonl,
    .jsonl.gz or .parquet). The files may be in subfolders; if several fit, the one in a folder named `config` is read.
    A folder may have only the test split. With None, the local cache is read, or else `hub` on the hub. Raises
    ConfigError when files are missing or of another format.
    """
    local = Path(path).expanduser() if path else cached(name)
    if local is not None and not local.is_dir():
        for where, fields in read_rows(local):
            yield None, where, fields
        return
    for side, split in splits.items():
        if local is None:
            rows = from_hub(hub, config, split)
        elif file := _split_file(local, split, config, side == "test"):
            rows = read_rows(file)
        else:
            _log.info("%s: no %s problems: %s has no file %s*.jsonl or .parquet", name, side, local, split)
            continue
        for where, fields in rows:
            yield side, where, fields


def _split_file(folder: Path, split: str, config: str | None, needed: bool) -> Path | None:
    files = [p for p in sorted(folder.rglob(f"{split}*")) if is_data(p)]
    files = [p for p in files if config in p.relative_to(folder).parts] or files
    if len(files) > 1 or (needed and not files):
        names = f": {files[0].name} and others; join them into one" if files else ""
        raise ConfigError(
            f"dataset.path={folder}: needs one file named {split}*.jsonl or .parquet, found {len(files)}{names}",
            "dataset.path",
        )
    return files[0] if files else None


def cached(name: str) -> Path | None:
    """A data set's folder in the local cache, which scripts/fetch.py fills; None if there is none."""
    folder = cache_root() / "datasets" / name
    return folder if folder.is_dir() else None


def from_hub(repository: str, config: str | None, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """("repository split:row", fields) of each row of a hub data set, with rows counted from 1.

    Raises ConfigError if the hub does not provide it.
    """
    from datasets import load_dataset

    quiet_hub()
    try:
        table = load_dataset(repository, config, split=split)
    except Exception as error:  # many libraries raise here, each its own types; the cause is chained
        raise not_provided(repository, error) from error
    for number, fields in enumerate(table, start=1):
        yield f"{repository} {split}:{number}", fields


def not_provided(what: str, error: Exception) -> ConfigError:
    """The error for data that is neither in the local cache nor provided by the hub."""
    reason = str(error).strip().split("\n")[0]
    return ConfigError(
        f"dataset: {what} is not in the local cache and the Hugging Face hub did not provide it ({reason}); set "
        "dataset.path to a local copy, or go online once",
        "dataset.path",
    )


def _take(rows: list[tuple[float, Row]], size: int | None, key: str, what: str) -> list[tuple[float, Row]]:
    least = 1 if key == "dataset.heldout_size" else 0  # a benchmark may have no train problems
    if len(rows) < least:
        raise ConfigError(f"{what} side has no problem; give it a file of its own, or change heldout_share", key)
    if size is not None and not least <= size <= len(rows):
        raise ConfigError(
            f"{key}={size}: {what} side has {len(rows)} problems; use {least} to {len(rows)}, or null for all", key
        )
    return rows[:size]


def _fraction(text: str) -> float:
    """A hash of a text as a number in [0, 1), evenly spread over texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big") / 2**48
