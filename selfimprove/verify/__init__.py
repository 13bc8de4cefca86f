"""Verifiers: what a trajectory is worth. There are two kinds, told apart by the function that a config names.

A check is a pure function `check(text, gold, metadata, **options) -> Outcome`, named in a config by `_target_` with its
options, and run in the killable processes of `selfimprove.verify.pool`. A check never rewards what it could not read
and never blames the completion for a fault that is not its own: a gold answer that cannot be read is an `error`.

A check's module may also have `reference(gold, metadata, **options) -> str`, which is a completion that states the gold
answer; `selfimprove.verify.file.check_gold` uses it to see that every gold answer passes its own verifier. And it may
have `require(**options) -> dict`, called before a run begins: it raises ConfigError when this machine lacks what the
check needs, and returns what the run's environment.json should say of it.

A group verifier is a coroutine `verify(problem, trajectories, context, **options) -> list[Outcome]`, for what needs all
samples of a problem, or a model: agreement, a judge, a reward model. Thousands run at once in the event loop, and what
they ask of a model is batched. Its module may have `resource(opening, **options)`, which opens what all of them share.
It stays open for later phases, and is closed by its `close()` where it has one. Where that puts models on the device,
`opens(**options)` names them for the estimate of memory: folders, hub ids, roles, or `base` for the run's own.
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
    """What a check says of one completion: a Verdict that does not know its trajectory."""

    status: Status
    reward: float
    extracted: str | None = None  # the answer that was read out of the text
    step_rewards: list[float] | None = None
    reason: str | None = None  # for people: why unparseable, what the error was


Check = Callable[[str, Problem], Awaitable[Outcome]]  # text, problem: the data set's own check, in its pool
Judge = Callable[[Problem, list[Trajectory]], Awaitable[list[Outcome]]]  # a problem's trajectories, by either kind


class RewardModel(Protocol):
    """A reward model that is open: `selfimprove.verify.scoring.Scorer`."""

    async def logits(self, ids: Sequence[int], positions: Sequence[int] = ()) -> list[list[float]]: ...

    def passes(self, ids: Sequence[int], n: int, seed: int) -> list[list[float]]: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a group verifier has to work with, for one problem."""

    policy: Policy  # the one being trained, at the version that sampled the trajectories
    check: Check
    resource: Any  # what the module's `resource` returned


@dataclass(frozen=True, slots=True)
class Opening:
    """What `resource` may need to know: the policy's model, the hardware, the problems to come, and where the newest
    weights are of each role that no engine serves (reward models). Who puts a model on the device asks for `room`
    first: with hardware.sleep engines that are not at work let go of theirs."""

    model: Model
    hardware: Hardware
    problems: list[Problem]
    paths: Mapping[str, str] = field(default_factory=dict)
    room: Callable[[], object] = lambda: None
