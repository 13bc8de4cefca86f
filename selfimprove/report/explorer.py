"""Collects a run's data for the report's explorer: problems, each round's answers with verdicts, and search trees.

The data is kept small. A text is stored once, under a number. Token ids and log-probabilities stay in the run folder.
If a run has more than its share of the report, some problems are left out. A hash of their ids chooses them, so that
runs on the same problems show the same ones.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from selfimprove import types
from selfimprove.report.runs import RunData
from selfimprove.store import completed, opened, read_columns
from selfimprove.types import STATUSES, Example, Node, Sample, Trajectory, Verdict

TEXT = 4000  # most characters kept of one text; the page shows its full length

_SAMPLE = ("text", "finish", "role", "version", "temperature", "completion_ids")
_NODE = (
    "parent", "text", "prior", "visits", "q", "value", "reward", "terminal", "chosen", "status", "completion_ids",
    "metadata",
)  # fmt: skip
_COLUMNS = (
    "problem_id",
    "metadata",
    *(f"samples.list.element.{name}" for name in _SAMPLE),
    *(f"tree.list.element.{name}" for name in _NODE),
)


@dataclass(frozen=True)
class Place:
    """A folder with trajectories and verdicts: a pass's training problems, or an evaluation."""

    folder: Path
    label: str
    round: int  # -1: the base policy
    heldout: bool
    policy: int  # version of the policy trained last before these answers were sampled


@dataclass
class Texts:
    """Different texts, each under one number."""

    number: dict[str, int] = field(default_factory=dict)

    def add(self, text: str | None) -> int:
        """The number of a text; -1 for None."""
        return -1 if text is None else self.number.setdefault(text, len(self.number))

    def as_json(self) -> list[Any]:
        """Each text; for one that is too long, its first characters and its length."""
        return [text if len(text) <= TEXT else [text[:TEXT], len(text)] for text in self.number]


def places(run: RunData) -> list[Place]:
    """The folders of a run with complete trajectories and verdicts, in the order they were made.

    Raises Damaged if a file differs from its manifest.
    """
    all_places, index = list[Place](), 0
    base = run.path / "base"
    if (base / "evaluate.manifest.json").exists():
        all_places.append(Place(base / "evaluation", "base policy: held-out", -1, True, 0))
    for number, folders in run.passes.items():
        for folder in folders:
            if (folder / "verify.manifest.json").exists() and (folder / "trajectories.parquet").exists():
                all_places.append(Place(folder, f"round {_name(folder)}: training", number, False, index))
            if (folder / "evaluate.manifest.json").exists():
                label = f"after round {number}: held-out"
                all_places.append(Place(folder / "evaluation", label, number, True, index + 1))
            index += 1
    for folder in (base, *(folder for folders in run.passes.values() for folder in folders)):
        for name in ("trajectories", "verdicts", "examples", "evaluation/trajectories", "evaluation/verdicts"):
            run.files.file(folder / f"{name}.parquet")
    return all_places


def _name(folder: Path) -> str:
    """The name of a pass in the report: 3, 3.1, "3 rl 02"."""
    number, _, rest = folder.name.partition(".")
    stage = re.fullmatch(r"[0-9]+_(\w+?)(?:\.([0-9]+))?", rest)
    shown = f" {stage[1]} {stage[2] or ''}".rstrip() if stage else f".{rest}" if rest else ""
    return f"{int(number)}{shown}"


def collect(run: RunData, trajectories: int, characters: int) -> dict[str, Any]:
    """A run's data for the explorer: whole problems, with about `trajectories` and `characters` of text at most.

    Returns JSON values: `texts`; `problems`, rows [id, split, prompt turns, gold]; `places`, rows [label, round,
    held-out]; `rows`, one for each trajectory (see `_group`); `trees`, by number of row; `total`, the run's counts.
    """
    where = places(run)
    counts: Counter[str] = Counter()
    size = 0
    for place in where:
        counts.update(_ids(place.folder))
        size += _text_bytes(place.folder / "trajectories.parquet")
    total = counts.total()
    room = min(trajectories, int(total * characters / max(size, characters))) if total else 0
    chosen = _choose(run, counts, room)

    texts, rows, trees = Texts(), list[Any](), dict[int, Any]()
    index = {problem["id"]: i for i, problem in enumerate(chosen)}
    decode = _decoder(run)
    for number, place in enumerate(where):
        for row, tree in _rows(place, number, index, texts, decode):
            if tree:
                trees[len(rows)] = tree
            rows.append(row)
    problems = [
        [p["id"], p["split"], [[role, texts.add(text)] for role, text in _turns(p["prompt"])], texts.add(p["gold"])]
        for p in chosen
    ]
    return {
        "problems": problems,
        "places": [[place.label, place.round, int(place.heldout)] for place in where],
        "rows": rows,
        "trees": trees,
        "texts": texts.as_json(),
        "total": {"problems": run.problems.num_rows, "trajectories": total},
    }


