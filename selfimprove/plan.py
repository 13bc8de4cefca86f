"""The passes of a run in order, planned once, and the phases of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfimprove.schema import Config

PHASES = (
    "problems",
    "adapt",
    "generate",
    "verify",
    "make",
    "filter",
    "remember",
    "train",
    "handover",
    "evaluate",
    "drift",
    "also",
)
ALWAYS = ("generate", "verify", "filter", "train", "evaluate")  # the phases that every round has
ASKING = ("adapt", "generate", "verify")  # the phases of a pass that spend tokens of a model on learning
AFTER = ("evaluate", "drift", "also")  # the phases at a round's end, which are of no stage


@dataclass(frozen=True, slots=True)
class Pass:
    """generate → verify → filter → train once. A pass is a part of a stage of a round."""

    number: int  # from 0 over the whole run; seeds and policy versions use it
    round: int
    stage: str = ""  # "" if the method is one stage
    part: int = 0  # the part of the round, from 0, of
    parts: int = 1
    turn: int = 0  # how many passes this stage had before, of
    turns: int = 1
    ends_round: bool = True
    label: str = "base"  # its folder's name: "000", "000.3", "000.1_rl.03"; labels sort in the order of passes
    prefix: str = "base"  # what its trajectories' ids begin with: "r0", "r0.3", "r0.rl.03"


BASE = Pass(number=-1, round=-1)
"""The base policies, before any round: they are only evaluated."""


def plan(config: Config) -> list[Pass]:
    """All passes of a run. A stage with `when: first` is in round 0 alone, one with `when: last` in the last round."""
    stages, alone = config.stages, {"first": 0, "last": config.rounds - 1}
    rounds = [
        (number, [(i, name) for i, name in enumerate(stages) if alone.get(stages[name].when, number) == number])
        for number in range(config.rounds)
    ]
    turns = dict.fromkeys(stages, 0)
    total = {name: sum(stages[name].parts for _, found in rounds for _, n in found if n == name) for name in stages}
    passes: list[Pass] = []
    for number, found in rounds:
        for position, (i, name) in enumerate(found):
            parts = stages[name].parts
            for part in range(parts):
                end = f".{part:0{len(str(parts - 1))}d}" if parts > 1 else ""  # padded, so that names sort
                passes.append(
                    Pass(
                        number=len(passes),
                        round=number,
                        stage=name,
                        part=part,
                        parts=parts,
                        turn=turns[name],
                        turns=total[name],
                        ends_round=position == len(found) - 1 and part == parts - 1,
                        label=f"{number:03d}" + (f".{i}_{name}" if name else "") + end,
                        prefix=f"r{number}" + (f".{name}" if name else "") + end,
                    )
                )
                turns[name] += 1
    return passes


def sources(config: Config, passes: Sequence[Pass], step: Pass) -> list[Pass]:
    """The passes whose attempts a pass learns from. `passes` is the run's plan.

    That is the pass itself. With `of` it is the same part of that stage in this round, or all its parts if the two have
    different numbers of parts.
    """
    of = config.stages[step.stage].of
    if of is None:
        return [step]
    found = [p for p in passes[: step.number] if p.round == step.round and p.stage == of]
    return [p for p in found if p.part == step.part] if found and found[0].parts == step.parts else found
