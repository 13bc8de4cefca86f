"""What passes between the four slots: problem, trajectory, verdict, example.

They are plain dataclasses. Each has an Arrow schema of the same name below, so that any Parquet reader can read the
files of a run folder. Token ids are what counts. Text is kept beside them for people and for verifiers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["correct", "wrong", "unparseable", "timeout", "error"]
STATUSES: tuple[Status, ...] = ("correct", "wrong", "unparseable", "timeout", "error")

Message = dict[str, str]  # {"role": "user", "content": "..."}

# Ranges that the type hints of configurable functions use. The configuration is checked against them. binding.bind also
# refuses numbers that are not finite, and `true` instead of a number.
Count = Annotated[int, Ge(1)]
Samples = Annotated[int, Ge(1), Le(100_000)]  # of one problem
Share = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Rate = Annotated[float, Gt(0), Le(1)]  # a learning rate: Adam's step of more than 1 a weight learns nothing
Seconds = Annotated[float, Gt(0), Le(86_400)]
Epochs = Annotated[float, Gt(0), Le(10_000)]
Batch = Annotated[int, Ge(1), Le(2**20)]  # rows of one optimizer step

# `__pydantic_config__` of a dataclass that is such a type hint, so that unknown keys are refused.
CLOSED = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class Array:
    """The numbers of a problem: a picture, an episode, a row of features. Some thousands of numbers are fine.

    The length of `data` is the product of `shape`. The last axis varies fastest.
    """

    shape: tuple[int, ...]
    data: tuple[float, ...]


@dataclass(slots=True)
class Problem:
    """One task. `prompt` is text or chat messages. The policy that is asked renders it once. `array` goes with every
    request that a solver makes of a policy.

    `gold` is the reference answer as text. `metadata` has what else a verifier needs (options, unit tests), as JSON.
    """

    id: str
    prompt: str | list[Message]
    gold: str | None = None
    split: Literal["train", "dev", "test", "sealed"] = "train"
    metadata: dict[str, Any] = field(default_factory=dict)
    array: Array | None = None


@dataclass(slots=True)
class Sample:
    """One answer of an engine: the prompt and the completion, token by token.

    `logprobs[i]` is log pi(completion_ids[i] | prompt_ids, completion_ids[:i]) in nats. It is that of the policy
    itself, at temperature 1 and without truncation, however the token was sampled. `logprobs` has the length of
    `completion_ids`. A completion that ended by itself includes its end token. `text` never does.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    text: str
    finish: Literal["stop", "length"]
    seed: int
    temperature: float = 1.0
    role: str = "policy"
    version: int = 0  # policy version: 0 is the base model, v + 1 is the policy that round v trained
    array: list[float] | None = None  # the numbers that some policies give instead of tokens


@dataclass(slots=True)
class Node:
    """One step of a search tree. Its prompt ids are the root's, followed by the completions of its ancestors.

    If an environment answered to a step, the ids of the answer stand behind the step's completion (`observed_ids` in
    that ancestor's metadata).
    """

    id: int
    parent: int  # -1: the root
    depth: int
    completion_ids: list[int]  # the step; empty at the root
    logprobs: list[float]
    text: str
    finish: Literal["stop", "length"]
    seed: int
    version: int
    prior: float  # p(a|s)
    visits: int  # N
    q: float  # Q(s, a)
    value: float  # what the state was judged to be worth when it was new
    reward: float  # r(s, a)
    terminal: bool
    chosen: bool  # on the path that the search chose
    status: str | None = None  # of a terminal node's answer
    metadata: dict[str, Any] = field(default_factory=dict)  # the method's own, e.g. what was observed: JSON


@dataclass(slots=True)
class Trajectory:
    """One attempt at one problem: the samples it took, in order. The last sample holds the answer.

    A single-turn method has one sample. A dialogue has one a turn, and each turn's `prompt_ids` start with the previous
    turn's prompt and completion. A tree search has one for each step of the path.
    """

    problem_id: str
    samples: list[Sample]
    metadata: dict[str, Any] = field(default_factory=dict)  # tree node, scores, votes: JSON
    id: str = ""  # given by the runner: r<round>/<problem>/<number>
    tree: list[Node] = field(default_factory=list)  # of a search: all its nodes, with a problem's first trajectory

    @property
    def text(self) -> str:
        """The text of the last sample, which is what a verifier reads."""
        return self.samples[-1].text

    @property
    def sampled_tokens(self) -> int:
        return sum(len(s.completion_ids) for s in self.samples)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(s.prompt_ids) for s in self.samples)