def _ids(folder: Path) -> Counter[str]:
    with opened(folder / "trajectories.parquet") as file:
        counts = pc.value_counts(file.read(columns=["problem_id"], use_threads=False)["problem_id"])
    return Counter(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))


def _text_bytes(path: Path) -> int:
    """The bytes of text columns before compression, from the file's footer. Repeated texts count about once."""
    size = 0
    with opened(path) as file:
        for group in range(file.num_row_groups):
            columns = file.metadata.row_group(group)
            for number in range(columns.num_columns):
                if columns.column(number).path_in_schema.endswith(".text"):
                    size += columns.column(number).total_uncompressed_size
    return size


def _choose(run: RunData, counts: Counter[str], room: int) -> list[dict[str, Any]]:
    """Problems with answers, in the run's order, as many as there is room for. Each split gets the same share."""
    answered = [row for row in run.problems.to_pylist() if counts[row["id"]]]
    kept: set[str] = set()
    for split in {row["split"] for row in answered}:
        ids = [row["id"] for row in answered if row["split"] == split]
        held = sum(counts[name] for name in ids)
        left = room * held / max(1, counts.total())
        for place, name in enumerate(sorted(ids, key=lambda name: zlib.crc32(name.encode()))):
            left -= counts[name]
            if left < 0 and place:  # at least one
                break
            kept.add(name)
    return [row for row in answered if row["id"] in kept]


def _turns(prompt: str) -> Iterator[tuple[str, str]]:
    """Role and text of each message. A prompt of plain text has no role."""
    content = json.loads(prompt)
    if isinstance(content, str):
        yield "", content
        return
    for message in content:
        yield message["role"], message["content"]


Decode = Callable[[list[int]], str | None]


def _decoder(run: RunData) -> Decode:
    """A function from token ids to text, by the base policy's tokenizer; it gives None without one on this machine."""

    @cache
    def tokenizer() -> Any:
        path = run.base_folder and run.base_folder / "tokenizer.json"
        if not path or not path.is_file():
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))

    return lambda ids: tokenizer() and tokenizer().decode(ids).strip()


