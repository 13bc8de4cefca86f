"""Does preference behind the problem and behind the worse answer teach to refine, and does answering gain from it?

Claims of Zeng et al. 2025 (arXiv 2502.05605), on chains of arithmetic. All arms begin with the same activation and make
their chains in the same way. They differ in what is learnt of a chain: pairs behind both prompts, pairs behind the
problem alone, the chosen answers by fine-tuning, or pairs by rule. The verifier stands in place of a reward model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from rich.table import Table

from selfimprove.generate.turns import by_turn
from selfimprove.studies import Claim, Lab, Result, difference, overall
from selfimprove.studies.arms import arms_table, run_arms
from selfimprove.studies.solving import waiting
from selfimprove.studies.staged import GRADE, at_stage, bounded, chosen_rates, minus
from selfimprove.verify.answers import last

COMMAND = "selfimprove study evolve"
OWN = "both prompts"
ARMS = {
    OWN: [],
    "a = 0": ["method.filter.a=0"],
    "fine-tuning": [
        "method.train._target_=selfimprove.train.sft.sft",
        "~method.train.beta",
        "~method.train.sft_weight",
    ],
    "rule": ["method.filter.select=rule"],
}
RATES = (3e-5, 1e-4, 3e-4)


def study(lab: Lab) -> Iterator[Claim]:
    train, dev, heldout = (24, 20, 40) if lab.quick else (120, 150, 250)
    names = [OWN, "a = 0"] if lab.quick else list(ARMS)
    rates = RATES[1:2] if lab.quick else RATES
    common = ["method=evolve", f"dataset.train_size={train}"]
    solver = partial(by_turn, turns=2, ask="Improve this solution.", shown=1, check=waiting(GRADE))
    arms = {name: ARMS[name] for name in names}
    chosen = chosen_rates(lab, [*common, "rounds=1"], arms, rates, solver, last, dev)
    arms = {arm: [*own, f"method.train.learning_rate={chosen[arm]}"] for arm, own in arms.items()}
    rounds = 1 if lab.quick else 2
    runs = run_arms(lab, [*common, f"rounds={rounds}", f"dataset.heldout_size={heldout}"], arms)
    lab.note(table(runs))
    first = {arm: [at_stage(r, 1) for r in found] for arm, found in runs.items()}
    second = {arm: [at_stage(r, 2) for r in found] for arm, found in runs.items()}
    gains = {arm: [minus(s, f) for s, f in zip(second[arm], first[arm], strict=True)] for arm in runs}
    base = [at_stage(r, 1, "base") for r in runs[OWN]]
    yield bounded("the first turn is better than the base policy's", difference(first[OWN], base), 0.0, "base", COMMAND)
    said = "the second turn is better than the first"
    yield bounded(said, difference(second[OWN], first[OWN]), 0.0, "first turn", COMMAND)
    for arm in ("a = 0", "fine-tuning"):
        if arm in runs:
            said = f"the second turn gains more on the first than with {arm}"
            yield bounded(said, difference(gains[OWN], gains[arm]), 0.0, arm, COMMAND)
    if "rule" in runs:
        half = [minus(own, of_base, 1.0) for own, of_base in zip(first[OWN], base, strict=True)]
        rule = [minus(own, of_base, 1.0) for own, of_base in zip(first["rule"], base, strict=True)]
        rest = [minus(r, h, 0.5) for r, h in zip(rule, half, strict=True)]
        nothing = [dict.fromkeys(values, 0.0) for values in rest]
        said = "pairs by rule give at least half of the first turn's gain by reward"
        yield bounded(said, difference(rest, nothing), 0.0, "half of the gain by reward", COMMAND)


def table(runs: dict[str, list[Result]]) -> Table:
    def turn(number: int) -> Callable[[tuple[list[Result], str]], str]:
        return lambda row: f"{100 * overall([at_stage(r, number, row[1]) for r in row[0]]):.1f} %"

    def of_rounds(cell: Callable[[list[Result]], float]) -> Callable[[tuple[list[Result], str]], str]:
        return lambda row: "" if row[1] == "base" else f"{cell(row[0]):,.0f}"

    rows = {"shipped policy": (next(iter(runs.values())), "base")} | {arm: (rs, "last") for arm, rs in runs.items()}
    return arms_table(
        "Held-out, means over seeds",
        rows,
        {
            "turn 1": turn(1),
            "turn 2": turn(2),
            "examples a round": of_rounds(
                lambda rs: float(np.mean([one["examples"] for r in rs for one in r.summary["rounds"]]))
            ),
            "sampled tokens": of_rounds(lambda rs: float(np.mean([r.sampled_tokens for r in rs]))),
        },
    )