@dataclass(slots=True)
class Verdict:
    """A verifier's judgement of one trajectory. Only `correct` has reward 1 unless the verifier says otherwise."""

    trajectory_id: str
    status: Status
    reward: float
    extracted: str | None = None  # the answer that was read out of the text
    step_rewards: list[float] | None = None
    reason: str | None = None  # for people: why unparseable, what the error was


@dataclass(slots=True)
class Attempt:
    """A trajectory with its problem and verdict: what a filter chooses from."""

    problem: Problem
    trajectory: Trajectory
    verdict: Verdict


@dataclass(slots=True)
class Example:
    """One row for a trainer, with where it came from.

    It is a completion to imitate (`completion_ids`), or a preference pair (`completion_ids` is the chosen side, and
    `rejected_ids` the other). `mask[i]` is 1 if completion token i bears loss. None means that all do. For policy
    gradients, `advantages[i]` is the advantage of completion token i, and `logprobs[i]` its log-probability under the
    sampler.
    """

    problem_id: str
    trajectory_ids: list[str]
    prompt_ids: list[int]
    completion_ids: list[int]
    rejected_ids: list[int] | None = None
    mask: list[int] | None = None
    weight: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)
    array: list[float] | None = None  # in place of `completion_ids`, for a policy of numbers
    advantages: list[float] | None = None  # one a completion token
    logprobs: list[float] | None = None  # as in Sample, one a completion token

    @property
    def tokens(self) -> int:
        """Tokens a trainer reads for this row in one epoch; a pair reads its prompt twice."""
        chosen = len(self.prompt_ids) + len(self.completion_ids)
        return chosen if self.rejected_ids is None else chosen + len(self.prompt_ids) + len(self.rejected_ids)


@dataclass(slots=True)
class Memory:
    """One thing that later passes know besides weights. `key` is what it is found by."""

    key: str
    text: str | None = None
    array: list[float] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Adaptation:
    """What a self-tuning method decided for a round, from its dev problems or from earlier rounds."""

    overrides: dict[str, dict[str, Any]]  # slot -> option -> value, e.g. {"generate": {"temperature": 0.7}}
    metrics: dict[str, float] = field(default_factory=dict)
    surface: list[dict[str, Any]] = field(default_factory=list)  # a row for each compared choice, for adapt.parquet


# Arrow schemas. Lists of ids are int32, log-probabilities float32; free metadata is a JSON string.

SCHEMA = 2
"""Version of a run folder's files. Files that name none have version 1. A new field needs a default and no new version,
since files without it can still be read. A renamed field, or a field with a new meaning, needs a new version."""