def _rows(
    place: Place, number: int, index: dict[str, int], texts: Texts, decode: Decode
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Row and tree of each of a place's trajectories of chosen problems, with one row group in memory at a time."""
    used = _used(place.folder / "examples.parquet")
    graded = read_columns(place.folder / "verdicts.parquet", Verdict, [*types.defaults(Verdict)])
    with opened(place.folder / "trajectories.parquet") as file:
        start = 0
        for group in range(file.num_row_groups):
            names = file.read_row_group(group, columns=["problem_id"], use_threads=False)["problem_id"]
            mask = pc.is_in(names, value_set=pa.array(list(index), pa.string()))
            count = len(names)
            if pc.any(mask).as_py():
                table = file.read_row_group(group, columns=_columns(file), use_threads=False).filter(mask)
                table = completed(table, Trajectory, ["problem_id", "samples", "metadata", "tree"])
                verdicts = graded.slice(start, count).filter(mask)
                rows = list(_group(table, verdicts, number, index, texts, used))
                if any(len(row[_SAMPLES]) > 1 for row, _ in rows):
                    ids = file.read_row_group(group, columns=_IDS, use_threads=False).filter(mask)
                    _add_prompts([row[_SAMPLES] for row, _ in rows], ids["samples"], texts, decode)
                yield from rows
            start += count


_SAMPLES = 8  # index of the samples in a row
_IDS = [f"samples.list.element.{name}" for name in ("prompt_ids", "completion_ids")]


def _add_prompts(rows: list[list[Any]], column: pa.ChunkedArray, texts: Texts, decode: Decode) -> None:
    """Append to each sample of a trajectory but the first the text of its prompt.

    If the prompt continues the sample before, it is only the added text; -1 if nothing is added.
    """
    for samples, ids in zip(rows, column.combine_chunks(), strict=True):
        if len(samples) < 2:
            continue
        turns = ids.as_py()
        for i in range(1, len(samples)):
            before = turns[i - 1]["prompt_ids"] + turns[i - 1]["completion_ids"]
            prompt = turns[i]["prompt_ids"]
            added = prompt[len(before) :] if prompt[: len(before)] == before else prompt
            samples[i] = (*samples[i], texts.add(decode(added) or None if added else None))


def _columns(file: pq.ParquetFile) -> list[str]:
    """The wanted columns that this file has. A file of an older version may lack some."""
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    return [name for name in _COLUMNS if any(path == name or path.startswith(f"{name}.") for path in paths)]


def _used(path: Path) -> dict[str, int]:
    """Trajectory id -> 1 if training imitates it, 2 if it is the rejected side of a pair."""
    if not path.exists():
        return {}
    examples = read_columns(path, Example, ["trajectory_ids"])["trajectory_ids"].to_pylist()
    return {other: 2 for ids in examples for other in ids[1:]} | {ids[0]: 1 for ids in examples if ids}


def _group(
    table: pa.Table, verdicts: pa.Table, place: int, index: dict[str, int], texts: Texts, used: dict[str, int]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Rows and trees of some trajectories, made by column, because there may be many.

    A row is [problem, place, status, reward, extracted, reason, decoding, used, samples, metadata, step rewards], with
    texts by number. A sample is [text, tokens, cut off by the limit, role, version, temperature]; samples after the
    first have their prompt too. A tree's node is
    [parent, step, visits, prior, q, value, reward, terminal + 2 chosen, status, tokens, what was observed].
    """
    columns = {name: verdicts[name].to_pylist() for name in verdicts.column_names}
    extras = table["metadata"].to_pylist()
    known = {extra: _metadata(extra, texts) for extra in dict.fromkeys(extras)}
    rows = zip(
        (index[name] for name in table["problem_id"].to_pylist()),
        map(STATUSES.index, columns["status"]),
        map(_short, columns["reward"]),
        map(texts.add, columns["extracted"]),
        map(texts.add, columns["reason"]),
        (used.get(name, 0) for name in columns["trajectory_id"]),
        _samples(table["samples"], texts),
        extras,
        columns["step_rewards"],
        _trees(table["tree"], texts),
        strict=True,
    )
    for problem, status, reward, extracted, reason, use, samples, extra, steps, tree in rows:
        decoding, metadata = known[extra]
        step_rewards = [_short(step) for step in steps or []]
        row = [problem, place, status, reward, extracted, reason, decoding, use, samples, metadata, step_rewards]
        yield row, tree


def _metadata(extra: str, texts: Texts) -> tuple[int, int]:
    """How a trajectory was decoded, and the rest of its metadata; both as numbers of texts."""
    metadata = json.loads(extra)
    decoding = texts.add(str(metadata.pop("decoding", "")))
    return decoding, texts.add(json.dumps(metadata, ensure_ascii=False)) if metadata else -1


def _samples(column: pa.ChunkedArray, texts: Texts) -> list[list[Any]]:
    ends, fields = columns_of(column, Sample, _SAMPLE)
    lengths, cut = fields["completion_ids"], [int(finish == "length") for finish in fields["finish"]]
    contents, roles = map(texts.add, fields["text"]), map(texts.add, fields["role"])
    rows = list(zip(contents, lengths, cut, roles, fields["version"], map(_short, fields["temperature"]), strict=True))
    return [rows[a:b] for a, b in itertools.pairwise(ends)]


def _trees(column: pa.ChunkedArray, texts: Texts) -> list[list[Any]]:
    ends, fields = columns_of(column, Node, _NODE)
    flags = [int(t) + 2 * int(c) for t, c in zip(fields["terminal"], fields["chosen"], strict=True)]
    status = [STATUSES.index(name) if name in STATUSES else -1 for name in fields["status"]]
    steps = map(texts.add, fields["text"])
    figures = [map(_short, fields[name]) for name in ("prior", "q", "value", "reward")]
    lengths, seen = fields["completion_ids"], (texts.add(_observed(extra)) for extra in fields["metadata"])
    rows = list(zip(fields["parent"], steps, fields["visits"], *figures, flags, status, lengths, seen, strict=True))
    return [rows[a:b] for a, b in itertools.pairwise(ends)]


def _observed(extra: str | dict[str, Any] | None) -> str | None:
    """The observation after a step, from the node's metadata; None if there is none."""
    return json.loads(extra).get("observed") if isinstance(extra, str) else None


def columns_of(column: pa.ChunkedArray, kind: type, names: Sequence[str]) -> tuple[list[int], dict[str, list[Any]]]:
    """(ends, fields) of a column of lists of structs.

    `ends` are the ends of the lists, after a 0. `fields` are the structs' fields `names` as Python lists;
    `completion_ids` gives the number of ids. A field that an older version did not write has its default. Raises
    KeyError when it has none.
    """
    array = column.combine_chunks()
    flat = array.flatten()
    fields: dict[str, list[Any]] = {}
    for name in names:
        if flat.type.get_field_index(name) >= 0:
            values = pc.struct_field(flat, name)
            fields[name] = (pc.list_value_length(values) if name == "completion_ids" else values).to_pylist()
        elif make := types.defaults(kind)[name]:
            fields[name] = [make()] * len(flat)
        else:
            raise KeyError(name)
    return [0, *pc.cumulative_sum(pc.list_value_length(array)).to_pylist()], fields


def _short(value: float | None) -> float | None:
    """`value` with four significant digits, more than is shown; None if JSON has no such number."""
    return float(f"{value:.4g}") if value is not None and abs(value) < float("inf") else None
