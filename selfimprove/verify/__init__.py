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
It stays open for later phases, and is closed by its `close()` where it has one.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from selfimprove.types import Problem, Status, Trajectory

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


@dataclass(frozen=True, slots=True)
class Context:
    """What a group verifier has to work with, for one problem."""

    policy: Policy  # the one being trained, at the version that sampled the trajectories
    check: Check
    resource: Any  # what the module's `resource` returned


@dataclass(frozen=True, slots=True)
class Opening:
    """What `resource` may need to know: the policy's model, the hardware, the problems to come, and where the newest
    weights are of each role that no engine serves (reward models)."""

    model: Model
    hardware: Hardware
    problems: list[Problem]
    paths: Mapping[str, str] = field(default_factory=dict)


_PHRASE = re.compile(r"\banswer\b(?:\s+to\s[^.\n]{0,80}?)?[*_]*\s*(?:is|are|:|=)[:*_\s]*", re.IGNORECASE)
_SAID = re.compile(  # to the end of the formula, the line or the sentence, which "St. Louis" and "U.S." do not end
    r"\\\[.{0,2000}?\\\]|\$\$.{0,2000}?\$\$"
    r"|[^\n]+?(?=[.!]?[*_]*(?:\n|$)|(?<!\b(?:St|Dr|Mr|Ms|Mt|vs))(?<!\.\w)[.!][*_]*\s)",
    re.DOTALL,
)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def stated(text: str) -> str | None:
    """What the last answer convention in `text` states, as it stands there; None when there is none.

    Conventions are `\\boxed{...}`, `#### ...` (GSM8K), "The answer is ..." and "Answer: ...".
    """
    start, content = last_box(text)
    for match in _HASHES.finditer(text):
        if match.start() > start:
            start, content = match.start(), match[1]
    for match in reversed(list(_PHRASE.finditer(text))):
        if match.start() > start and (said := _SAID.match(text, match.end())):
            return said[0]
    return content


def last_box(text: str) -> tuple[int, str | None]:
    """Start and content of the outermost box that closes last; (-1, None) without one. One pass, however nested."""
    found: tuple[int, str | None] = (-1, None)
    first = min((i for i in (text.find("\\boxed"), text.find("\\fbox")) if i >= 0), default=len(text))
    opened: list[tuple[int, int] | None] = []  # start and content start of a box, None for another brace
    for match in _BRACES.finditer(text, first):
        if match[0] == "}":
            if opened and (box := opened.pop()):
                found = box[0], text[box[1] : match.start()]
        elif match[0] == "{":
            opened.append(None)
        elif match[0].endswith("{") and match[0] != "\\{":
            opened.append((match.start(), match.end()))
    return found
