"""What a function of a slot may ask the runner for, by having a keyword of that name.

| keyword | is |
| --- | --- |
| seed | int, for this phase (for a solver: of this problem too) |
| check | async (text, problem) -> Outcome: the training verifier's, or the data set's if that one judges groups |
| judge | async (problem, trajectories) -> list[Outcome]: the training verifier's, of either kind |
| prepared | what the module's `prepare` returned |
| roles | Mapping[str, Policy]: the method's other policies, each at its own version |
| text | render, turn, encode and end of the policy's tokenizer |
| memory | Sequence[Memory]: what the last pass left, not to be changed |
| tools | Mapping[str, Tool]: the method's tools, opened once a session |
| step | Pass: which one this is |
| made | Made: problems and examples of earlier passes |
| scorers | Mapping[str, Scorer]: the method's reward models that have been trained so far, each at its newest weights |
| figures | list of mappings: the figures of each earlier pass, `phase/name` -> value |

A supply and all that it depends on are part of the phase's key, so that no stale result is used again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from selfimprove import seeds
from selfimprove.binding import Target, asks_for, bind
from selfimprove.phase import problems_key, version
from selfimprove.plan import Pass
from selfimprove.schema import Config
from selfimprove.session import Policies, Session


def key(session: Session, step: Pass, node: Target, verifier: Target) -> list[Any]:
    """What a phase depends on through the supplies of the node's function."""
    asked, found = asks_for(node), list[Any]()
    if asked & {"check", "judge", "prepared"}:
        found += [verifier, version(verifier)]
    if "prepared" in asked:
        found.append(problems_key(session.dev))
    if "text" in asked:
        found.append(["text", session.base["policy"].digest])
    if "memory" in asked:
        found.append(["memory", session.memories.digest])
    if "made" in asked:
        found.append(["made", session.made.digest])
    if "step" in asked:
        found.append(["step", step.round, step.stage, step.part, step.parts, step.turn, step.turns])
    if "tools" in asked:
        found += [["tool", name, tool, version(tool)] for name, tool in session.config.method.tools.items()]
    if "figures" in asked:
        found.append(["figures", earlier_figures(session, step)])
    return found


def key_of_roles(config: Config, policies: Policies) -> list[Any]:
    """What sampling depends on through the method's other policies. Empty if there is only one."""
    if len(config.roles) == 1:
        return []
    models = {role: own.model and own.model.model_dump() for role, own in config.roles.items()}
    return [{role: [weights.digest, models[role]] for role, weights in policies.items()}]


def supplied(session: Session, step: Pass, node: Target, slot: str, where: str, verifier: Target) -> Callable[..., Any]:
    """The node's function with its options and all that it asks for, without what differs from problem to problem."""
    asked = asks_for(node)
    given: dict[str, Any] = {}
    if "seed" in asked and slot != "generate":
        given["seed"] = seeds.derive(session.config.seed, slot, step.number)
    if "check" in asked:
        given["check"] = session.check_by(verifier)
    if "text" in asked:
        given["text"] = session.text
    if "memory" in asked:
        given["memory"] = session.memories.read()
    if "made" in asked:
        given["made"] = session.made
    if "step" in asked:
        given["step"] = step
    if "tools" in asked:
        given["tools"] = session.tools
    if "figures" in asked:
        given["figures"] = earlier_figures(session, step)
    return partial(bind(node, where), **given)


def earlier_figures(session: Session, step: Pass) -> list[dict[str, Any]]:
    """The figures of the phases of each pass before this one.

    Times are left out, since results do not depend on them.
    """
    return [
        {f"{phase}/{name}": value for phase, name, value in session.run.figures(earlier) if "seconds" not in name}
        for earlier in session.passes[: step.number]
    ]
