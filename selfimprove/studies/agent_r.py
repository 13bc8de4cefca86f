"""Does a policy that learnt from its own cut and mended paths find back from wrong steps?

Claims of Yuan et al. 2025 (arXiv 2501.11425), in the embedded environment `craft`, where every wrong step can be made
good. All arms begin with the same lessons of a scripted teacher, which makes no mistakes. Then they search the same
number of tasks. One arm learns good paths alone, with as many trained tokens; one leaves bad paths at their ends. On
held-out tasks the first two actions are wrong ones that the policy did not choose, and then it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from rich.table import Table

from selfimprove.env import WAIT, actions_of
from selfimprove.env.craft import tasks
from selfimprove.env.worlds import worlds
from selfimprove.policy.models import resolve
from selfimprove.studies import Claim, Lab, Result, claim_sign, difference, gated, overall
from selfimprove.studies.arms import RATE, arms_table, run_arms, tuned
from selfimprove.studies.forced import WRONG, Found, behind, judges_rightly, of_each, repeats, revision, succeeds
from selfimprove.studies.staged import (
    DEV_SEED,
    answered,
    best_rates,
    bounded,
    heldout_problems,
    over_rounds,
    percent,
    policy_of,
)
from selfimprove.types import Problem, Trajectory

COMMAND = "selfimprove study agent_r"
START, OWN, GOOD, END = "start", "agent_r", "good paths alone", "left at the end"
CUT = "method.filter.cut"
ARMS = {OWN: [], END: [f"{CUT}=end"], GOOD: [f"{CUT}=none"]}
GATE = 0.75  # share of first actions that the policy must judge rightly before it learns, of right and wrong ones alike
EPOCHS, RATES = 2, (1e-4, 3e-4, 1e-3)
DEV = 100  # dev tasks


def study(lab: Lab) -> Iterator[Claim]:
    with closing(worlds(env={"_target_": "selfimprove.env.craft.Craft"})) as tool:
        yield from claims(lab, {"env": tool})


def claims(lab: Lab, tools: Mapping[str, Any]) -> Iterator[Claim]:
    searched, heldout, rounds = (10, 20, 1) if lab.quick else (40, 150, 3)
    common = ["method=agent_r", f"method.problems.count={searched}", epochs(EPOCHS)]
    arms = {name: own for name, own in ARMS.items() if name != END or not lab.quick}
    rates = dict.fromkeys(arms, RATES[1]) if lab.quick else chosen_rates(lab, common, tools)
    common += [f"rounds={rounds}", f"dataset.heldout_size={heldout}"]
    arms = tuned(arms, rates)
    runs = run_arms(lab, common, arms)
    trained = {name: float(np.mean([over_rounds(r, "loss_tokens") for r in runs[name]])) for name in (OWN, GOOD)}
    more = trained[OWN] / max(1.0, trained[GOOD])
    runs[GOOD] = lab.over_seeds(*common, *arms[GOOD], epochs(max(EPOCHS, round(EPOCHS * more))))
    problems, base = heldout_problems(runs[OWN][0]), resolve("crafter", "made")
    found = {START: [behind(problems, base, tools)] * len(lab.seeds)}
    for name, results in runs.items():
        found[name] = [behind(heldout_problems(r), policy_of(r), tools) for r in results]
    early = [behind(heldout_problems(r), f"{r.path}/rounds/000/policy", tools) for r in runs[OWN]]
    judged = judges_rightly(problems, base, tools)
    lab.note(table(runs, found, judged))
    why = f"{judged:.0%} of actions are judged rightly, of {GATE:.0%} needed"
    yield from gated(compared(runs, found, early), judged >= GATE, why)


def compared(
    runs: Mapping[str, Sequence[Result]], found: Mapping[str, Sequence[Found]], early: Sequence[Found]
) -> Iterator[Claim]:
    """What is claimed of each arm's episodes behind wrong steps; `early` are those after the method's first round."""
    control = "good paths alone, as many trained tokens"
    reached = {name: succeeds(episodes) for name, episodes in found.items()}
    text = "the goal is reached from two wrong steps more often, by at least .15"
    yield bounded(text, difference(reached[OWN], reached[GOOD]), 0.15, control, COMMAND)
    more = difference(reached[OWN], reached[START])
    yield bounded("and more often than at the start", more, 0.0, "the policy that all arms begin with", COMMAND)
    revised = of_each(revision, found[OWN])
    text = "actions from the wrong steps to the revision fall from round to round"
    fall = difference(revised, of_each(revision, early))
    yield claim_sign(text, fall, "the policy after its first round", COMMAND, above=False)
    again = difference(of_each(repeats, found[OWN]), of_each(repeats, found[GOOD]))
    yield claim_sign("fewer actions are repeated at once", again, "good paths alone", COMMAND, above=False)
    text = "tasks without forced steps are solved more often than by good paths alone"
    unforced = difference([answered(r) for r in runs[OWN]], [answered(r) for r in runs[GOOD]])
    yield claim_sign(text, unforced, control, COMMAND)
    if END in found:
        text = "a policy that learnt from paths left at their ends revises later"
        later = difference(of_each(revision, found[END]), revised)
        yield claim_sign(text, later, "left at the first bad action", COMMAND)


def epochs(count: object) -> str:
    return f"method.train.epochs={count}"


def chosen_rates(lab: Lab, common: Sequence[str], tools: Mapping[str, Any]) -> dict[str, float]:
    """The learning rate of each arm whose policy, after a round, most often finds back on dev tasks."""
    dev = [Problem(row.id, row.question, row.gold, "dev", row.metadata) for row in tasks("dev", DEV, 0)]

    def finds_back(own: Sequence[str], rate: float) -> float:
        trial = lab.run(*common, *own, "rounds=1", "dataset.heldout_size=10", f"{RATE}={rate}", f"seed={DEV_SEED}")
        return overall(succeeds([behind(dev, policy_of(trial), tools)]))

    return best_rates(lab, ARMS, RATES, finds_back, "tasks solved behind wrong steps", percent)


def table(runs: Mapping[str, Sequence[Result]], found: Mapping[str, Sequence[Found]], judged: float) -> Table:
    def cell(figure: Callable[[Trajectory], float]) -> Callable[[str], str]:
        return lambda name: f"{overall(of_each(figure, found[name])):.3f}"

    def alone(name: str) -> str:
        scores = [answered(r, "base") for r in runs[OWN]] if name == START else [answered(r) for r in runs[name]]
        return f"{overall(scores):.3f}"

    def tokens(name: str) -> str:
        return "" if name == START else f"{np.mean([over_rounds(r, 'loss_tokens') for r in runs[name]]):,.0f}"

    return arms_table(
        f"Held-out tasks behind {WRONG} wrong steps, means over seeds; first actions judged rightly: {judged:.3f}",
        {name: name for name in found},
        {
            "goal reached": cell(lambda t: float(t.metadata["ended"] == "done")),
            "without wrong steps": alone,
            "revises at all": cell(lambda t: float(WAIT in actions_of(t.samples))),
            "actions before it": cell(revision),
            "repeated": cell(repeats),
            "trained tokens": tokens,
        },
    )
