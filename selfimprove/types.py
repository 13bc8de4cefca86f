"""What passes between the four slots: problem, trajectory, verdict, example.

Plain dataclasses, each with an Arrow schema of the same name below, so that every file of a run folder can be read
with any Parquet reader. Token ids are the truth: text is kept beside them for people and for verifiers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["correct", "wrong", "unparseable", "timeout", "error"]
STATUSES: tuple[Status, ...] = ("correct", "wrong", "unparseable", "timeout", "error")

Message = dict[str, str]  # {"role": "user", "content": "..."}


@dataclass(slots=True)
class Problem:
    """One task. `prompt` is text or chat messages, rendered once, by the policy that is asked.

    `gold` is the reference answer as text; what else a verifier needs (options, unit tests) is in `metadata`, as JSON.
    """

    id: str
    prompt: str | list[Message]
    gold: str | None = None
    split: Literal["train", "dev", "test"] = "train"
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Sample:
    """One answer of an engine: what was asked and what came back, token by token.

    `logprobs[i]` is log pi(completion_ids[i] | prompt_ids, completion_ids[:i]) in nats under the policy itself, at
    temperature 1 and without truncation, whatever it was sampled at; it has the length of `completion_ids`. A
    completion that ended by itself includes its end token; `text` never does.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    logprobs: list[float]
    text: str
    finish: Literal["stop", "length"]
    seed: int
    temperature: float = 1.0
    role: str = "policy"
    version: int = 0  # policy version: 0 is the base model, v + 1 is what round v trained


@dataclass(slots=True)
class Trajectory:
    """One attempt at one problem: the samples it took, in order. The last sample holds the answer.

    A single-turn method has one sample; a dialogue has one a turn, where each turn's `prompt_ids` start with the
    previous turn's prompt and completion, id for id; a tree search has one a step of the path.
    """

    id: str
    problem_id: str
    samples: list[Sample]
    metadata: dict[str, Any] = field(default_factory=dict)  # tree node, scores, votes: JSON

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
    """What a verifier says of one trajectory. Only `correct` has reward 1 unless the verifier says otherwise."""

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

    A completion to imitate (`completion_ids`), or a preference pair (`completion_ids` is the chosen one, and
    `rejected_ids` the other). `mask[i]` is 1 where completion token i bears loss; None means all of them.
    """

    problem_id: str
    trajectory_ids: list[str]
    prompt_ids: list[int]
    completion_ids: list[int]
    rejected_ids: list[int] | None = None
    mask: list[int] | None = None
    weight: float = 1.0
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens a trainer reads for this row in one epoch; a pair reads its prompt twice."""
        chosen = len(self.prompt_ids) + len(self.completion_ids)
        return chosen if self.rejected_ids is None else chosen + len(self.prompt_ids) + len(self.rejected_ids)
