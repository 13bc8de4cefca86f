"""Verifiers decide what a trajectory is worth. There are two kinds: checks and group verifiers.

A check is a pure function `check(text, gold, metadata, **options) -> Outcome`. A config names it by `_target_`, with
its options. It runs in the killable processes of `selfimprove.verify.pool`. A check never rewards an answer it could
not read, and never blames the completion for a fault elsewhere: a gold answer that cannot be read is an `error`.

A check's module may also have `reference(gold, metadata, **options) -> str`, a completion that states the gold answer.
`selfimprove.verify.file.check_gold` uses it to test that every gold answer passes its own verifier. The module may also
have `require(**options) -> dict`, which is called before a run begins. It raises ConfigError when this machine lacks
what the check needs, and returns an entry for the run's environment.json.

A group verifier is a coroutine `verify(problem, trajectories, context, **options) -> list[Outcome]`. It is for verdicts
that need all samples of a problem, or a model: agreement, a judge, a reward model. Thousands run at once in the event
loop, and their requests to a model are batched. Its module may have `resource(opening, **options)`, which opens what
all of them share. The resource stays open for later phases, and is closed by its `close()` if it has one. If it puts
models on the device, `opens(**options)` names them for the estimate of memory: folders, hub ids, roles, or `base` for
the run's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from selfimprove.types import Problem, Status, Trajectory
from selfimprove.verify.statements import last_box as last_box
from selfimprove.verify.statements import stated as stated

if TYPE_CHECKING:
    from selfimprove.policy import Policy
    from selfimprove.schema import Hardware, Model


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of checking one completion: a Verdict without a trajectory."""

    status: Status
    reward: float
    extracted: str | None = None  # the answer read from the text
    step_rewards: list[float] | None = None
    reason: str | None = None  # for people: why it is unparseable, or what the error was


Check = Callable[[str, Problem], Awaitable[Outcome]]  # runs the data set's own check of a text, in its pool
Judge = Callable[[Problem, list[Trajectory]], Awaitable[list[Outcome]]]  # a verifier of either kind


class RewardModel(Protocol):
    """An open reward model: `selfimprove.verify.scoring.Scorer`."""

    async def logits(self, ids: Sequence[int], positions: Sequence[int] = ()) -> list[list[float]]: ...

    def passes(self, ids: Sequence[int], n: int, seed: int) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a group verifier may use for one problem."""

    policy: Policy  # the one being trained, at the version that sampled the trajectories
    check: Check
    resource: Any  # what the module's `resource` returned


@dataclass(frozen=True, slots=True)
class Opening:
    """What `resource` may need: the policy's model, the hardware, the problems to come, and `paths`.

    `paths` maps each role that no engine serves (reward models) to its newest weights. Who puts a model on the device
    calls `room` first: with hardware.sleep, engines that are not at work then release their memory.
    """

    model: Model
    hardware: Hardware
    problems: list[Problem]
    paths: Mapping[str, str] = field(default_factory=dict)
    room: Callable[[], object] = lambda: None