def schemas() -> dict[type, pa.Schema]:
    """The Parquet schema of each record type, in the order of the dataclass fields; its metadata has the version."""
    import pyarrow as pa

    ids, floats = pa.list_(pa.int32()), pa.list_(pa.float32())
    node = pa.struct(
        {
            "id": pa.int32(),
            "parent": pa.int32(),
            "depth": pa.int32(),
            "completion_ids": ids,
            "logprobs": floats,
            "text": pa.string(),
            "finish": pa.string(),
            "seed": pa.int64(),
            "version": pa.int32(),
            "prior": pa.float64(),
            "visits": pa.int32(),
            "q": pa.float64(),
            "value": pa.float64(),
            "reward": pa.float64(),
            "terminal": pa.bool_(),
            "chosen": pa.bool_(),
            "status": pa.string(),
            "metadata": pa.string(),
        }
    )
    sample = pa.struct(
        {
            "prompt_ids": ids,
            "completion_ids": ids,
            "logprobs": floats,
            "text": pa.string(),
            "finish": pa.string(),
            "seed": pa.int64(),
            "temperature": pa.float64(),
            "role": pa.string(),
            "version": pa.int32(),
            "array": pa.list_(pa.float64()),
        }
    )
    found = {
        Problem: pa.schema(
            {
                "id": pa.string(),
                "prompt": pa.string(),
                "gold": pa.string(),
                "split": pa.string(),
                "metadata": pa.string(),
                "array": pa.struct({"shape": ids, "data": pa.list_(pa.float64())}),
            }
        ),
        Trajectory: pa.schema(
            {
                "problem_id": pa.string(),
                "samples": pa.list_(sample),
                "metadata": pa.string(),
                "id": pa.string(),
                "tree": pa.list_(node),
            }
        ),
        Verdict: pa.schema(
            {
                "trajectory_id": pa.string(),
                "status": pa.string(),
                "reward": pa.float64(),
                "extracted": pa.string(),
                "step_rewards": pa.list_(pa.float64()),
                "reason": pa.string(),
            }
        ),
        Example: pa.schema(
            {
                "problem_id": pa.string(),
                "trajectory_ids": pa.list_(pa.string()),
                "prompt_ids": ids,
                "completion_ids": ids,
                "rejected_ids": ids,
                "mask": pa.list_(pa.int8()),
                "weight": pa.float64(),
                "metadata": pa.string(),
                "array": pa.list_(pa.float64()),
                "advantages": pa.list_(pa.float64()),
                "logprobs": floats,
            }
        ),
        Memory: pa.schema(
            {
                "key": pa.string(),
                "text": pa.string(),
                "array": pa.list_(pa.float64()),
                "metadata": pa.string(),
            }
        ),
    }
    return {kind: schema.with_metadata({"schema": str(SCHEMA)}) for kind, schema in found.items()}


def to_table(records: Sequence[Any], kind: type) -> pa.Table:
    """Records of one type as an Arrow table with that type's schema."""
    import pyarrow as pa

    def row(record: Any) -> dict[str, Any]:
        values = {name: getattr(record, name) for name in record.__dataclass_fields__}
        if "metadata" in values:
            values["metadata"] = json.dumps(values["metadata"], ensure_ascii=False)
        if "samples" in values:
            values |= {name: [_fields(item) for item in getattr(record, name)] for name in ("samples", "tree")}
        if kind is Problem:  # a prompt is text or messages: JSON keeps the difference
            values["prompt"] = json.dumps(record.prompt, ensure_ascii=False)
            values["array"] = record.array and {"shape": record.array.shape, "data": record.array.data}
        return values

    return pa.Table.from_pylist([row(record) for record in records], schema=schemas()[kind])


def _fields(item: Any) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in item.__dataclass_fields__}
    if isinstance(item, Node):  # most nodes have no metadata: null takes no space
        values["metadata"] = json.dumps(item.metadata, ensure_ascii=False) if item.metadata else None
    return values


def from_rows(rows: Sequence[dict[str, Any]], kind: type) -> list[Any]:
    """The inverse of `to_table`, from the table's rows.

    Missing fields get their defaults, and columns that are not fields are left out. Raises KeyError for a missing field
    without a default.
    """

    def record(row: dict[str, Any]) -> Any:
        if "metadata" in row:
            row["metadata"] = json.loads(row["metadata"])
        if "samples" in row:
            row["samples"] = [_made(sample, Sample) for sample in row["samples"]]
        if "tree" in row:
            row["tree"] = [_made(_node(node), Node) for node in row["tree"]]
        if kind is Problem:
            row["prompt"] = json.loads(row["prompt"])
            if array := row.get("array"):
                row["array"] = Array(tuple(array["shape"]), tuple(array["data"]))
        return _made(row, kind)

    return [record(row) for row in rows]


def _node(row: dict[str, Any]) -> dict[str, Any]:
    metadata = row.get("metadata")
    return row | {"metadata": json.loads(metadata) if metadata else {}}


def _made(row: dict[str, Any], kind: type) -> Any:
    known = defaults(kind)
    if row.keys() == known.keys():
        return kind(**row)
    for name, default in known.items():
        if name not in row and default is None:
            raise KeyError(name)
    return kind(**{name: value for name, value in row.items() if name in known})


@cache
def defaults(kind: type) -> dict[str, Callable[[], Any] | None]:
    """Field -> a function that makes its default. None for a field without a default."""

    def default(entry: Any) -> Callable[[], Any] | None:
        if entry.default is not MISSING:
            return lambda: entry.default
        return entry.default_factory if entry.default_factory is not MISSING else None

    return {entry.name: default(entry) for entry in fields(kind)}
